"""Help pages: the first screen of every command, and the overview.

Place in the pipeline: ``bczoo help``, ``bczoo COMMAND --help`` and ``bczoo --help`` print what is made here. Nothing
heavy is imported: options, defaults and texts are read from the source of the commands (:mod:`bczoo.cli.source`). The
whole of a parser, of Lightning's too, is behind ``--help all``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from bczoo.cli import FUNCTIONS, TRAINER
from bczoo.cli.examples import EXAMPLES, GROUPS, RARE
from bczoo.cli.source import Argument, describe
from bczoo.core.configs import names

WIDTH = 118
MOST_LINES = 38  # of a first screen
MOST_OPTIONS = 26  # of a first screen
DATA = "bczoo.data.module:RecordingDataModule"
POLICY = "an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file"
FIT_OPTIONS = (
    ("--config NAME", "configuration to train: one of those below, or a YAML file; a second one is laid over it"),
    ("--data.root FOLDER", "{root}"),
    ("--env GAME", "play and record another game than the quick start's own, such as doom/basic"),
    ("--trainer.default_root_dir DIR", "folder of everything that the run writes (runs/<configuration>)"),
    ("--trainer.max_steps N", "optimiser steps to train for"),
    ("--trainer.accelerator NAME", "cpu, gpu or auto, which takes a GPU if there is one (auto)"),
    ("--trainer.precision NAME", "numbers to train in, such as bf16-mixed or 32-true"),
    ("--logger NAME", "log to a service too, such as wandb; metrics.csv is always written"),
    ("--ckpt_path PATH", "last resumes an interrupted run (the default), null starts anew, or a .ckpt file"),
    ("--play false", "leave out the closing games that the configuration names"),
    ("--seed_everything N", "seed of weights, order and dropout"),
    ("--seeds N", "train with N seeds, one after the other, and compare the runs"),
    ("--import MODULE", "import a module of yours first, for families and parts of your own"),
    ("--print_config", "print every value, ready to edit, and stop"),
    ("--data.batch_size N", "{batch_size}"),
    ("--data.num_workers N", "{num_workers}"),
    ("--data.fraction SHARE", "{fraction}"),
    ("--data.val_root FOLDER", "{val_root}"),
    ("--data.source null", "train on what is in data.root alone, without recording any more"),
    ("--model.init_from POLICY", "of finetune: the policy to start from"),
    ("--model.window N", "steps of a training window and of the memory in play"),
    ("--model.encoder CLASS", "part of the policy by class, and its arguments: --model.encoder.frozen true"),
    ("--model.optimizer.lr RATE", "learning rate; --model.lr_scheduler bczoo.WarmupCosine changes it along the way"),
)
EVALUATE_OPTIONS = (
    ("--data FOLDER", "recordings to take; those that the run was trained on if left out"),
    ("--data.batch_size N", "{batch_size}"),
    ("--data.num_workers N", "{num_workers}"),
    ("--trainer.limit_{stage}_batches N", "take only so many batches"),
    ("--trainer.accelerator NAME", "cpu, gpu or auto, which takes a GPU if there is one (auto)"),
    ("--trainer.default_root_dir DIR", "where to write; the folder of the run if left out"),
    ("--import MODULE", "import a module of yours first, for families and parts of your own"),
    ("--config NAME", "instead of POLICY: the configuration of a training, and what was changed in it"),
    ("--ckpt_path PATH", "with --config: last, the checkpoint of that run, or a .ckpt file (last)"),
    ("--print_config", "with --config: print every value and stop"),
)
WRITES = {
    "validate": "the metrics of all validation windows, also into the record of the run",
    "test": "the metrics of all test windows, also into the record of the run",
    "predict": "predictions.safetensors: of every step the most likely action, and how likely the recorded one",
}


def overview() -> str:
    """The page of ``bczoo --help``."""
    commands = [((name,), text) for name, text in TRAINER.items()] + [(c, entry[0]) for c, entry in FUNCTIONS.items()]
    known = [word for members in GROUPS.values() for word in members]
    titled = GROUPS | {"more": tuple(dict.fromkeys(c[0] for c, _ in commands if c[0] not in known))}
    width = max(len(" ".join(c)) for c, _ in commands) + 2
    lines = []
    for title, members in titled.items():
        rows = [(c, text) for word in members for c, text in commands if c[0] == word]
        if rows:
            lines += [f"{title}:", *(f"  {' '.join(c):<{width}}{text}" for c, text in rows)]
    return "\n".join(
        [
            "usage: bczoo COMMAND [options]",
            "",
            "Behaviour cloning of video games: record, train, play. Start here:  bczoo fit --config quickstart",
            "",
            *lines,
            "",
            "bczoo COMMAND --help shows a command's options and examples.",
            *_wrapped("--config takes a path or one of: ", ", ".join(_named_shortly())),
        ]
    )


def _named_shortly() -> list[str]:
    """Names of configurations, those in a folder as one; ``bczoo fit --help`` lists them all."""
    return list(dict.fromkeys(f"{name.partition('/')[0]}/*" if "/" in name else name for name in names()))


def page(command: Sequence[str]) -> str | None:
    """The first screen of a command's help, or of a group's such as ``data``; None if there is no such command."""
    words = tuple(command)
    if not words:
        return overview()
    if words[0] in TRAINER and len(words) == 1:
        return _fit() if words[0] == "fit" else _evaluate(words[0])
    if words in FUNCTIONS:
        return _function(words)
    members = {c: entry[0] for c, entry in FUNCTIONS.items() if c[: len(words)] == words}
    return _group(words, members) if members else None


def _group(words: tuple[str, ...], members: dict[tuple[str, ...], str]) -> str:
    width = max(len(" ".join(c)) for c in members) + 2
    name = " ".join(words)
    rows = [f"  bczoo {' '.join(c):<{width}}{text}" for c, text in members.items()]
    return "\n".join([f"usage: bczoo {name} COMMAND [options]", "", *rows, "", *_examples(list(members)[:2])])


def _function(command: tuple[str, ...]) -> str:
    _, target, positional = FUNCTIONS[command]
    described = describe(target)
    given = [described.named(name) for name in positional]
    options = [a for a in described.arguments if a.name not in positional]
    needed = [a for a in options if a.default is None]
    optional = [a for a in options if a.default is not None]
    shown = [*needed, *_usual(optional, MOST_OPTIONS - len(needed) - len(given))]
    rows = [(a.name.upper(), _text(a)) for a in given] + [(_flag(a), _text(a)) for a in shown]
    left = len(options) - len(shown)
    usage = " ".join(
        ["bczoo", *command, *(a.name.upper() for a in given), *(f"{_flag(a)}" for a in needed), "[options]"]
    )
    more = f"bczoo {' '.join(command)} --help all: {f'{left} more options, and ' if left else ''}every option in full"
    head = [f"usage: {usage}", "", *textwrap.wrap(described.summary, WIDTH), ""]
    end = ["", *_examples([command]), more]
    return "\n".join([*head, *_table(rows, MOST_LINES - len(head) - len(end)), *end])


def _fit() -> str:
    return "\n".join(
        [
            "usage: bczoo fit --config NAME [options]",
            "",
            "Train a policy. An interrupted run goes on when the same command is given again.",
            "",
            *_table(_filled(FIT_OPTIONS), len(FIT_OPTIONS)),
            "",
            *_wrapped("configurations: ", ", ".join(names())),
            *_examples([("fit",)]),
            "bczoo fit --help all: every option, Lightning's too",
        ]
    )


def _evaluate(command: str) -> str:
    options = tuple(
        (flag.replace("{stage}", "val" if command == "validate" else command), t) for flag, t in EVALUATE_OPTIONS
    )
    return "\n".join(
        [
            f"usage: bczoo {command} POLICY [options]",
            f"       bczoo {command} --config NAME [options]",
            "",
            *textwrap.wrap(f"{TRAINER[command].capitalize()}. Writes {WRITES[command]}.", WIDTH),
            "",
            *_table([("POLICY", POLICY), *_filled(options)], len(options) + 3),
            "",
            *_examples([(command,)]),
            f"bczoo {command} --help all: every option, Lightning's too",
        ]
    )


def missing_config(command: str) -> str:
    """What to say to ``bczoo fit`` alone."""
    or_policy = "" if command == "fit" else f", or {command} a policy: bczoo {command} runs/quickstart"
    return (
        f"bczoo: which configuration? Give --config one of {', '.join(names())}, or a YAML file{or_policy}. "
        f"Start with: {EXAMPLES[(command,)][0]} (bczoo {command} --help says more)"
    )


def _filled(options: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows whose texts in braces are those of the data module's arguments."""
    rows = []
    for flag, text in options:
        if match := re.fullmatch(r"\{(\w+)\}", text):
            text = _text(describe(DATA).named(match[1]))
        rows.append((flag, text))
    return rows


def _usual(options: list[Argument], most: int) -> list[Argument]:
    """The options of a first screen: all, or as many as it has room for, the rare ones last to get in."""
    by_need = sorted(options, key=lambda a: a.name in RARE)[: max(most, 0)]
    return [a for a in options if a in by_need]


def _flag(argument: Argument) -> str:
    kind = re.sub(r" \| None|None \| ", "", argument.type)
    if argument.choices:
        value = "|".join(argument.choices)
    elif kind == "bool":
        value = "true|false"
    else:
        value = {"int": "N", "float": "X"}.get(kind, argument.name.split("_")[-1].upper())
    return f"--{argument.name} {value}" if len(value) <= 26 else f"--{argument.name} NAME"


def _text(argument: Argument) -> str:
    """What an argument is, and its default."""
    default = argument.shown_default
    return argument.help.strip().rstrip(".") + (f" ({default})" if default else "")


def _table(rows: Sequence[tuple[str, str]], lines: int) -> list[str]:
    """Rows of a flag and its text: one line each, two where that is too short and there are lines left.

    Args:
        rows: the flags and their texts.
        lines: how many there may be; never fewer than one a row.
    """
    width = min(max((len(flag) for flag, _ in rows), default=0), 32)
    spare, out = lines - sum(1 + (len(flag) > width) for flag, _ in rows), []
    for flag, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - width - 4, break_on_hyphens=False)
        if len(wrapped) == 2 and spare > 0:
            spare -= 1
        else:
            wrapped = [_shortened(text, WIDTH - width - 4)]
        if len(flag) > width:
            out.append(f"  {flag}")
            flag = ""
        out += [f"  {head:<{width}}  {line}".rstrip() for head, line in zip([flag, ""], wrapped, strict=False)]
    return out


def _shortened(text: str, room: int) -> str:
    """A text that fits a line: whole, or as many of its sentences or clauses as do, and the default at its end."""
    if len(text) <= room:
        return text
    match = re.search(r" \([^()]*\)$", text)
    end = match[0] if match else ""
    text, room = text.removesuffix(end), room - len(end)
    cut = max((text[:room].rfind(stop) for stop in (". ", "; ", ": ", ", ")), default=-1)
    return (text[:cut] if cut > 0 else textwrap.shorten(text, room, placeholder=" ...")) + end


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _examples(commands: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [line for command in commands for line in EXAMPLES.get(command, ())]
    return [*(["examples:" if len(lines) > 1 else "example:"] if lines else []), *(f"  {line}" for line in lines), ""]
