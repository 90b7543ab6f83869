"""Actions for recordings that have none: the function behind ``bczoo data label``.

Place in the pipeline: recordings without known actions come in (``bczoo data import video``), the same with guesses go
out, for training with ``--data.pseudo true``. A guess lies beside what is known, in fields of its own
(``pseudo_action``, ``pseudo_confidence``), so no guess ever passes for a person's action and no known action is lost;
where both are there, ``bczoo data idm-check`` compares them. Videos are linked, not copied or encoded again.

Shape legend: n frames of a recording, B windows, T steps of a window, H = W frame size, A action tokens.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bczoo.core.devices import usable_device
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, link, require_folder_target, sweep, write_errors
from bczoo.core.frames import resize
from bczoo.core.progress import Progress
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index import Index, open_index
from bczoo.data.proportions import mismatch
from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE, check_groups, write_action
from bczoo.data.schema import annotation as pb
from bczoo.data.video import iterate_frames, probe
from bczoo.hub.source import locate
from bczoo.models.idm import calibration
from bczoo.models.idm.calibration import Calibration
from bczoo.models.idm.metrics import confidence
from bczoo.models.idm.model import InverseDynamics
from bczoo.models.idm.windows import Window, changes, cuts, plan
from bczoo.nn.weights import add_weights


@dataclass
class Labelling:
    """What was labelled.

    Args:
        recordings: labelled now.
        kept: labelled before, by the same model in the same way.
        steps: steps of those labelled now, without the last of each, which has no frame after it.
        labelled: of these the ones with a guess.
        confidence: mean over the labelled steps.
        cuts: between scenes, in all of them.
        seconds: spent on them.
        broken: reason by recording.
    """

    recordings: int = 0
    kept: int = 0
    steps: int = 0
    labelled: int = 0
    confidence: float = float("nan")
    cuts: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 if a recording could not be labelled."""
        return int(bool(self.broken))

    def __str__(self) -> str:
        lines = [
            f"{self.recordings} recordings labelled"
            + (f", {self.kept} were already" if self.kept else "")
            + (f", {len(self.broken)} not" if self.broken else "")
        ]
        if self.recordings:
            lines += [
                f"  steps       {self.labelled:,} of {self.steps:,} ({self.labelled / max(self.steps, 1):.1%}); "
                f"{self.cuts} cuts",
                f"  confidence  {self.confidence:.3f} on average",
                f"  speed       {self.labelled / self.seconds:.0f} steps/s",
            ]
        lines += [f"  {name}: {reason}" for name, reason in self.broken.items()]
        return "\n".join(lines)


def label(
    idm: str,
    recordings: str,
    out: str,
    calibrate: str | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    revision: str | None = None,
) -> Labelling:
    """Read actions off recordings that have none, with an inverse dynamics model.

    What was labelled before, by the same model in the same way, is kept, so an interrupted command goes on. The exit
    status is 1 if a recording could not be labelled.

    Args:
        idm: an exported folder, org/name on the Hub, a run or a .ckpt file.
        recordings: folder of recordings, or one; known actions stay as they are.
        out: folder to write the labelled recordings to.
        calibrate: recordings with known actions that the model has not learned from; makes confidences honest.
        batch_size: windows at once.
        device: cpu or cuda.
        revision: branch, tag or commit on the Hub.
    """
    root, target = Path(recordings), Path(out)
    require_folder_target(target, "--out")
    if target.resolve() == root.resolve() or root.resolve() in target.resolve().parents:
        raise UserError(f"--out {out} lies in the recordings that are labelled; give a folder beside {recordings}")
    found = locate(idm, revision)
    model = found.load(InverseDynamics, device=usable_device(device))
    if chosen := found.chosen:
        print(chosen)
    spec = model.input_spec
    check_groups(model.action_space)
    index = open_index(root, spec.action_space, spec.fps, None)
    index.report()
    _check_form(index, model, recordings)
    how = Calibration() if calibrate is None else calibration.calibrate(model, calibrate, batch_size)
    if how.steps:
        print(
            f"calibrated on {how.steps:,} steps: temperature {how.temperature:g}; 80 % of them have a confidence of at "
            f"least {how.threshold:.3f}, which --data.pseudo_min_confidence {how.threshold:.3f} asks for in training"
        )
    labels = pb.PseudoLabels(
        idm=printable(idm),
        weights=weights_hash(model),
        timestamp=int(time.time()),
        temperature=how.temperature,
        threshold=how.threshold,
    )
    result = _label_all(model, index, target, labels, batch_size)
    print(result)
    return result


def weights_hash(model: torch.nn.Module) -> str:
    """16 digits that tell a model's weights from any others."""
    digest = hashlib.blake2b(digest_size=8)
    add_weights(digest, model)
    return digest.hexdigest()


def _check_form(index: Index, model: InverseDynamics, recordings: str) -> None:
    """Raise if recordings have another rate than the model, or smaller pictures."""
    spec = model.input_spec
    if rates := index.resampled():
        counts = "; ".join(line.replace("resampled from", "at").replace(" to ", " instead of ") for line in rates)
        raise UserError(
            f"{recordings}: {counts}. This model reads actions off {spec.fps:g} frames a second, and a label belongs "
            f"to a frame of the recording; bring the recordings to {spec.fps:g} frames a second first"
        )
    for recording in index.usable.tolist():
        with index.reading(recording) as folder:
            video = folder / index.video_name(recording, spec.frame_size)
            info = probe(video)
        if min(info.width, info.height) < spec.frame_size:
            raise UserError(
                f"{video} is {info.width} x {info.height}, and this model reads motion off {spec.frame_size} x "
                f"{spec.frame_size} pixels; enlarged pictures do not show it. Take a larger video, or a model of "
                "smaller frames"
            )
    if wrong := mismatch(index, spec.frame_size, spec.resize):
        warnings.warn(wrong, stacklevel=2)


def _label_all(model: InverseDynamics, index: Index, out: Path, labels: Any, batch_size: int) -> Labelling:
    result, total, began = Labelling(), 0.0, time.perf_counter()
    frames = int(index.n_frames[index.usable].sum())
    with Progress(total=frames, desc="Labelling", unit="frame", disable=None) as bar:
        for recording in index.usable.tolist():
            n, target = int(index.n_frames[recording]), out / str(index.names[recording])
            with index.reading(recording) as folder:
                if _is_done(folder, target, labels):
                    result.kept += 1
                    bar.update(n)
                    continue
                sweep(target.parent, target.name)
                video = folder / index.video_name(recording, model.input_spec.frame_size)
                try:
                    scenes = cuts(changes(iterate_frames(video)))
                    windows = plan(n, model.input_spec.window, scenes)
                    ids, sure = read_off(model, video, n, windows, batch_size, labels.temperature)
                except RecordingError as error:
                    result.broken[str(index.names[recording])] = error.reason
                    continue
                videos = [folder / name for name in index.video_names(recording)]
                _write(model, folder, videos, target, labels, ids, sure)
            known = sure[~np.isnan(sure)]
            result.recordings, result.cuts = result.recordings + 1, result.cuts + len(scenes)
            result.steps, result.labelled = result.steps + n - 1, result.labelled + len(known)
            total += float(known.sum())
            bar.update(n)
    result.seconds = time.perf_counter() - began
    result.confidence = total / result.labelled if result.labelled else float("nan")
    return result


def _is_done(folder: Path, target: Path, labels: Any) -> bool:
    """Whether a recording was labelled in this way since it was last changed."""
    there, source = target / ANNOTATION_FILE, folder / ANNOTATION_FILE
    if not there.is_file() or there.stat().st_mtime < source.stat().st_mtime:
        return False
    found = read_metadata(there).pseudo_labels
    return all(getattr(found, name) == getattr(labels, name) for name in ("weights", "temperature", "threshold"))


@torch.inference_mode()
def read_off(
    model: InverseDynamics, video: Path, n: int, windows: Sequence[Window], batch_size: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n, A) of every step of a video and how sure they are (n,); not a number where a step is in no window.

    Args:
        model: in evaluation mode.
        video: the file.
        n: its frames.
        windows: from :func:`bczoo.models.idm.windows.plan`.
        batch_size: windows at once.
        temperature: logits are divided by it.
    """
    spec = model.input_spec
    ids = np.zeros((n, model.action_space.tokens), np.int64)
    sure = np.full(n, np.nan)
    shown = _clips(video, windows, spec.frame_size, spec.resize)
    for first in range(0, len(windows), batch_size):
        some = windows[first : first + batch_size]
        frames = np.zeros((len(some), spec.window, spec.frame_size, spec.frame_size, 3), np.uint8)
        lengths = torch.tensor([w.stop - w.start for w in some])
        for clip, window in zip(frames, some, strict=True):
            clip[: window.stop - window.start] = next(shown)
        there = torch.arange(spec.window) < lengths[:, None]
        pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()  # (B, T, 3, H, W)
        logits = model.logits(pixels.to(model.device), there.to(model.device))
        chosen = torch.cat([logits[g.name].argmax(-1) for g in model.action_space.groups], dim=-1).cpu().numpy()
        probability = confidence(logits, temperature).cpu().numpy()
        for b, w in enumerate(some):
            ids[w.first : w.last] = chosen[b, w.first - w.start : w.last - w.start]
            sure[w.first : w.last] = probability[b, w.first - w.start : w.last - w.start]
    return ids, sure


def _clips(video: Path, windows: Sequence[Window], size: int, filter: str) -> Iterator[np.ndarray]:
    """The frames (T, H, W, 3) of each window, from one pass over the video; no more of it is kept than a window."""
    frames, first, kept = iterate_frames(video), 0, list[np.ndarray]()
    for window in windows:
        while first < window.start:
            if kept:
                kept.pop(0)
            else:
                next(frames)
            first += 1
        while len(kept) < window.stop - window.start:
            kept.append(resize(next(frames), size, filter))
        yield np.stack(kept[: window.stop - window.start])


def _write(
    model: InverseDynamics,
    folder: Path,
    videos: Sequence[Path],
    target: Path,
    labels: Any,
    ids: np.ndarray,
    sure: np.ndarray,
) -> None:
    """Write a recording anew, with guesses in the place of older ones."""
    message = pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes())
    message.metadata.pseudo_labels.CopyFrom(labels)
    for step, frame in enumerate(message.frame_annotations, -1):  # annotation i + 1 holds the action of step i
        frame.ClearField("pseudo_action")
        frame.ClearField("pseudo_confidence")
        if step >= 0 and not np.isnan(sure[step]):
            by_group = {name: ids[step, part].tolist() for name, part in model.action_space.slices.items()}
            write_action(model.action_space.decode(by_group), frame.pseudo_action)
            frame.pseudo_confidence = min(float(sure[step]), 1.0)
    with write_errors(target):
        partial = PartialPath(target)
        try:
            partial.path.mkdir()
            for video in videos:
                link(video, partial.path / video.name)
            (partial.path / ANNOTATION_FILE).write_bytes(message.SerializeToString())
        except BaseException:
            partial.discard()
            raise
        partial.exchange()
