"""Windows as tensors: frames from the video, everything else from the index.

Place in the pipeline: `windows.py` says which ``(recording, start)`` pairs make a batch, this module reads
them, in the data loader's worker processes, into a :class:`bczoo.core.spec.Batch`. With `features.py` what a frozen
network made of the frames is read, features or ids, and videos only where the model asks for frames too.

Shape legend: B windows of a batch, T steps, H, W height and width of frames in pixels, A action tokens per step, D text
width, F values that a frozen network made of a frame.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bczoo.core.frames import height_width
from bczoo.core.spec import FIELDS, FILL, Batch
from bczoo.data.errors import FrameReadError
from bczoo.data.features import Features
from bczoo.data.handover import FrameMemory, Frames
from bczoo.data.index import Index
from bczoo.data.pseudo import PseudoLabels
from bczoo.data.recording import LABELLED, LEARNED, PSEUDO, SYSTEM
from bczoo.data.video import read_into
from bczoo.data.windows import Key


class WindowDataset(Dataset[Batch]):
    """Reads windows by ``(recording, start)``.

    A step at frame i has the action of annotation i + 1. A window that reaches the last frame is padded with
    it; padded steps have all-zero ids and are not valid. Frames that cannot be decoded make their steps
    invalid (or raise, if ``strict``) and are counted over all workers in ``unreadable_steps``.

    Args:
        index: of the recordings.
        window: steps T.
        frame_size: height and width of the frames in pixels, one number for a square.
        strict: raise where frames cannot be decoded.
        resize: filter that brings frames of another size to ``frame_size``.
        fields: what is read beyond the index; without ``frames`` no video is opened, and batches have none.
        pseudo: which guesses of a model are learned from, and their weight; none if left out. Of the others no batch
            holds anything: they are neutral, as unknown actions are.
        features: where lies what a frozen network made of the frames: features are read in their place, tokens where
            ``fields`` has them.
    """

    def __init__(
        self,
        index: Index,
        window: int,
        frame_size: int | tuple[int, int],
        strict: bool = False,
        resize: str = "hamming",
        fields: Sequence[str] = FIELDS,
        pseudo: PseudoLabels | None = None,
        features: Features | None = None,
    ) -> None:
        self.index = index
        self.window = window
        self.frame_size = frame_size
        self.strict = strict
        self.resize = resize
        self.fields = tuple(fields)
        self.features = features
        self._memory = FrameMemory()
        self.pseudo = pseudo
        space = index.target.space
        self._neutral = [] if space is None else [i for ids in space.neutral.values() for i in ids]
        self._unreadable = multiprocessing.Value("q", 0)
        self._warned = torch.zeros(len(index), dtype=torch.uint8).share_memory_()

    @property
    def reads_videos(self) -> bool:
        """Whether windows are read from the videos of their recordings."""
        return "frames" in self.fields and (self.features is None or self.features.field == "tokens")

    @property
    def unreadable_steps(self) -> int:
        """Steps whose frames could not be decoded so far, over all workers."""
        return self._unreadable.value

    def __getitem__(self, key: Key) -> Batch:
        """One window, as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch of windows; a recording of -1 gives an empty window of invalid steps."""
        B, T = len(keys), self.window
        target = self.index.target
        shown = self._take(B, T)
        ids = np.zeros((B, T, target.tokens), np.int64)
        labels = np.zeros_like(ids) if self.index.has_labels else None
        kind, valid, guessed = np.zeros((B, T), np.uint8), np.zeros((B, T), bool), np.zeros((B, T), bool)
        text = None if target.text_dim is None else np.zeros((B, T, target.text_dim), np.float32)
        for b, (recording, start) in enumerate(keys):
            if recording == FILL:
                for tensor, _ in shown.values():
                    tensor[b] = 0
                continue
            steps = min(T, int(self.index.n_frames[recording]) - 1 - start)
            all_ids, all_kinds = self.index.steps(recording)
            taken = slice(start + 1, start + 1 + steps)
            ids[b, :steps], kind[b, :steps] = all_ids[taken], all_kinds[taken]
            if labels is not None:
                labels[b, :steps] = self.index.labels(recording)[taken]
            if self.index.has_guesses(recording):
                if self.pseudo is not None:
                    guessed[b, :steps] = self.pseudo.accepted(self.index, recording)[taken]
                unlearned = (kind[b] == PSEUDO) & ~guessed[b]
                ids[b, unlearned] = self._neutral
                if labels is not None:
                    labels[b, unlearned] = self._neutral
            seen = [self._read_shown(name, out[b], recording, start, steps) for name, (out, _) in shown.items()]
            valid[b, : min([steps, *seen])] = True
            if text is not None:
                self._paint_text(text[b], recording, start)
        batch = Batch(
            actions={name: torch.from_numpy(ids[..., s]).contiguous() for name, s in target.slices.items()},
            user=torch.from_numpy(np.isin(kind, LEARNED) | guessed),
            system=torch.from_numpy(np.isin(kind, (SYSTEM, LABELLED))),
            valid=torch.from_numpy(valid),
            recording=torch.tensor([r for r, _ in keys]),
            start=torch.tensor([s for _, s in keys]),
        )
        if self.pseudo is not None:
            batch["weight"] = torch.from_numpy(np.where(guessed, self.pseudo.weight, 1.0).astype(np.float32))
        if labels is not None:
            batch["labels"] = {name: torch.from_numpy(labels[..., s]).contiguous() for name, s in target.slices.items()}
        for name, (_, handed) in shown.items():
            batch[name] = handed  # type: ignore[literal-required]  # a tensor when it has arrived
        if text is not None:
            batch["text"] = torch.from_numpy(text)
        return batch

    def _take(self, B: int, T: int) -> dict[str, tuple[Tensor, Tensor | Frames]]:
        """Memory for the frames of a batch, and for what a network made of them, and what to put into the batch."""
        shown = {}
        if self.reads_videos:
            shown["frames"] = self._memory.take(B, T, 3, *height_width(self.frame_size))
        if (features := self.features) is not None:
            shown[features.field] = self._memory.take(B, T, features.size, dtype=features.batch_dtype)
        return shown

    def _read_shown(self, name: str, out: Tensor, recording: int, start: int, steps: int) -> int:
        """Fill ``out`` (T, 3, H, W) or (T, F), padding with the last frame; returns how many steps are valid."""
        count = read = min(steps + 1, len(out))  # a padded window shows the recording's last frame, without an action
        try:
            if name != "frames":
                assert self.features is not None
                self.features.read_into(out[:count], recording, start)
            else:
                read_frames_into(out[:count].numpy(), self.index, recording, start, self.resize)
        except FrameReadError as error:
            if self.strict:
                raise
            read = len(error.frames)
            self._count_unreadable(recording, error.reason, steps - min(read, steps))
        out[read:] = out[read - 1] if read else 0
        return min(read, steps)

    def _count_unreadable(self, recording: int, reason: str, steps: int) -> None:
        with self._unreadable.get_lock():
            self._unreadable.value += steps
        if not self._warned[recording]:
            self._warned[recording] = 1
            warnings.warn(
                f"recording {self.index.names[recording]}: {reason}; steps without a frame are not learned from",
                stacklevel=2,
            )

    def _paint_text(self, out: np.ndarray, recording: int, start: int) -> None:
        """Write the instructions that hold in a window into ``out`` (T, D); later ones cover earlier ones.

        An instruction also holds in windows that begin after it. Like the reference, it goes on over padding.
        """
        begins, steps, embeddings = self.index.texts(recording)
        first = start + 1  # annotation of the window's first step
        for event in np.flatnonzero((begins < first + len(out)) & (begins + steps > first)):
            begin = begins[event] - first
            out[max(begin, 0) : max(begin + steps[event], 0)] = embeddings[event]


def read_frames_into(out: np.ndarray, index: Index, recording: int, start: int, resize: str) -> None:
    """Fill ``out`` (T, 3, H, W) with the frames of the steps from ``start`` on.

    Raises:
        FrameReadError: not all could be decoded.
    """
    numbers = index.video_frames(recording, start, len(out))
    with index.reading(recording) as folder:
        video = folder / index.video_name(recording, out.shape[-2:])
        read_into(out, video, numbers, filter=resize)


def as_batch(batch: Any) -> Any:
    """Collate function: the dataset already returns batches."""
    return batch
