"""How long a training takes to start on many recordings, and how much memory the index takes.

    python benchmarks/index.py [--recordings 100000] [--steps 20] [--processes 1 2] [--root DIR]

The recordings are folders of hard links to the files of a few, so that they take little space; the index cannot know
that. Each phase runs in a process of its own, whose peak memory is printed; files lie in the memory of the system
when they are read. The phases:

    index, N processes   every annotation is parsed, and the header of every video is read
    start                what a training does: look for new recordings, open the index, cut it into windows
    start, no look       the same of a process that does not look for new ones, as every but the first of a node
    first batches        read ten batches of eight windows
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bczoo.core.actions import ActionSpace
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.recording import RecordingWriter
from bczoo.data.windows import Plan, split

PER_FOLDER = 1000  # recordings of a batch folder, as downloads come in
SIZE = 32


def make(root: Path, count: int, steps: int) -> None:
    """Write ``count`` recordings of so many steps."""
    with RecordingWriter(root / "0" / "0", size=SIZE) as writer:
        for i in range(steps):
            writer.add(np.full((SIZE, SIZE, 3), i % 256, np.uint8), user={"keys": ["w"] * (i % 2), "mouse_dx": i % 5})
        writer.add(np.zeros((SIZE, SIZE, 3), np.uint8))
    files = list((root / "0" / "0").iterdir())
    for i in range(1, count):
        folder = root / str(i // PER_FOLDER) / str(i)
        folder.mkdir(parents=True)
        for n, file in enumerate(files):
            if i % PER_FOLDER == 0:  # a file can have some ten thousand links
                files[n] = Path(shutil.copy2(file, folder))
            else:
                os.link(file, folder / file.name)


def index(root: Path, scan: bool, processes: int = 0) -> Index:
    """The index of the recordings, as a policy that takes no text asks for it."""
    return open_index(root, ActionSpace.keyboard_mouse(), text_dim=None, scan=scan, processes=processes)


def start(root: Path, scan: bool) -> tuple[Index, Plan]:
    """What a training does before its first batch."""
    opened = index(root, scan)
    training, _ = split(opened, 0.1)
    plan = Plan(opened, training, 16, 8, shuffle=True)
    plan.epoch(0)
    return opened, plan


def first_batches(root: Path) -> None:
    """Read ten batches."""
    opened, plan = start(root, scan=False)
    dataset = WindowDataset(opened, plan.window, SIZE)
    for _, keys in zip(range(10), plan.batches(0), strict=False):
        dataset.__getitems__(keys)


def measured(name: str, work: Callable[[], object], count: int) -> None:
    """Run a phase in a process of its own, and print what it took."""

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        work()
        took = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{name:22}{took:10.2f} s{count / took:12.0f} /s{(peak - before) / 1024:14.0f} MB")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{name} ended with status {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=20, help="of a recording")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="that index, one number after another")
    parser.add_argument("--root", type=Path, help="folder for the recordings, which stay; else they are removed")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (root / "0").is_dir():
            make(root, options.recordings, options.steps)
        print(f"{'':22}{'time':>12}{'recordings':>15}{'memory':>17}")
        for processes in options.processes:
            shutil.rmtree(root / ".bczoo", ignore_errors=True)
            name = f"index, {processes} process{'es' * (processes > 1)}"
            measured(name, lambda n=processes: index(root, True, n), options.recordings)
        measured("start", lambda: start(root, True), options.recordings)
        measured("start, no look", lambda: start(root, False), options.recordings)
        measured("first batches", lambda: first_batches(root), options.recordings)


if __name__ == "__main__":
    main()
