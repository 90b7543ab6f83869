"""Completion in a shell: commands, options, configurations, and files where a path is expected.

Place in the pipeline: ``bczoo completion bash`` prints a small script, which asks ``bczoo __complete`` for words at
every Tab. That imports neither torch nor Lightning. Options are read from the source of what takes them
(:mod:`bczoo.cli.source`). Where no word fits, the shell offers files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

from bczoo.cli import COMPLETE, FUNCTIONS, TRAINER
from bczoo.cli.source import Argument, describe
from bczoo.core.configs import find, names

Shell = Literal["bash", "zsh", "fish"]
SCRIPTS = {
    "bash": """\
_bczoo() {{
    local IFS=$'\\n'
    COMPREPLY=($(bczoo {complete} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -F _bczoo bczoo
""",
    "zsh": """\
#compdef bczoo
_bczoo() {{
    local -a found
    found=("${{(@f)$(bczoo {complete} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    if [[ -n "${{found[1]}}" ]]; then compadd -- "${{found[@]}}"; else _files; fi
}}
compdef _bczoo bczoo
""",
    "fish": """\
function __bczoo_complete
    set -l words (commandline -opc) (commandline -ct)
    bczoo {complete} $words[2..-1] 2>/dev/null
end
complete -c bczoo -f -n 'test -n "$(__bczoo_complete)"' -a '(__bczoo_complete)'
""",
}
DATA = "bczoo.data.module:RecordingDataModule"
FAMILIES = {
    "bczoo.BCPolicy": "bczoo.models.bc.policy:BCPolicy",
    "bczoo.CNNPolicy": "bczoo.models.cnn.policy:CNNPolicy",
    "bczoo.FineTune": "bczoo.train.finetune.policy:FineTune",
}
TRAINER_CLASS = "lightning.pytorch.trainer.trainer:Trainer"
ALWAYS = ("--help", "--config", "--import", "--print_config")
OF_FIT = ("--seed_everything", "--ckpt_path", "--env", "--logger")


def completion(shell: Shell) -> None:
    """Print a script that completes bczoo's commands, options and configurations.

    Args:
        shell: bash, zsh or fish; put `eval "$(bczoo completion bash)"` into ~/.bashrc, or zsh's into ~/.zshrc.
    """
    print(SCRIPTS[shell].format(complete=COMPLETE), end="")


def complete(words: Sequence[str]) -> list[str]:
    """What the last of some words may become.

    Args:
        words: behind ``bczoo``, the last of them unfinished, maybe empty. Bash gives ``=`` as a word of its own.
    """
    *before, word = list(words) or [""]
    before = [w for w in before if w != "="]
    if word == "=":
        word = ""
    return sorted({w for w in _words(before, word) if w.startswith(word)})


def _words(before: list[str], word: str) -> Iterable[str]:
    command = next((c for c in [*((t,) for t in TRAINER), *FUNCTIONS] if tuple(before[: len(c)]) == c), None)
    if command is None:
        asked = before[1:] if before[:1] == ["help"] else before
        below = [c[len(asked)] for c in [*((t,) for t in TRAINER), *FUNCTIONS] if c[: len(asked)] == tuple(asked) != c]
        return [*below, *(["help", "--help", "--version"] if not before else [])]
    given = before[len(command) :]
    if given and given[-1].startswith("--"):
        return _values(command, given[-1])
    if word.startswith("-"):
        return _options(command, given)
    return _first_values(command) if not given else []


def _options(command: tuple[str, ...], given: list[str]) -> list[str]:
    if command[0] in TRAINER:
        data = [f"--data.{a.name}" for a in describe(DATA).arguments]
        trainer = [f"--trainer.{a.name}" for a in describe(TRAINER_CLASS).arguments]
        return [*ALWAYS, *OF_FIT, *data, *trainer, *_model_options(given), *(["--data"] if command != ("fit",) else [])]
    _, target, positional = FUNCTIONS[command]
    return [*ALWAYS, *(f"--{a.name}" for a in describe(target).arguments if a.name not in positional)]


def _model_options(given: list[str]) -> list[str]:
    """``--model...`` of the family that the configurations name, down to the arguments of its parts that they set."""
    import yaml

    family, out = "bczoo.BCPolicy", []
    for option, value in pairwise(given):
        if option not in ("--config", "-c"):
            continue
        try:
            model = (yaml.safe_load(find(value).read_text(encoding="utf-8")) or {}).get("model") or {}
        except (ValueError, OSError, AttributeError, yaml.YAMLError):
            continue  # unfinished, or wrong, which the command itself says
        family = model.get("class_path", family)
        out += _below("--model", model.get("init_args") or {})
    return out + [f"--model.{a.name}" for a in describe(FAMILIES[family]).arguments] if family in FAMILIES else out


def _below(prefix: str, arguments: dict[str, Any]) -> list[str]:
    out = []
    for name, value in arguments.items():
        out.append(f"{prefix}.{name}")
        if isinstance(value, dict):
            out += _below(f"{prefix}.{name}", value.get("init_args") or {})
    return out


def _values(command: tuple[str, ...], option: str) -> list[str]:
    """Values of an option; none where it takes a path or anything."""
    if option == "--config":
        return names()
    if option == "--help":
        return ["all"]
    if option == "--ckpt_path":
        return []
    if option == "--env":
        return _games()
    found = _argument(command, option)
    if found is None:
        return []
    return ["true", "false"] if found.type == "bool" else list(found.choices)


def _argument(command: tuple[str, ...], option: str) -> Argument | None:
    target, name = DATA, option.removeprefix("--data.")
    if command[0] not in TRAINER:
        target, name = FUNCTIONS[command][1], option.removeprefix("--")
    return next((a for a in describe(target).arguments if a.name == name), None)


def _games() -> list[str]:
    from bczoo.games import game_names

    return list(game_names())


def _first_values(command: tuple[str, ...]) -> list[str]:
    """What the first argument without a name may be, besides a path."""
    if command[0] in TRAINER:
        return []
    _, target, positional = FUNCTIONS[command]
    if command == ("bench", "latency"):
        return []
    return list(describe(target).named(positional[0]).choices) if positional else []
