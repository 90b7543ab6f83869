"""The command line: which command is run by what.

Place in the pipeline: ``bczoo COMMAND ...`` starts here. This module imports nothing heavy, so that ``bczoo --help``
answers at once; a command's own module is loaded when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

from bczoo.core.configs import IMPORT

# command -> (what it does, "module:function" of a function whose arguments are the options, those without a name)
FUNCTIONS = {
    ("record",): ("play a game and write the episodes as recordings", "bczoo.record.command:record", ()),
    ("play",): ("play a game with a policy and report its returns", "bczoo.play.command:play_policy", ("policy",)),
    ("serve",): ("let a policy play games that connect to a socket", "bczoo.serve.commands:serve", ("policy",)),
    ("client-test",): (
        "replay a recording against a server and report its latency",
        "bczoo.serve.client:client_test",
        (),
    ),
    ("bench", "data"): (
        "measure how fast recordings are read, by part, and what holds it up",
        "bczoo.data.bench:data",
        ("root",),
    ),
    ("bench", "latency"): (
        "measure the latency of a policy or size, by stage",
        "bczoo.play.bench:latency",
        ("policy",),
    ),
    ("bench", "memory"): (
        "reckon the memory of a training step, without a GPU",
        "bczoo.train.memory:memory",
        ("architecture",),
    ),
    ("bench", "train"): (
        "measure a training step of a configuration, by stage",
        "bczoo.train.bench:train",
        ("architecture",),
    ),
    ("tokenize",): (
        "write the image tokens of recordings, for token models",
        "bczoo.models.tokenizer.command:tokenize",
        ("tokenizer", "recordings"),
    ),
    ("export",): ("export a trained policy as a folder", "bczoo.hub.commands:export", ("source", "out")),
    ("push",): (
        "upload an exported policy to the Hugging Face Hub",
        "bczoo.hub.commands:push_folder",
        ("folder", "repository"),
    ),
    ("pull",): ("download a policy from the Hugging Face Hub", "bczoo.hub.commands:pull", ("repository",)),
    ("convert", "open-p2p"): (
        "turn a Pixels2Play checkpoint into a bczoo policy",
        "bczoo.hub.open_p2p:from_open_p2p",
        ("source", "out"),
    ),
    ("convert", "to-open-p2p"): (
        "turn a bczoo policy into a Pixels2Play checkpoint",
        "bczoo.hub.open_p2p:to_open_p2p",
        ("source", "out"),
    ),
    ("compare",): (
        "compare runs: options, compute, measures, with intervals",
        "bczoo.compare.command:compare",
        ("runs",),
    ),
    ("plot",): ("plot curves of runs", "bczoo.compare.plot:plot", ("runs",)),
    ("scaling", "run"): (
        "train a grid of sizes for a scaling law",
        "bczoo.scaling.run:run",
        (),
    ),
    ("scaling", "fit"): (
        "fit a scaling law: best size, data and loss over compute",
        "bczoo.scaling.command:fit",
        ("sources",),
    ),
    ("scaling", "plan"): (
        "say what to train with a budget, by a fitted scaling law",
        "bczoo.scaling.planning:plan",
        ("fit",),
    ),
    ("zoo", "list"): ("list the policies there are: weights and architectures", "bczoo.hub.models:zoo_list", ()),
    ("zoo", "info"): ("say what is known of a policy of the zoo", "bczoo.hub.models:zoo_info", ("name",)),
    ("zoo", "replay"): (
        "write a replay video of exported weights into their folder and card",
        "bczoo.hub.replay:replay",
        ("folder",),
    ),
    ("zoo", "table"): ("write the table of checkpoints from its data file", "bczoo.hub.zoo:table", ()),
    ("dream",): ("let a world model dream on from a recording, as a video", "bczoo.worlds.command:dream", ("world",)),
    ("evaluate",): (
        "measure how well a world model goes on with recordings",
        "bczoo.worlds.evaluate:evaluate",
        ("world",),
    ),
    ("causality",): (
        "measure whether a policy acts on what it sees",
        "bczoo.causality.report:causality_report",
        ("policy",),
    ),
    ("attention",): (
        "plot where a policy looks, and its mask",
        "bczoo.causality.attention:attention_report",
        ("policy",),
    ),
    ("gap",): ("measure what video files change in a policy's decisions", "bczoo.studies.gap:gap", ("policy",)),
    ("study", "toy"): ("the toy world of causal confusion, networks of five depths", "bczoo.studies.toy:study_toy", ()),
    ("study", "confusion"): (
        "train many policies on Doom and compare measures of causal confusion",
        "bczoo.studies.confusion:study_confusion",
        (),
    ),
    ("study", "characters"): (
        "train small GPTs on characters: how the targets set the best size",
        "bczoo.studies.characters:study_characters",
        (),
    ),
    ("study", "labels"): (
        "train policies on few labels and actions read off video, beside the truth",
        "bczoo.studies.labels:study_labels",
        (),
    ),
    ("study", "redraw"): (
        "draw the pictures of a study again from its results",
        "bczoo.studies.redraw:redraw",
        ("results",),
    ),
    ("data", "check"): (
        "check recordings: counts, hours, actions, what is broken",
        "bczoo.data.check:check",
        ("root",),
    ),
    ("data", "view"): ("draw the actions of a recording into its video", "bczoo.data.view:view", ("recording",)),
    ("data", "stats"): (
        "count hours, games, keys, motions, and look at frames",
        "bczoo.data.stats:stats",
        ("recordings",),
    ),
    ("data", "import"): (
        "turn recordings of another recorder into recordings to train on",
        "bczoo.imports.command:import_recordings",
        ("format", "source", "out"),
    ),
    ("data", "export"): (
        "turn recordings into a dataset of LeRobot",
        "bczoo.exports.command:export_recordings",
        ("format", "recordings", "out"),
    ),
    ("data", "formats"): ("list the formats that import reads", "bczoo.imports.command:formats", ()),
    ("data", "download"): (
        "download recordings of the public Pixels2Play dataset",
        "bczoo.hub.datasets:download",
        ("name",),
    ),
    ("data", "label"): (
        "read actions off recordings that have none, with an inverse dynamics model",
        "bczoo.models.idm.label:label",
        ("idm", "recordings"),
    ),
    ("data", "idm-check"): (
        "compare actions that were read off video with the true ones",
        "bczoo.models.idm.check:idm_check",
        ("root",),
    ),
    ("doctor",): ("say what of this installation works, and what mends the rest", "bczoo.doctor.command:doctor", ()),
    ("completion",): (
        "print a script that completes commands and options in a shell",
        "bczoo.cli.completion:completion",
        ("shell",),
    ),
}
TRAINER = {
    "fit": "train a policy",
    "validate": "evaluate a policy on the validation recordings",
    "test": "evaluate a policy on the test recordings",
    "predict": "write a policy's predictions on recordings",
}

COMPLETE = "__complete"  # what completion scripts call; see bczoo.cli.completion

SYSTEM_ERRORS = {  # of a path that the user gave, and what to do about them
    errno.ENOSPC: "free space on that disk, or write elsewhere",
    errno.EDQUOT: "your quota on that disk is used up; free space, or write elsewhere",
    errno.EFBIG: "files there may not be that large; write elsewhere",
    errno.EROFS: "that disk can only be read; write elsewhere",
    errno.EACCES: "give yourself the right to it, or take another path",
    errno.EPERM: "give yourself the right to it, or take another path",
    errno.ENOTDIR: "a part of the path is a file; move it away, or take another path",
    errno.EISDIR: "a folder is where a file is to be; move it away, or take another path",
    errno.EEXIST: "move it away, or take another path",
    errno.ENOTEMPTY: "move it away, or take another path",
    errno.ENOENT: "look at the path again",
    errno.ENAMETOOLONG: "take a shorter path",
    errno.ELOOP: "links there lead in a circle; take another path",
    errno.EIO: "the disk fails; save what is on it, and write elsewhere",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``bczoo``; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["-V"], ["--version"]):
        print(f"bczoo {import_module('bczoo').__version__}")
        return 0
    if (asked := _help_for(argv)) is not None:
        return _show_help(asked)
    if argv[0] == COMPLETE:
        from bczoo.cli.completion import complete

        print("\n".join(complete(argv[1:])))
        return 0
    command = next((c for c in FUNCTIONS if tuple(argv[: len(c)]) == c), None)
    if command is None and argv[0] not in TRAINER:
        print(unknown(argv), file=sys.stderr)
        return 2
    if command == ("doctor",) and "--help" not in argv:
        from bczoo.doctor.command import run

        return run(argv[1:])
    argv = ["--help" if word == "-h" else word for word in argv if (word, argv[-2:]) != ("all", ["--help", "all"])]
    if command is None and not _names_configuration(argv[1:]):
        from bczoo.cli.pages import missing_config

        print(missing_config(argv[0]), file=sys.stderr)
        return 2
    from bczoo.core.errors import UserError, behind
    from bczoo.core.threads import tune_for_cpu

    tune_for_cpu()
    imported = os.environ.get(IMPORT)
    try:
        argv = import_modules(argv)
        if command is not None:
            from bczoo.cli.function import run_function

            _, target, positional = FUNCTIONS[command]
            return run_function(command, target, argv[len(command) :], positional)
        if any(word.partition("=")[0] == "--seeds" for word in argv):
            from bczoo.compare.seeds import fit_seeds

            return fit_seeds(argv)
        if argv[0] != "fit" and not argv[1].startswith("-"):
            from bczoo.cli.evaluate import run_evaluation

            return run_evaluation(argv)
        from bczoo.cli.trainer import run_trainer

        return run_trainer(argv)
    except KeyboardInterrupt:
        _say("bczoo: interrupted")
        return 130
    except Exception as error:
        report = behind(error, UserError) or _system_error(error)
        if report is None or os.environ.get("BCZOO_TRACEBACK"):
            raise
        _say(f"bczoo: {report}")
        return 1
    finally:  # whoever calls this from Python goes on with the environment that there was
        os.environ.pop(IMPORT, None)
        if imported is not None:
            os.environ[IMPORT] = imported


def _say(error: str) -> None:
    """Print an error behind what was printed before it, also where both go into one file."""
    sys.stdout.flush()
    print(error, file=sys.stderr)


def import_modules(argv: list[str]) -> list[str]:
    """Import what ``--import`` names, with the current folder on the path; returns the other arguments.

    The names stay in the environment, because a training on several devices starts this command anew in each process.
    """
    from bczoo.core.errors import UserError

    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing that is installed
    rest, named = [], [name for name in os.environ.get(IMPORT, "").split(",") if name]
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--import":
            rest.append(word)
        elif name := value if equals else next(words, ""):
            named.append(name)
        else:
            raise UserError("--import needs the name of a module, such as --import my_parts")
    for name in dict.fromkeys(named):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"--import {name}: {error}; a module is found in the current folder, on PYTHONPATH or installed, and "
                "named without .py"
            ) from error
    if named:
        os.environ[IMPORT] = ",".join(dict.fromkeys(named))
    return rest


def _system_error(error: BaseException | None) -> str | None:
    """What to say to an error of the system that the user can put right: which path, and what to do."""
    from bczoo.core.errors import behind

    cause = behind(error, OSError)
    if not isinstance(cause, OSError) or cause.errno not in SYSTEM_ERRORS:
        return None
    where = f"{cause.filename}: " if cause.filename else ""
    return f"{where}{cause.strerror}; {SYSTEM_ERRORS[cause.errno]} (BCZOO_TRACEBACK=1 shows where it happened)"


def _help_for(argv: list[str]) -> list[str] | None:
    """The command whose first page is asked for, by ``help`` or ``--help``; None if none is, or the whole is."""
    if not argv:
        return []
    if argv[0] == "help":
        return argv[1:]
    at = next((i for i, word in enumerate(argv) if word in ("-h", "--help")), None)
    if at is None or argv[at + 1 : at + 2] == ["all"]:
        return None
    return [word for word in argv[:at][:2] if not word.startswith("-")]


def _show_help(words: list[str]) -> int:
    from bczoo.cli.pages import page

    if words[1:] and page(words) is None and page(words[:1]) is not None and not _is_group(words[0]):
        words = words[:1]  # what else was typed before --help
    if (text := page(words)) is None:
        print(unknown(words), file=sys.stderr)
        return 2
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has read enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _is_group(word: str) -> bool:
    return any(len(c) > 1 and c[0] == word for c in FUNCTIONS)


def _names_configuration(argv: list[str]) -> bool:
    """Whether a trainer command says what to build: a configuration, a model, or a policy."""
    while argv[:1] == ["--import"]:
        argv = argv[2:]
    options = {word.partition("=")[0].split(".")[0] for word in argv}
    named = not options.isdisjoint({"--config", "-c", "--model", "--help", "--print_config"})
    return named or any(not word.startswith("-") for word in argv[:1])


def unknown(argv: list[str]) -> str:
    """What to say to a command that does not exist."""
    import difflib

    known = [*TRAINER, *(" ".join(c) for c in FUNCTIONS)]
    close = difflib.get_close_matches(" ".join(argv[:2]), known, n=1) or difflib.get_close_matches(argv[0], known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    within = [k for k in known if k.startswith(f"{argv[0]} ")]
    if within:
        return f"bczoo: {argv[0]} needs one of its commands: {', '.join(within)}"
    return f"bczoo: unknown command {argv[0]!r}{hint} Commands: {', '.join(known)}"
