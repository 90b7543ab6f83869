"""``bczoo bench data``: how fast windows are read, part by part, and how far that is from bare decoding.

Place in the pipeline: runs `dataset.py` and `loader.py` on the windows that a training would read, without a model. The
parts of reading are told by leaving out the last of them, one after the other, in turns. Their seconds are processor
time of one core, which other processes on the machine change little; those of the workers are time on the clock.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.devices import device_name
from bczoo.core.errors import UserError
from bczoo.core.frames import height_width
from bczoo.core.spec import Batch
from bczoo.core.tables import markdown_table
from bczoo.data.augment import ClipAugment, ReferenceAugmentations
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.video import decoded, opened, read_into
from bczoo.data.windows import Key, Plan

OPEN, DECODE, PIXELS, REST = "open the file", "seek and decode", "colour and resize", "index and batch"
ADVICE = {
    OPEN: "files are opened once a window: take longer windows",
    DECODE: "decoding: add workers (data.num_workers), and record keyframes close to each other, as bczoo record does",
    PIXELS: "colour and resize: store videos in the policy's size (bczoo record --size), which are not resized",
    REST: "index and batch: add workers (data.num_workers)",
}
BUSY = 0.6  # of what one core could read, below which others have the rest
BUSY_MACHINE = "other programs take part of the processor, so these rates are too low: measure again on an idle machine"


@dataclass
class DataReport:
    """How fast windows are read.

    Args:
        steps: of a window.
        parts: processor seconds a window, by part.
        bare: processor seconds a window of bare decoding.
        augment: processor seconds a window of the augmentations on a CPU, which run in the trainer.
        workers: windows a second by number of worker processes; with 0 the trainer reads them.
    """

    steps: int
    parts: dict[str, float]
    bare: float
    augment: float
    workers: dict[int, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a window, on one core."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """What the command prints."""
        rows = [["part", "ms a window", "share"]]
        rows += [[name, f"{1e3 * s:.2f}", f"{100 * s / self.seconds:.0f} %"] for name, s in self.parts.items()]
        alone = self.workers[0]
        table = [["workers", "windows/s", "frames/s", "times"]]
        table += [[str(n), f"{w:.1f}", f"{w * self.steps:.0f}", f"{w / alone:.2f}"] for n, w in self.workers.items()]
        longest = max(self.parts, key=self.parts.__getitem__)
        busy = alone * self.seconds < BUSY
        most = max(self.workers, key=self.workers.__getitem__)
        useless = most == 0 and len(self.workers) > 1
        return [
            markdown_table(rows),
            "",
            f"one core reads {1 / self.seconds:.1f} windows or {self.steps / self.seconds:.0f} frames a second: "
            f"{100 * self.bare / self.seconds:.0f} % of bare decoding ({1e3 * self.bare:.2f} ms a window)",
            f"augmentations, if the trainer runs on this CPU: {1e3 * self.augment:.0f} ms a window",
            "",
            markdown_table(table),
            *([BUSY_MACHINE] if busy else []),
            "",
            f"most time goes into {ADVICE[longest]}",
            *(["here workers did not help: none of them was faster than the trainer alone"] if useless else []),
        ]


def data(
    root: str, size: int = 192, window: int = 200, batch: int = 4, workers: int = 2, windows: int = 24, seed: int = 0
) -> DataReport:
    """Measure how fast windows of recordings are read: parts, distance to bare decoding, workers.

    Args:
        root: folder of recordings.
        size: height and width of the frames in pixels.
        window: steps of a window.
        batch: windows of a batch.
        workers: most processes that read; all numbers from 0 on are measured, up to four one by one, then doubling.
        windows: how many windows are measured each time.
        seed: of the choice of windows.
    """
    for name, number, least in (("size", size, 1), ("window", window, 1), ("batch", batch, 1), ("workers", workers, 0)):
        arguments.whole(name, number, least)
    arguments.whole("windows", windows, 2 * batch)
    index = open_index(root, ActionSpace.keyboard_mouse(), processes=workers)
    index.report()
    plan = Plan(index, index.usable, window, batch, shuffle=True, seed=seed, drop_system=False)
    if len(plan) < 2:
        raise UserError(
            f"{root} gives {plan.n_windows()} windows of {window} steps, too few for two batches of {batch}"
        )
    dataset = WindowDataset(index, window, size, strict=True)
    report = _one_core(dataset, list(islice(plan.batches(0), windows // batch)))
    numbers = sorted({*range(min(workers, 4) + 1), *(2**i for i in range(2, workers.bit_length())), workers})
    report.workers = {n: _with_workers(dataset, plan, windows // batch, n) for n in numbers}
    sizes = Counter(index.video_name(r, size) for r in index.usable.tolist())
    print(f"{root}, {device_name(torch.device('cpu'))}, {os.cpu_count()} cores")
    print(f"{windows // batch * batch} windows of {window} steps, batches of {batch}, frames of {size} from ", end="")
    print(", ".join(f"{name} ({n})" for name, n in sizes.most_common(3)))
    print("\n".join(["", *report.lines()]))
    return report


class _Windows:
    """The stages of reading a batch, each with all that come before it."""

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def frames_of(self, keys: Sequence[Key]) -> list[tuple[Path, Sequence[int]]]:
        """The video of every window, and the numbers of the frames that it shows."""
        index, found = self.dataset.index, []
        for recording, start in keys:
            count = min(self.dataset.window, int(index.n_frames[recording]) - start)
            numbers = index.video_frames(recording, start, count)
            with index.reading(recording) as folder:
                found.append((folder / index.video_name(recording, self.dataset.frame_size), numbers))
        return found

    def open(self, keys: Sequence[Key]) -> None:
        for path, _ in self.frames_of(keys):
            with opened(path):
                pass

    def decode(self, keys: Sequence[Key]) -> None:
        for path, numbers in self.frames_of(keys):
            for _ in islice(decoded(path, numbers[0]), numbers[-1] - numbers[0] + 1):
                pass

    def pixels(self, keys: Sequence[Key]) -> None:
        out = np.empty((self.dataset.window, 3, *height_width(self.dataset.frame_size)), np.uint8)
        for path, numbers in self.frames_of(keys):
            read_into(out[: len(numbers)], path, numbers, filter=self.dataset.resize)

    def whole(self, keys: Sequence[Key]) -> Batch:
        return self.dataset.__getitems__(keys)

    def bare(self, keys: Sequence[Key]) -> None:
        """What no reader can leave out: open, seek, decode to the end of the window, RGB in the video's own size."""
        for path, numbers in self.frames_of(keys):
            with av.open(str(path)) as container:
                stream, to_rgb = container.streams.video[0], VideoReformatter()
                stream.codec_context.thread_count = 1
                assert stream.average_rate is not None and stream.time_base is not None
                step = 1 / (stream.average_rate * stream.time_base)
                first, last = ((stream.start_time or 0) + int(n * step) for n in (numbers[0], numbers[-1]))
                container.seek(first, stream=stream)
                for frame in container.decode(stream):
                    assert frame.pts is not None
                    if frame.pts >= first:
                        to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    if frame.pts >= last:
                        break


def _one_core(dataset: WindowDataset, batches: list[list[Key]]) -> DataReport:
    """Processor seconds of the parts of reading a window, from stages that take turns."""
    read = _Windows(dataset)
    stages: list[Callable[[Sequence[Key]], object]] = [read.open, read.decode, read.pixels, read.whole, read.bare]
    taken = np.zeros((len(batches), len(stages)))
    for stage in stages:  # warms up, and brings the files into memory for all
        stage(batches[0])
    for row, keys in zip(taken, batches, strict=True):
        for i, stage in enumerate(stages):
            row[i] = _processor_seconds(stage, keys)
    *so_far, bare = taken.sum(axis=0) / sum(map(len, batches))
    parts = np.maximum(np.diff(so_far, prepend=0.0), 0.0)
    first = read.whole(batches[0])
    augment = ClipAugment([ReferenceAugmentations()])
    augmenting = _processor_seconds(lambda keys: augment(first["frames"], keys), batches[0]) / len(batches[0])
    return DataReport(
        dataset.window, dict(zip((OPEN, DECODE, PIXELS, REST), parts.tolist(), strict=True)), float(bare), augmenting
    )


def _processor_seconds(work: Callable[[Sequence[Key]], object], keys: Sequence[Key]) -> float:
    started = time.process_time()
    work(keys)
    return time.process_time() - started


def _with_workers(dataset: WindowDataset, plan: Plan, batches: int, workers: int) -> float:
    """Windows a second that so many processes hand out, once they run."""
    loader = WindowLoader(dataset, plan, workers)
    try:
        iterator = iter(loader)
        ready = 1 + 2 * workers  # batches that are begun before the first is asked for
        for _ in islice(iterator, min(ready, len(plan) - 1)):
            pass
        started = time.perf_counter()
        read = sum(1 for _ in islice(iterator, batches))
        return read * plan.batch_size / (time.perf_counter() - started)
    finally:
        loader.close()
