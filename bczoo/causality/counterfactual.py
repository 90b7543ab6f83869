"""Counterfactual frames that the user supplies: recorded frames, edited to mean something else.

Place in the pipeline: one more perturbation of :mod:`bczoo.causality.perturb`. A folder mirrors the recordings; a
picture is named by the frame that it takes the place of::

    edited/<recording>/000123.png        frame 123 of <recording>, with the door painted shut

Only steps that have a picture are scored.

Shape legend: B batch, T steps, H = W frame size, I image tokens, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bczoo.causality.donors import Donors
from bczoo.causality.perturb import Replacement
from bczoo.core.errors import UserError
from bczoo.core.frames import resize
from bczoo.core.spec import Batch
from bczoo.data.index import Index
from bczoo.models.policy import Policy

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Counterfactuals:
    """The user's frames, paired with recorded ones by recording and index.

    Args:
        folder: ``<folder>/<recording>/<frame>.png``.
        index: of the recordings.

    Raises:
        UserError: no pictures, or one that belongs to no frame of a recording.
    """

    def __init__(self, folder: str | Path, index: Index) -> None:
        folder = Path(folder)
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
        if not paths:
            raise UserError(f"{folder} holds no counterfactual frames; they are named <recording>/<frame>.png there")
        names = {str(name): i for i, name in enumerate(index.names)}
        self.paths: dict[tuple[int, int], Path] = {}
        for path in paths:
            recording = path.parent.relative_to(folder).as_posix()
            if recording not in names:
                raise UserError(f"{path}: there is no recording {recording!r}; one of them is {next(iter(names))!r}")
            frames = int(index.n_frames[names[recording]])
            if not (path.stem.isdecimal() and int(path.stem) < frames):
                raise UserError(f"{path}: the file's name is a frame's index, from 0 to {frames - 1} in {recording!r}")
            self.paths[names[recording], int(path.stem)] = path

    def __call__(self, policy: Policy, batch: Batch, encoded: Tensor, donors: Donors) -> Replacement:
        """The image tokens of the user's frames where there are some, of the recorded ones elsewhere."""
        steps = encoded.shape[1]
        starts = zip(batch["recording"].tolist(), batch["start"].tolist(), strict=True)
        places = [(b, t, r, start + t) for b, (r, start) in enumerate(starts) for t in range(steps)]
        places = [place for place in places if place[2:] in self.paths]
        where = torch.zeros_like(batch["valid"])
        out = encoded.clone()
        if places:
            shown = np.stack([self._read(self.paths[r, frame], policy) for _, _, r, frame in places])
            pixels = torch.from_numpy(shown).permute(0, 3, 1, 2)[:, None].to(encoded.device)  # (N, 1, 3, H, W)
            rows, columns = (torch.tensor(i, device=encoded.device) for i in list(zip(*places, strict=True))[:2])
            out[rows, columns] = policy.encode(pixels)[:, 0].to(out.dtype)
            where[rows, columns] = True
        return Replacement(out, where & batch["valid"])

    @staticmethod
    def _read(path: Path, policy: Policy) -> np.ndarray:
        try:
            with Image.open(path) as picture:
                frame = np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise UserError(f"{path} cannot be read as a picture: {error}") from error
        return resize(frame, policy.input_spec.frame_size, policy.input_spec.resize)
