"""Recorded clips that a world model begins from and is compared with.

Place in the pipeline: ``bczoo dream`` and ``bczoo evaluate`` read clips of recordings here, brought to the world's
frame size and rate as in training, and hand their first steps to a :class:`~bczoo.models.token.dream.Dream`.

Shape legend: N clips, T steps, H, W height and width in pixels, z tokens of a picture, A action tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bczoo.core.devices import usable_device
from bczoo.core.errors import UserError
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.recording import LEARNED, SYSTEM
from bczoo.hub.source import locate
from bczoo.models.token.world import WorldModel


class Clips(NamedTuple):
    """Clips of one length.

    Attributes:
        frames: (N, T, 3, H, W) uint8.
        pictures: (N, T, z) their ids.
        actions: (N, T, A) ids of what was done after each frame.
        names: (N,) of their recordings.
    """

    frames: Tensor
    pictures: Tensor
    actions: Tensor
    names: list[str]


def open_world(source: str, revision: str | None = None, device: str = "cpu") -> WorldModel:
    """A trained world model in evaluation mode; says which checkpoint of a run it is."""
    found = locate(source, revision)
    world = found.load(WorldModel, device=usable_device(device))
    if found.chosen:
        print(found.chosen)
    return world


def open_recordings(world: WorldModel, root: str) -> Index:
    """The recordings of a folder, or one recording, at the world's rate."""
    spec = world.input_spec
    index = open_index(root, spec.action_space, spec.fps, None)
    index.report()
    return index


def read_clips(world: WorldModel, index: Index, places: list[tuple[int, int]], steps: int) -> Clips:
    """Clips by recording and first step.

    Raises:
        UserError: a frame of them cannot be read, or an action is not known.
    """
    spec = world.input_spec
    windows = WindowDataset(index, steps, spec.frame_size, strict=True, resize=spec.resize)
    frames, pictures, actions, names = [], [], [], []
    for recording, start in places:
        batch = windows[(recording, start)]
        name = str(index.names[recording])
        if not bool(((batch["user"] | batch["system"]) & batch["valid"]).all()):
            raise UserError(f"recording {name}, steps {start} to {start + steps - 1}: not every action is known")
        shown = torch.as_tensor(batch["frames"])
        frames.append(shown)
        pictures.append(world.encode(shown.to(world.device)))
        actions.append(world.joined(batch["actions"]).to(world.device))
        names.append(name)
    return Clips(torch.cat(frames), torch.cat(pictures), torch.cat(actions), names)


def known_places(index: Index, steps: int, count: int, seed: int) -> list[tuple[int, int]]:
    """At most ``count`` clips of known actions, spread over all recordings; as many of each as can be.

    Raises:
        UserError: no recording holds so many steps with known actions.
    """
    rng, by_recording = np.random.default_rng(seed), []
    for recording in index.usable.tolist():
        known = np.isin(index.steps(recording)[1][1:], (*LEARNED, SYSTEM))  # (n - 1,), of steps with a next frame
        if len(known) < steps:
            continue
        whole = np.convolve(known, np.ones(steps, int), "valid") == steps
        if len(starts := np.flatnonzero(whole)):
            by_recording.append([(recording, int(start)) for start in rng.permutation(starts)[:count]])
    if not by_recording:
        raise UserError(
            f"no recording holds {steps} steps with known actions in a row; ask for fewer, or record longer games"
        )
    rounds = [clips[i] for i in range(max(map(len, by_recording))) for clips in by_recording if i < len(clips)]
    return sorted(rounds[:count])
