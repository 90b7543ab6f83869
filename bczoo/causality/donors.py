"""Donors: windows whose pictures and actions are shown in place of the recorded ones.

Place in the pipeline: the causality score swaps pictures (:mod:`bczoo.causality.perturb`) and past actions
(:mod:`bczoo.causality.metrics`) with those of other windows. Were these taken from the same batch, the score would
depend on the batch size and on the number of processes. So a few windows are sampled from all that may be scored, by
name and start, read once before the first batch, and held while all others pass by: who is paired with whom is a
function of the recordings alone.

Shape legend: N donors, B batch, T steps, I image tokens, D width, n tokens of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bczoo.core.spec import Batch
from bczoo.data.loader import WindowLoader
from bczoo.data.windows import Key, Plan, list_windows, window_hashes
from bczoo.models.policy import Policy

DONORS = 16  # windows; to read and encode them is what swapping costs, however many are scored
_SAMPLED, _PAIRED = 1, 2  # independent hashes of one window


@dataclass(frozen=True)
class Donors:
    """Windows to swap with.

    A window's donor is sampled from those of other recordings. Where there are none it is the one of the same recording
    that lies farthest away, and where that is the window itself, its other half. A donor that has fewer steps than the
    window goes round.

    Args:
        encoded: image tokens (N, T, I, D).
        actions: per group ids (N, T, n).
        valid: (N, T) bool, steps that have a frame.
        recording: (N,) numbers of the recordings.
        start: (N,) first frames.
        hashes: (R,) uint64 of the recordings' names, by number; None samples by the numbers.
    """

    encoded: Tensor
    actions: dict[str, Tensor]
    valid: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    hashes: np.ndarray | None = None

    @classmethod
    @torch.no_grad()
    def read(cls, policy: Policy, loader: WindowLoader) -> Donors:
        """Donors of all windows of a loader, of which it may hand out only a part.

        Args:
            policy: encodes their frames; in evaluation mode.
            loader: of the windows that are scored.
        """
        encoded: list[Tensor] = []
        kept: list[Any] = []
        for key in sample_donors(loader.plan):
            batch = loader.windows[key]
            if not kept or batch["valid"].any():  # the first in any case, so that there is one
                shown: Any = {k: v for k, v in batch.items() if k in ("frames", "features")}
                encoded.append(policy.encoded({**batch, **{k: v.to(policy.device) for k, v in shown.items()}}))
                kept.append({k: v for k, v in batch.items() if k not in shown})  # the tokens are small, these are not
            if len(kept) == DONORS:
                break
        return cls(
            torch.cat(encoded),
            {name: torch.cat([b["actions"][name] for b in kept]).to(policy.device) for name in kept[0]["actions"]},
            valid=torch.cat([b["valid"] for b in kept]).numpy(),
            recording=torch.cat([b["recording"] for b in kept]).numpy(),
            start=torch.cat([b["start"] for b in kept]).numpy(),
            hashes=loader.plan.index.hashes,
        )

    @classmethod
    def of_batch(cls, batch: Batch, encoded: Tensor) -> Donors:
        """The windows of a batch, with their image tokens (B, T, I, D), as donors of each other."""
        valid, recording, start = (x.cpu().numpy() for x in (batch["valid"], batch["recording"], batch["start"]))
        return cls(encoded, batch["actions"], valid, recording, start)

    def encoded_for(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image tokens (B, T, I, D) in place of a batch's, and the steps (B, T) that have some."""
        row, step, where = self._places(batch)
        return self.encoded[row, step], where

    def actions_for(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Ids (B, T, n) in place of a batch's, and the steps (B, T) that have some."""
        row, step, where = self._places(batch)
        return {name: ids[row, step] for name, ids in self.actions.items()}, where

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """For every window of a batch its donor (B, 1), for every step the donor's (B, T), and where they differ."""
        steps = batch["valid"].shape[1]
        recording, start = (x.cpu().numpy() for x in (batch["recording"], batch["start"]))
        hashes = recording.astype(np.uint64) if self.hashes is None else self.hashes[recording]
        picks = window_hashes(hashes, start, _PAIRED)
        row, step = np.zeros(len(recording), np.int64), np.zeros((len(recording), steps), np.int64)
        differs = np.zeros(len(recording), bool)
        readable = np.flatnonzero(self.valid.any(axis=1))
        for b in range(len(recording) if len(readable) else 0):
            others = readable[self.recording[readable] != recording[b]]
            if len(others):
                row[b] = others[picks[b] % np.uint64(len(others))]
            else:
                row[b] = readable[np.abs(self.start[readable] - start[b]).argmax()]
            given = np.flatnonzero(self.valid[row[b]])
            itself = not len(others) and self.start[row[b]] == start[b]
            step[b] = given[(np.arange(steps) + (len(given) // 2 if itself else 0)) % len(given)]
            differs[b] = not itself or len(given) > 1
        to = batch["valid"].device
        where = batch["valid"] & torch.from_numpy(differs).to(to)[:, None]
        return torch.from_numpy(row).to(to)[:, None], torch.from_numpy(step).to(to), where


def sample_donors(plan: Plan) -> list[Key]:
    """All windows of a plan in the order in which they become donors.

    Recordings take turns, so that there are donors of several of them where there are several; of each recording the
    windows that are full come first.
    """
    recording, start = list_windows(plan.index, plan.recordings, plan.window)
    hashes, frames = plan.index.hashes[recording], plan.index.n_frames[recording]
    order = np.lexsort((window_hashes(hashes, start, _SAMPLED), start + plan.window >= frames, recording))
    recording, start, hashes = recording[order], start[order], hashes[order]
    turn = np.arange(len(recording)) - np.searchsorted(recording, recording)  # 0, 1, ... within each recording
    order = np.lexsort((hashes, turn))
    return list(zip(recording[order].tolist(), start[order].tolist(), strict=True))
