"""One trial of every kind of fault, drawn from a seed; it raises if a promise of docs/reliability.md is broken.

``KINDS`` maps the name of a kind to a function of a random generator, an empty folder and the :class:`Bench`, which
holds what trials share. The same seed gives the same trial.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import mutate
import numpy as np
import torch
from disk import PAGE, SmallDisk
from process import Run, bczoo, isolated, new_folder
from works import BEST, CHECKPOINT, KEYBOARD, Export, Fit, FitAgain, Index, Record, Work, contents

from bczoo import Policy
from bczoo.core.errors import UserError
from bczoo.data.check import check
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.recording import RecordingWriter
from bczoo.data.windows import list_windows
from bczoo.hub.folder import WEIGHTS
from bczoo.hub.source import locate

TEXT_DIM, WINDOW, SIZE = 4, 5, 48
Trial = Callable[[Random, Path, "Bench"], None]


class Bench:
    """What trials share; everything is made when it is first needed."""

    @cached_property
    def recording(self) -> Path:
        """A healthy recording with keys, mouse motion, instructions and steps of either player."""
        folder = new_folder("healthy") / "healthy"
        with RecordingWriter(folder, size=SIZE) as writer:
            for i in range(14):
                action = {"keys": [str(i % 4 + 1)], "mouse_dx": i % 7 - 3, "left_stick_x": 0.5}
                who = "system" if i % 5 > 2 else "user"
                said = {"text": f"go {i // 4}", "text_embedding": np.full(TEXT_DIM, i // 4, np.float32)}
                writer.add(np.full((SIZE, SIZE, 3), i * 16, np.uint8), **{who: action}, **said)
        return folder

    @cached_property
    def windows(self) -> dict[str, dict[str, np.ndarray]]:
        """What is read of the healthy recording."""
        return read_all(self.recording)

    @cached_property
    def indexed(self) -> Path:
        """Three recordings with an index."""
        root = new_folder("indexed")
        for i in range(3):
            shutil.copytree(self.recording, root / f"rec_{i}")
        open_index(root, KEYBOARD, text_dim=TEXT_DIM)
        return root

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """What the index of these recordings holds."""
        return contents(open_index(self.indexed, KEYBOARD, text_dim=TEXT_DIM))

    fit = cached_property(lambda self: Fit(workers=0))
    export = cached_property(lambda self: Export(self.fit))

    @cached_property
    def works(self) -> list[Work]:
        return [self.fit, Fit(workers=2), Record(), self.export, Index(), FitAgain(self.fit)]

    def make(self) -> None:
        """Make everything now."""
        for work in self.works:
            _ = work.undisturbed
        _ = self.windows, self.index


# ------------------------------------------------------------------------------------------------ what is read


def recordings(rng: Random, folder: Path, bench: Bench) -> None:
    """Broken recordings beside a healthy one."""
    names = rng.sample(list(mutate.RECORDINGS), rng.choice((1, 2, 6)))
    break_recordings(names, rng, folder, bench)


def break_recordings(names: list[str], rng: Random, folder: Path, bench: Bench) -> None:
    """Break one recording in every way named; all that can be read is, and the rest has a reason."""
    healthy = bench.windows["healthy"]

    def trial() -> None:
        shutil.copytree(bench.recording, folder / "healthy")
        for i, name in enumerate(names):
            broken = shutil.copytree(bench.recording, folder / f"broken_{i}")
            mutate.RECORDINGS[name](rng, broken)
        expected = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
        found = read_all(folder)
        lost = expected - found.keys()
        assert not lost, f"neither served nor called broken: {lost}"
        assert mutate.arrays_equal(found["healthy"], healthy), "the healthy recording is not what it was"

    told = isolated(trial)
    assert not told, f"{names}\n{told}"


def read_all(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """All windows of all recordings by folder, nothing where a recording is called broken."""
    torch.set_num_threads(1)
    single = (root / "annotation.proto").exists()
    root = root.parent if single else root
    out: dict[str, dict[str, np.ndarray]] = {}
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        index = open_index(root, KEYBOARD, text_dim=TEXT_DIM)
        index.report()
        dataset = WindowDataset(index, WINDOW, SIZE)
        for i in range(len(index)):
            with index.reading(i) as folder:
                name = folder.name  # index.names may be written in another way
            out[name] = {}
            if index.n_frames[i] == 0:
                assert index.problems[i], f"{name!r} is broken without a reason"
                continue
            which, start = list_windows(index, np.array([i]), WINDOW, drop_system=False)
            batches = [dataset[(int(r), int(s))] for r, s in zip(which, start, strict=True)]
            for batch in batches:
                assert torch.isfinite(batch["text"]).all(), f"{name!r}: text is not finite"
                for group in KEYBOARD.groups:
                    ids = batch["actions"][group.name]
                    assert ((ids >= 0) & (ids < group.choices)).all(), f"{name!r}: {group.name}"
            out[name] = {
                key: torch.cat([b[key] for b in batches]).numpy() for key in ("frames", "text", "user", "valid")
            }
        check(str(root), text_dim=TEXT_DIM, processes=1)
    return out


def cache(rng: Random, folder: Path, bench: Bench) -> None:
    """A damaged file of an index: it is built anew, and holds what it held."""
    expected = bench.index
    root = shutil.copytree(bench.indexed, folder / "root")
    path = rng.choice(sorted(p for p in (root / ".bczoo").rglob("*") if p.is_file()))
    done = damage_or_replace(rng, path)
    scan = rng.random() < 0.7

    def trial() -> None:
        found = contents(open_index(root, KEYBOARD, text_dim=TEXT_DIM, scan=scan))
        assert mutate.arrays_equal(found, expected), "the index holds something else"

    told = isolated(trial)
    assert not told, f"{done}\n{told}"


def checkpoint(rng: Random, folder: Path, bench: Bench) -> None:
    """A damaged checkpoint: refused with a reason, or not damaged where it matters."""
    expected = bench.fit.undisturbed.result
    run = shutil.copytree(bench.fit.undisturbed.folder / "runs", folder / "runs") / "tiny"
    if rng.random() < 0.5:
        expected = {k.removeprefix("best/"): v for k, v in expected.items() if k.startswith("best/")}
        done = damage_or_replace(rng, folder / BEST)
        _loads_or_refuses(run if (folder / BEST).is_file() else folder / BEST, expected, done)
        return
    expected = {k: v for k, v in expected.items() if not k.startswith("best/")}
    done = damage_or_replace(rng, folder / CHECKPOINT)
    _loads_or_refuses(folder / CHECKPOINT, expected, done)


def exported(rng: Random, folder: Path, bench: Bench) -> None:
    """Damaged weights of an exported folder: refused with a reason, or not damaged where it matters.

    The format has no checksum, so numbers that are others in a file that is otherwise whole cannot be told.
    """
    expected = bench.export.undisturbed.result
    out = shutil.copytree(bench.export.undisturbed.folder / "out", folder / "out")
    whole = (out / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    done = damage_or_replace(rng, out / WEIGHTS)
    if (out / WEIGHTS).is_file():
        now = (out / WEIGHTS).read_bytes()
        if len(now) == len(whole) and now[:header] == whole[:header]:
            return
    _loads_or_refuses(out, expected, done)


def _loads_or_refuses(source: Path, expected: dict[str, np.ndarray], done: str) -> None:
    """Raise unless a policy is refused in one line, or has the weights that it should have."""

    def trial() -> None:
        torch.set_num_threads(1)
        try:
            policy = locate(source).load(Policy)
        except UserError as error:
            assert "\n" not in str(error), f"more than one line: {error}"
            return
        found = {k: v.numpy() for k, v in policy.state_dict().items()}
        assert mutate.arrays_equal(found, expected), "other weights were loaded"

    told = isolated(trial)
    assert not told, f"{done}\n{told}"


def damage_or_replace(rng: Random, path: Path) -> str:
    """Damage a file's bytes, or put another kind of file there; returns what was done."""
    if rng.random() < 0.8:
        return mutate.damage(rng, path)
    kind = rng.choice([k for k in mutate.KINDS if k != "link to a directory"])
    mutate.become(path, kind)
    return f"{path.name} is {kind}"


def resumed(rng: Random, folder: Path, bench: Bench) -> None:
    """A damaged checkpoint under a command: one line, or the same end."""
    shutil.copytree(bench.fit.undisturbed.folder, folder, dirs_exist_ok=True)
    (folder / "runs/tiny/checkpoints/finished").unlink(missing_ok=True)
    command = rng.choice((bench.fit.argv, bench.export.argv, ["validate", *bench.fit.argv[1:11]]))
    done = damage_or_replace(rng, folder / CHECKPOINT)
    status, output = bczoo(*command, folder=folder)
    if status:
        check_one_line(status, output, done)
    elif command[0] == "fit":
        bench.fit.check_done(folder)


# ------------------------------------------------------------------------------------------- what is disturbed


def killed(rng: Random, folder: Path, bench: Bench) -> None:
    """Killed again and again, at any moment; the same command then ends as if it had not been."""
    work = rng.choice(bench.works)
    kill(work, rng, folder, rng.choice((1, 2, 4)))


def kill(work: Work, rng: Random, folder: Path, times: int) -> None:
    """Kill a work so many times, then let it end."""
    usual = work.undisturbed
    work.prepare(folder)
    runs, moments = [], []
    try:
        for _ in range(times):
            before, seconds = rng.randrange(1, usual.changes + 1), rng.uniform(0, usual.seconds)
            if by_change := rng.random() < 0.6:
                runs.append(Run(work.argv, folder, kill_before=before))
                moments.append(f"before change {before}")
            else:
                runs.append(Run(work.argv, folder))
                time.sleep(seconds)
                runs[-1].signal(signal.SIGKILL)
                moments.append(f"after {seconds:.2f} s")
            status = runs[-1].wait()
            assert status in (0, -signal.SIGKILL), f"{moments}: exit status {status} {runs[-1]}"
            if not by_change and rng.random() < 0.5:
                runs[-1].end()  # its workers too; otherwise these end by themselves while the next run begins
            with told(f"{work.name} killed {moments}"):
                work.check_whole(folder)
            if status == 0:
                return
        _finish(work, folder, f"{work.name} killed {moments}")
    finally:
        for run in runs:
            run.end()


def stopped(rng: Random, folder: Path, bench: Bench) -> None:
    """Stopped by SIGTERM or Ctrl-C at any moment: 143 or 130, and no traceback; then as if it had not been."""
    work = rng.choice(bench.works)
    usual, number = work.undisturbed, rng.choice((signal.SIGTERM, signal.SIGINT))
    work.prepare(folder)
    run, seconds = Run(work.argv, folder), rng.uniform(0, usual.seconds)
    time.sleep(seconds)
    run.signal(number)
    what = f"{work.name}, {number.name} after {seconds:.2f} s"
    try:
        status = run.wait()
        wanted = 143 if number == signal.SIGTERM else 130
        assert status in (0, wanted, -number), f"{what}: exit status {status} {run}"
        assert "Traceback" not in run.output, f"{what}: {run}"
        with told(what):
            work.check_whole(folder)
        if status:
            _finish(work, folder, what)
    finally:
        run.end()


def full_disk(rng: Random, folder: Path, bench: Bench) -> None:
    """A disk that becomes full: one line; what was there is whole; after making room the command ends."""
    fill(rng.choice(bench.works), rng, folder)


def fill(work: Work, rng: Random, folder: Path) -> None:
    """Run a work where there is not room enough, make room, and run it again."""
    usual = work.undisturbed
    room = rng.randrange(PAGE, 2 * (usual.bytes_after - usual.bytes_before) + 2 * PAGE)
    with SmallDisk(folder / "disk", usual.bytes_before + 16 * PAGE, room) as disk:
        work.prepare(disk.folder)
        cache_home = {"XDG_CACHE_HOME": str(disk.folder / "cache")}
        status, output = bczoo(*work.argv, folder=disk.folder, environment=cache_home, **disk.options)
        what = f"{work.name} with {room} bytes of room"
        if status:
            check_one_line(status, output, what)
        with told(what):
            work.check_whole(disk.folder)
        disk.grow()
        if status:
            _finish(work, disk.folder, what)


def _finish(work: Work, folder: Path, what: str) -> None:
    status, output = bczoo(*work.argv, folder=folder)
    assert status == 0, f"{what}: then exit status {status}\n{output[-3000:]}"
    with told(what):
        work.check_done(folder)


def check_one_line(status: int, output: str, what: str) -> None:
    """Raise unless a command failed as commands should."""
    assert status == 1, f"{what}: exit status {status}\n{output[-3000:]}"
    assert "Traceback" not in output, f"{what}\n{output[-3000:]}"
    last = output.strip().splitlines()[-1]
    assert last.startswith("bczoo: "), f"{what}: the last line is {last!r}"


class told:
    """Says in an error what had been done before."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            raise AssertionError(f"{self.what}: {type(error).__name__}: {error}") from error


KINDS: dict[str, Trial] = {
    "recordings": recordings,
    "cache": cache,
    "checkpoint": checkpoint,
    "exported": exported,
    "resumed": resumed,
    "killed": killed,
    "stopped": stopped,
    "full disk": full_disk,
}


def run_trial(kind: str, seed: int, number: int, bench: Bench) -> str:
    """Run one trial in a folder of its own; returns what went wrong, or ""."""
    folder = new_folder(kind)
    sys.stdout.flush()
    try:
        KINDS[kind](Random(f"{seed}/{kind}/{number}"), folder, bench)
    except AssertionError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
