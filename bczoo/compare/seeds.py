"""``bczoo fit --seeds 3``: the same training with several seeds, one after the other, and what came of them.

Place in the pipeline: each seed is a ``bczoo fit`` in a process and a folder of its own (``<run>-seed0`` and so on), so
that it can be resumed, played and exported like any run. The same command again goes on where it was stopped; the
finished ones are kept. A loop in a shell does the same (docs/compare.md).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bczoo.compare.command import compare
from bczoo.core.configs import find, with_config_paths
from bczoo.core.errors import UserError
from bczoo.train.run_record import RUN_RECORD, read_record

SEEDS, SEED, ROOT = "--seeds", "--seed_everything", "--trainer.default_root_dir"
BCZOO = (sys.executable, "-m", "bczoo")
FORWARDED = tuple(s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None)


def fit_seeds(argv: Sequence[str]) -> int:
    """Train with several seeds and compare them; returns the exit status.

    Args:
        argv: a whole ``fit`` command with ``--seeds N``. Seeds count up from its seed, which is 0 in shipped
            configurations; folders are named after its run folder.

    Raises:
        UserError: the number, the seed or the run folder is not known, or a folder holds a run of another command.
    """
    if argv[0] != "fit":
        raise UserError(f"{SEEDS} trains several runs, so it is an option of bczoo fit and not of bczoo {argv[0]}")
    count, rest = _without(argv[1:], SEEDS)
    if count is None or not count.isdecimal() or int(count) < 1:
        raise UserError(f"{SEEDS} is how many trainings there are to be, a number from 1 on, got {count!r}")
    first, root = _setting(rest, SEED, 0), _setting(rest, ROOT, None)
    if not str(first).isdecimal():
        raise UserError(f"{SEEDS} counts up from {SEED}, which has to be a number from 0 on, got {first!r}")
    if not root:
        raise UserError(f"{SEEDS} names a folder after every seed; say after which run with {ROOT} runs/my_run")
    for option in (SEED, ROOT):
        _, rest = _without(rest, option)
    folders = {seed: f"{str(root).rstrip('/')}-seed{seed}" for seed in range(int(first), int(first) + int(count))}
    commands = {seed: ["fit", *rest, SEED, str(seed), ROOT, folder] for seed, folder in folders.items()}
    over = {seed for seed, folder in folders.items() if finished(Path(folder), commands[seed])}
    for seed, command in commands.items():
        if seed in over:
            print(f"seed {seed}: {folders[seed]} has finished", flush=True)
            continue
        print(f"seed {seed}: {folders[seed]}", flush=True)
        if status := _run(command):
            print(f"bczoo: seed {seed} ended with status {status}; the same command goes on with it", file=sys.stderr)
            return status
    print()
    compare(list(folders.values()))
    return 0


def finished(folder: Path, command: Sequence[str]) -> bool:
    """Whether a folder holds a finished run of a command.

    Raises:
        UserError: it holds a run of another one.
    """
    from bczoo.train.callbacks.checkpoint import ResumableCheckpoint  # brings in torch

    recorded = read_record(folder / RUN_RECORD).get("command")
    if recorded is not None and _resolved(shlex.split(recorded)[1:]) != _resolved(command):
        raise UserError(
            f"{folder} holds a run of another command ({recorded}); remove that folder, or give another {ROOT}"
        )
    keeper = ResumableCheckpoint(None)
    keeper.locate(str(folder))
    return recorded is not None and keeper.finished


def _resolved(command: Sequence[str]) -> list[str]:
    """A command with configurations by their paths, and without the modules that are in the environment already."""
    words = list(command)
    while "--import" in words:
        at = words.index("--import")
        del words[at : at + 2]
    return [str(word) for word in with_config_paths(words)]


def _without(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The last value of an option, None if it is not there, and the other words."""
    value, rest, following = None, [], iter(words)
    for word in following:
        name, equals, given = word.partition("=")
        if name == option:
            value = given if equals else next(following, "")
        else:
            rest.append(word)
    return value, rest


def _setting(words: Sequence[str], option: str, default: Any) -> Any:
    """What an option will be: given, or of a configuration; the last word counts, as for the trainer."""
    value, following = default, iter(words)
    for word in following:
        name, equals, given = word.partition("=")
        if name not in (option, "--config", "-c"):
            continue
        given = given if equals else next(following, "")
        if name == option:
            value = given
        else:
            inner: Any = yaml.safe_load(find(given).read_text(encoding="utf-8"))
            for key in option.removeprefix("--").split("."):
                inner = inner.get(key) if isinstance(inner, dict) else None
            value = value if inner is None else inner
    return value


def _run(command: Sequence[str]) -> int:
    """Run one training to its end; returns its exit status, which is a signal's if one was sent to this process.

    It has a process group of its own, so that a Ctrl-C reaches it once, through this process, and it can save its step.
    """
    group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    children: list[subprocess.Popen] = []
    with forwarding(children) as received:
        children.append(subprocess.Popen([*BCZOO, *command], **group))
        for number in received:  # came while it was started
            children[0].send_signal(number)
        status = children[0].wait()
    if received:
        return 128 + received[0]
    return 128 - status if status < 0 else status


@contextmanager
def forwarding(children: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Send children the signals that ask this process to end; yields those that came."""
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
