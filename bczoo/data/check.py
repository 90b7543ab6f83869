"""What is in a folder of recordings, and what is broken: the function behind ``bczoo data check``.

Place in the pipeline: run once after recording or downloading. It uses the same index as training, so with
the policy's action space, rate and text width what is reported broken here is what training skips; with
``decode`` it also decodes every frame, which training only does when it comes to it.

Shape legend: n steps of a recording, A action tokens per step.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup
from bczoo.core.files import require_file_target, sweep, write_json
from bczoo.core.progress import Progress
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index import Index, open_index
from bczoo.data.index_build import start_method
from bczoo.data.recording import LABELLED, LEARNED, PSEUDO, SYSTEM, UNKNOWN, USER
from bczoo.data.summary import summarise
from bczoo.data.video import iterate_frames

LOOK_SIZE = 192  # pixels of the frames that a sample is taken of
_shared: Index | None = None  # of a process that decodes


@dataclass
class Report:
    """What ``check`` found.

    Args:
        root: the folder.
        recordings: all recordings, broken ones too.
        frames: frames of the recordings that are not broken.
        hours: the same in hours.
        user_steps: steps with a person's action.
        system_steps: steps with the policy's own action.
        labelled_steps: steps with an action that the expert did not want, a policy's or noise, and what it did want.
        pseudo_steps: steps with an action that a model has read off the video.
        unknown_steps: steps without a known action.
        text_steps: steps with an instruction that has an embedding.
        texts_without_embedding: instructions that no policy can see, because they have no embedding.
        actions: per group how many steps of a user or an expert hold each name, or have their number in each bin.
        unknown_names: names that the action space lacks, and how many steps hold them.
        broken: reason by recording.
        decoded: whether every frame was decoded.
        summary: no-ops, keys never pressed, and a sample of the frames, in a few lines.
        warnings: what nothing can be learned from.
    """

    root: str
    recordings: int = 0
    frames: int = 0
    hours: float = 0.0
    user_steps: int = 0
    system_steps: int = 0
    labelled_steps: int = 0
    pseudo_steps: int = 0
    unknown_steps: int = 0
    text_steps: int = 0
    texts_without_embedding: int = 0
    actions: dict[str, dict[str, int]] = field(default_factory=dict)
    unknown_names: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    decoded: bool = False
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def pseudo_hours(self) -> float:
        """Hours with an action that a model has read off the video."""
        return self.hours * self.pseudo_steps / max(self.frames, 1)

    @property
    def status(self) -> int:
        """Exit status: 1 if a recording is broken."""
        return int(bool(self.broken))

    def __str__(self) -> str:
        def share(steps: int) -> str:
            return f"{steps:,} ({steps / max(self.frames, 1):.1%})"

        lines = [
            f"{self.root}: {self.recordings:,} recordings, {self.hours:.2f} h, {self.frames:,} frames",
            f"  steps   user {share(self.user_steps)}, system {share(self.system_steps)}"
            + (f", system with an expert's label {share(self.labelled_steps)}" if self.labelled_steps else "")
            + (f", pseudo-labelled {share(self.pseudo_steps)} = {self.pseudo_hours:.2f} h" if self.pseudo_steps else "")
            + (f", without a known action {share(self.unknown_steps)}, not learned from" if self.unknown_steps else ""),
            f"  text    {share(self.text_steps)} of the steps"
            + (f", {self.texts_without_embedding} without embedding" if self.texts_without_embedding else ""),
        ]
        learned = max(self.user_steps + self.labelled_steps, 1)
        for group, counts in self.actions.items():
            most = sorted(counts.items(), key=lambda item: -item[1])[:12]
            shares = ", ".join(f"{name} {steps / learned:.1%}" for name, steps in most if steps)
            lines.append(f"  {group:<7} {shares or 'not in the steps of a user'}{', ...' if len(counts) > 12 else ''}")
        lines += [f"  {line}" for line in self.summary]
        if self.unknown_names:
            most = list(self.unknown_names.items())[:20]
            names = ", ".join(f"{name} {steps:,}" for name, steps in most)
            names += f" and {len(self.unknown_names) - len(most)} more" if len(self.unknown_names) > len(most) else ""
            lines.append(f"  not in the action space, so left out (steps): {names}")
        lines += [f"warning: {text}" for text in self.warnings]
        if self.broken:
            lines.append(f"{len(self.broken)} broken:")
            lines += [f"  {name}: {reason}" for name, reason in self.broken.items()]
        else:
            lines.append("nothing is broken" + ("" if self.decoded else " as far as headers show"))
        return "\n".join(lines)


def check(
    root: str,
    decode: bool = True,
    json: str | None = None,
    action_space: str | dict[str, Any] = "keyboard_mouse",
    fps: float = 20.0,
    text_dim: int | None = 768,
    processes: int | None = None,
) -> Report:
    """Count what a folder of recordings holds and list what is broken.

    Prints a report; the exit status is 1 if a recording is broken.

    Args:
        root: folder of recordings or of archives of them, an archive, a URL of either, or one recording.
        decode: decode every frame; without it only headers are read.
        json: file to write the report to as JSON.
        action_space: name of the action space to map actions to, or its dict.
        fps: steps per second that recordings are brought to.
        text_dim: values that a text embedding must have; null for policies that take no text.
        processes: processes that decode; as many as there are processor cores if left out.
    """
    processes = os.cpu_count() or 1 if processes is None else processes
    if json is not None:
        require_file_target(json, "--json", "report.json")
    index = open_index(root, ActionSpace.of(action_space), fps, text_dim, processes=processes, verify=True)
    report = count(index, root)
    report.decoded = decode
    summary = summarise(index, index.usable, frame_size=LOOK_SIZE)
    report.summary, report.warnings = summary.lines(), summary.warnings()
    if decode:
        for recording, reason in _decode_all(index, processes):
            if reason:
                report.broken[str(index.names[recording])] = reason
    print(report)
    if json is not None:
        sweep(Path(json).parent)
        write_json(json, dataclasses.asdict(report), indent=1)
    return report


def count(index: Index, root: str) -> Report:
    """What the index says of all its recordings; ``root`` is what the user called them."""
    report = Report(printable(root), recordings=len(index))
    report.broken = {str(index.names[i]): str(index.problems[i]) for i in np.flatnonzero(index.problems != "")}
    report.unknown_names = dict(index.unknown.most_common())
    report.texts_without_embedding = index.without_embedding
    for recording in index.usable:
        _count(index, int(recording), report)
    report.hours = report.frames / index.target.fps / 3600
    return report


def _count(index: Index, recording: int, report: Report) -> None:
    """Add one recording's numbers to the report."""
    kind = index.steps(recording)[1]  # (n,)
    report.frames += len(kind)
    report.user_steps += int((kind == USER).sum())
    report.system_steps += int((kind == SYSTEM).sum())
    report.labelled_steps += int((kind == LABELLED).sum())
    report.pseudo_steps += int((kind == PSEUDO).sum())
    report.unknown_steps += int((kind == UNKNOWN).sum())
    begins, steps, _ = index.texts(recording)
    has_text = np.zeros(len(kind), bool)
    for begin, length in zip(begins, steps, strict=True):
        has_text[begin : begin + length] = True
    report.text_steps += int(has_text.sum())
    space = index.target.space
    assert space is not None
    for group in space.groups:
        tokens = index.labels(recording)[np.isin(kind, LEARNED)][:, space.slices[group.name]]
        counts = report.actions.setdefault(group.name, {})
        if isinstance(group, BinnedGroup):
            names = [_bin_name(group, i) for i in range(group.choices)]
            per_name = np.bincount(tokens[:, 0], minlength=group.choices)
        elif isinstance(group, HeldGroup):
            names = list(group.names[1:])
            per_name = np.bincount(tokens.reshape(-1), minlength=group.choices)[1:]
        else:
            names, per_name = list(group.names), tokens.sum(0, dtype=np.int64)
        for name, steps_held in zip(names, per_name.tolist(), strict=True):
            counts[name] = counts.get(name, 0) + steps_held


def _bin_name(group: BinnedGroup, i: int) -> str:
    low, high = group.support(i)
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"


def _decode_all(index: Index, processes: int) -> Iterator[tuple[int, str]]:
    """Decode all videos; yields every recording's number and what is wrong, or ""."""
    recordings = index.usable.tolist()
    frames = index.n_recorded[recordings].tolist()
    bar = Progress(total=sum(frames), desc="Decoding", unit="frame", disable=None)
    with bar:
        if processes < 2 or len(recordings) < 2:
            for recording, n in zip(recordings, frames, strict=True):
                yield recording, _decode(index, recording)
                bar.update(n)
            return
        context = multiprocessing.get_context(start_method())
        count = min(processes, len(recordings))
        with ProcessPoolExecutor(count, context, initializer=_share, initargs=(index,)) as pool:
            results = pool.map(_decode_shared, recordings)
            for recording, n, reason in zip(recordings, frames, results, strict=True):
                yield recording, reason
                bar.update(n)


def _share(index: Index) -> None:
    """Give a process of the pool the index, once instead of with every recording."""
    global _shared
    _shared = index


def _decode_shared(recording: int) -> str:
    assert _shared is not None
    return _decode(_shared, recording)


def _decode(index: Index, recording: int) -> str:
    """Decode all frames of a recording's videos; what is wrong with them, or ""."""
    n_frames = int(index.n_recorded[recording])
    with index.reading(recording) as folder:
        for video in index.video_names(recording):
            try:
                decoded = sum(1 for _ in iterate_frames(folder / video))
            except RecordingError as error:
                return f"{video}: {error.reason}"
            if decoded != n_frames:
                return f"{video}: {decoded} of {n_frames} frames can be decoded"
    return ""
