"""Computes the features of recordings once, with the frozen part of a model's encoder.

Place in the pipeline: with ``data.feature_cache`` the data module calls :func:`keep_features` whenever it makes a
loader: weights are loaded by then, the model is on its device, and no step has been made. What is missing is computed
in one pass over the videos (:func:`compute`, which ``bczoo tokenize`` shares; :mod:`bczoo.data.features` says what lies
where); later epochs and runs read it.

Shape legend: N frames, H, W height and width in pixels, F values of a frame's features.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, sweep, write_errors, write_json
from bczoo.core.frames import height_width
from bczoo.core.progress import Progress
from bczoo.data.dataset import as_batch, read_frames_into
from bczoo.data.errors import FrameReadError
from bczoo.data.features import Features, PartialFeatures, recording_names, require_room
from bczoo.data.index import Index
from bczoo.nn.weights import add_weights

CHUNK = 256  # frames that are decoded together: so often a video is opened, and read from the keyframe before
AT_ONCE = 64  # frames that are encoded together
FORMAT = 1
MORE_ROOM = (
    "give data.feature_cache another place, or train in 16 bits, which takes half (--trainer.precision bf16-mixed)"
)
Part = tuple[Index, np.ndarray]  # recordings of an index, by number


def keep_features(
    folder: str | Path, trainer: L.Trainer | None, parts: Sequence[Part], resize: str, num_workers: int
) -> list[Features]:
    """The features of recordings, of which the missing ones are computed; every process of the training calls it.

    The processes of a machine share the work. Each waits for the others of all machines.

    Args:
        folder: where features lie.
        trainer: of the model whose encoder is asked.
        parts: recordings of indexes, by number.
        resize: filter that brings frames to the encoder's size.
        num_workers: processes that decode.

    Returns:
        Per part those of its index.

    Raises:
        UserError: the encoder is not wholly frozen or its family keeps no features, or the disk has no room.
    """
    encoder = frozen_encoder(trainer and trainer.lightning_module)
    assert trainer is not None
    require_folder_target(folder, "data.feature_cache")
    with _modes_kept(encoder), trainer.precision_plugin.forward_context(), torch.inference_mode():
        encoder.eval()  # before the first batch it may be in training mode yet
        size, dtype, about = describe(encoder, resize)
        place = Path(folder) / digest(about)
        with write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            if trainer.local_rank == 0:
                sweep(place)
                write_json(place / "about.json", about)
        names = [recording_names(index, encoder.frame_size) for index, _ in parts]
        kept = [
            Features(index, np.array([str(place / name) for name in own]), size, dtype)
            for (index, _), own in zip(parts, names, strict=True)
        ]
        wanted = [(features, recordings) for features, (_, recordings) in zip(kept, parts, strict=True)]
        missing = [(features, features.missing(recordings)) for features, recordings in wanted]
        need = sum(features.bytes_of(recordings) for features, recordings in missing)
        frames = sum(int(features.index.n_frames[recordings].sum()) for features, recordings in missing)
        trainer.strategy.barrier()  # all have looked before one of them writes
        if frames:
            require_room(place, need, frames, "features", MORE_ROOM)
            if trainer.local_rank == 0:
                print(f"features of {frames:,} frames are computed once, {need / 1e9:,.3g} GB in {place}")
            own = [(f, recordings[trainer.local_rank :: trainer.num_devices]) for f, recordings in missing]
            with write_errors(place):
                _compute(encoder, own, resize, num_workers, trainer)
        trainer.strategy.barrier()
    return kept


def frozen_encoder(model: Any) -> Any:
    """The encoder of a model whose features can be kept.

    Raises:
        UserError: there is none, or it changes in training.
    """
    no = "data.feature_cache keeps what a frozen encoder makes of every frame, but"
    ask = getattr(model, "feature_encoder", None)
    encoder = ask() if ask is not None else None
    if encoder is None:
        family = "no model" if model is None else f"a {type(model).__name__}, which has no feature_encoder,"
        raise UserError(f"{no} {family} is trained; leave it out")
    part = encoder.features_by()
    name = type(encoder).__name__
    if part is None:
        raise UserError(f"{no} {name} has no features_by(), features(frames) and from_features(features); leave it out")
    if any(isinstance(p, DTensor) for p in part.parameters()):
        raise UserError(f"{no} with --trainer.strategy sharded no process holds a whole encoder; leave one of them out")
    learned = [p for p in part.parameters() if p.requires_grad]
    if learned:
        raise UserError(
            f"{no} {len(learned)} of its weight tensors in {name} are trained, now or later in this run; freeze it "
            "(--model.encoder.frozen true, in fine-tuning --model.freeze '{encoder: true}') or leave the cache out"
        )
    if _trains(model, part):
        raise UserError(
            f"{no} what makes them in {name} is in training mode while the model is trained (BatchNorm learns its "
            "statistics then, dropout is random); have train() leave it in evaluation mode, or leave the cache out"
        )
    return encoder


def _trains(model: nn.Module, part: nn.Module) -> bool:
    """Whether a module of a part is in training mode when the model is."""
    with _modes_kept(model):
        model.train()
        return any(module.training for module in part.modules())


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Leave every module in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def describe(encoder: Any, resize: str) -> tuple[int, torch.dtype, dict[str, Any]]:
    """Values of a frame's features, their type, and what they depend on besides the recordings, as plain JSON."""
    size, device = encoder.frame_size, next(encoder.features_by().parameters()).device
    one = encoder.features(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    if one.ndim != 2 or len(one) != 1:
        raise UserError(
            f"{type(encoder).__name__}.features has to return (N, F) values of N frames, here (1, F); it returned "
            f"{tuple(one.shape)}"
        )
    return one.shape[1], one.dtype, {
        "format": FORMAT,
        "encoder": encoder.spec,
        "weights": _weights_digest(encoder.features_by()),
        "dtype": str(one.dtype).removeprefix("torch."),
        "values": one.shape[1],
        "frame_size": size,
        "resize": resize,
    }  # fmt: skip


def digest(about: dict[str, Any]) -> str:
    """A folder's name for what features depend on."""
    return hashlib.blake2b(repr(sorted(about.items())).encode(), digest_size=12).hexdigest()


def _weights_digest(module: nn.Module) -> str:
    """Of names, types and values of all parameters and buffers."""
    kinds = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in sorted(module.state_dict().items())]
    found = hashlib.blake2b(repr(kinds).encode(), digest_size=16)
    add_weights(found, module)
    return found.hexdigest()


def _compute(
    encoder: Any, wanted: Sequence[tuple[Features, np.ndarray]], resize: str, num_workers: int, trainer: L.Trainer
) -> None:
    """Compute and keep the features of recordings, one after the other."""

    def going_on() -> None:
        if trainer.received_sigterm:  # Lightning would wait for the end of a training batch
            raise SIGTERMException

    device = next(encoder.features_by().parameters()).device
    show = trainer.local_rank == 0
    compute(encoder.features, device, encoder.frame_size, wanted, resize, num_workers, "Features", show, going_on)


def compute(
    make: Callable[[Tensor], Tensor],
    device: torch.device,
    frame_size: int | tuple[int, int],
    wanted: Sequence[tuple[Features, np.ndarray]],
    resize: str,
    num_workers: int,
    title: str,
    show: bool = True,
    before_each: Callable[[], None] = lambda: None,
) -> None:
    """Compute and keep what a network makes of every frame of recordings, one recording after the other.

    Args:
        make: rows (N, F) of frames (N, 3, H, W) uint8.
        device: where it takes them.
        frame_size: of the frames.
        wanted: recordings, and where their rows are kept.
        resize: filter that brings frames to their size.
        num_workers: processes that decode.
        title: of the progress bar.
        show: whether there is one.
        before_each: called before some frames are computed.
    """
    # archives one after the other, so that each is brought once
    order = [(f, r[np.argsort(f.index.pack_of[r], kind="stable")].tolist()) for f, r in wanted]
    n_frames = sum(int(f.index.n_frames[r].sum()) for f, r in wanted)
    with Progress(total=n_frames, desc=title, unit="frames", unit_scale=True, disable=not show) as bar:
        for features, recordings in order:
            chunks = _Chunks(features.index, recordings, frame_size, resize)
            loader = DataLoader(
                chunks,
                batch_size=None,
                num_workers=min(num_workers, len(chunks)),
                collate_fn=as_batch,
                generator=torch.Generator(),  # or the training would begin with other random numbers
            )
            writing: PartialFeatures | None = None
            try:
                for at, chunk in enumerate(loader):
                    before_each()
                    recording = chunks.places[at][0]
                    writing = writing or features.writing(recording)
                    frames = chunk.frames.to(device).split(AT_ONCE)
                    writing.add(torch.cat([make(some) for some in frames]), chunk.readable)
                    bar.update(len(chunk.frames))
                    if chunk.reason:
                        name = features.index.names[recording]
                        warnings.warn(
                            f"recording {name}: {chunk.reason}; it has no {features.field} there", stacklevel=2
                        )
                    if writing.complete:
                        writing.commit()
                        writing = None
            finally:
                if writing is not None:
                    writing.discard()


@dataclass
class Chunk:
    """Some frames of a recording in order."""

    frames: Tensor  # (N, 3, H, W) uint8, black where they could not be decoded
    readable: np.ndarray  # (N,) bool
    reason: str  # why the first of the others could not


class _Chunks(Dataset[Chunk]):
    """The frames of recordings, one recording after the other; all of a recording in pieces of up to ``CHUNK``."""

    def __init__(self, index: Index, recordings: Sequence[int], frame_size: int | tuple[int, int], resize: str) -> None:
        self.index, self.shape, self.resize = index, height_width(frame_size), resize
        self.places = [(r, start) for r in recordings for start in range(0, int(index.n_frames[r]), CHUNK)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Chunk:
        recording, start = self.places[number]
        count = min(CHUNK, int(self.index.n_frames[recording]) - start)
        frames = np.zeros((count, 3, *self.shape), np.uint8)
        readable, reason, done = np.ones(count, bool), "", 0
        while done < count:
            try:
                read_frames_into(frames[done:], self.index, recording, start + done, self.resize)
                break
            except FrameReadError as error:  # a window that begins behind the damage is read, so it has features
                done += len(error.frames)
                frames[done:], readable[done], reason = 0, False, reason or error.reason
                done += 1
        return Chunk(torch.from_numpy(frames), readable, reason)
