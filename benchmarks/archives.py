"""What it costs to read recordings from archives and not from their folders: windows per second over an epoch.

    python benchmarks/archives.py [--recordings 24] [--minutes 1] [--per_batch 4] [--workers 2] [--turns 3]

Makes recordings of moving pictures, once as folders and once in ``*.tar.gz`` batches, and reads whole shuffled epochs
of both in turns, so that a machine whose speed drifts slows both. The variants:

    folders              as they lie
    archives, fresh      with an empty cache, so that every batch is unpacked once in the epoch
    archives, small      the same with a cache that holds two groups of batches only, so that batches go again meanwhile
    archives, unpacked   with what the first one left in the cache

Indexes are built before; the time of that is printed for both. Medians and ratios to folders are printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from bczoo.core.actions import ActionSpace
from bczoo.core.threads import tune_for_cpu
from bczoo.data.cache import Cache
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.recording import RecordingWriter
from bczoo.data.windows import Plan

SIZE, WINDOW, BATCH = 192, 200, 4  # pixels; steps and windows of a batch as in training


def write(root: Path, recordings: int, minutes: float) -> None:
    """Recordings in which blocks move over a textured ground."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(0, 200, (24, 24, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    for number in range(recordings):
        with RecordingWriter(root / f"rec-{number:04}", size=SIZE) as writer:
            for step in range(int(minutes * 1200)):
                frame = np.roll(ground, (number * 3 + step * 2, step), (0, 1))
                writer.add(frame, user={"keys": ["w"] if step % 3 else [], "mouse_dx": step % 7 - 3})


def pack(root: Path, target: Path, per_batch: int) -> None:
    """The same recordings in batches, as the public dataset ships."""
    target.mkdir()
    folders = sorted(root.iterdir())
    for first in range(0, len(folders), per_batch):
        with tarfile.open(target / f"batch_{first:05}.tar.gz", "w:gz", compresslevel=6) as tar:
            for folder in folders[first : first + per_batch]:
                tar.add(folder, f"dataset/{folder.name}")


def epoch(index: Index, workers: int, open_recordings: int, number: int) -> float:
    """Windows per second of one shuffled epoch, the start of the workers included."""
    plan = Plan(index, index.usable, WINDOW, BATCH, shuffle=True, seed=number, open_recordings=open_recordings)
    loader = WindowLoader(WindowDataset(index, WINDOW, SIZE, strict=True), plan, workers)
    start = time.perf_counter()
    windows = sum(len(batch["recording"]) for batch in loader)
    seconds = time.perf_counter() - start
    loader.close()
    return windows / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--per_batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    tune_for_cpu()
    space, group = ActionSpace.keyboard_mouse(), 2 * arguments.per_batch
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        write(here / "folders", arguments.recordings, arguments.minutes)
        pack(here / "folders", here / "batches", arguments.per_batch)
        kept, indexes = Cache(here / "kept"), {}
        for name in ("folders", "batches"):
            start = time.perf_counter()
            indexes[name] = open_index(here / name, space, text_dim=None, cache=kept)
            print(f"index of {name}: {time.perf_counter() - start:.2f} s")
        folders, batches = indexes["folders"], indexes["batches"]
        sizes = batches.pack_sizes()[1]
        print(f"{len(batches)} recordings in {len(sizes)} batches, {sizes.sum() / 1e6:.0f} MB unpacked")
        speeds: dict[str, list[float]] = {}
        for turn in range(arguments.turns):
            fresh, small = Cache(here / f"fresh-{turn}"), Cache(here / f"small-{turn}", float(sizes.max()) * 4.1 / 1e9)
            for name, index, cache in (
                ("folders", folders, kept),
                ("archives, fresh", batches, fresh),
                ("archives, small", batches, small),
                ("archives, unpacked", batches, fresh),
            ):
                index.cache = cache
                speeds.setdefault(name, []).append(epoch(index, arguments.workers, group, turn))
            shutil.rmtree(fresh.folder)
            shutil.rmtree(small.folder)
        base = statistics.median(speeds["folders"])
        for name, values in speeds.items():
            ratios = statistics.median(a / b for a, b in zip(values, speeds["folders"], strict=True))
            print(f"{name:<20} {statistics.median(values):7.2f} windows/s   {ratios:.2f} of folders")
        print(f"windows of {WINDOW} steps of {SIZE} pixels, {arguments.workers} workers; folders {base:.2f}")


if __name__ == "__main__":
    main()
