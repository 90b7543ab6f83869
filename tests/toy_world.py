"""A world that a world model can learn by heart: a bright square that a and d move left and right, up to the edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
import torch

from bczoo import ActionSpace, WorldModel
from bczoo.core.spec import window_batch
from bczoo.data.recording import RecordingWriter

COLUMNS, SIZE, WINDOW = 6, 66, 4
KEYS = ([], ["a"], ["d"])
SPACE = ActionSpace.keyboard_mouse()


def frame(column: int) -> np.ndarray:
    """(66, 66, 3) uint8, a column of light."""
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    out[:, column * SIZE // COLUMNS : (column + 1) * SIZE // COLUMNS] = 255
    return out


def move(column, key):
    """Where the square is after a key of :data:`KEYS`; numbers or arrays."""
    return np.clip(column - (key == 1) + (key == 2), 0, COLUMNS - 1)


def action_ids(keys) -> torch.Tensor:
    """Ids (..., A) of keys (...)."""
    table = torch.tensor([[i for group in SPACE.encode(keys=held).values() for i in group] for held in KEYS])
    return table[torch.as_tensor(keys)]


def picture_ids(columns) -> torch.Tensor:
    """Ids (..., z) of columns (...)."""
    return torch.eye(COLUMNS, dtype=torch.long)[torch.as_tensor(columns)]


def walk(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and keys (B, T) of random play."""
    keys = rng.integers(0, 3, shape)
    columns = np.zeros(shape, np.int64)
    columns[:, 0] = rng.integers(0, COLUMNS, shape[0])
    for t in range(1, shape[1]):
        columns[:, t] = move(columns[:, t - 1], keys[:, t - 1])
    return columns, keys


def trained_world(updates: int = 300) -> WorldModel:
    """A world model that has learned it; some seconds on a core."""
    torch.manual_seed(0)
    tokenizer = {"rows": 1, "columns": COLUMNS, "levels": 2, "frame_size": SIZE}
    world = tiny.tiny_world(
        tokenizer={"class_path": "tiny.Brightness", "init_args": tokenizer}, window=WINDOW, starts=4
    )
    with torch.no_grad():  # so small a model learns sooner from larger embeddings
        world.transformer.table.weight.mul_(5)
        world.transformer.gpt.positions.mul_(5)
    optimizer = torch.optim.AdamW(
        [p for p in world.parameters() if p.requires_grad], lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0
    )
    rng = np.random.default_rng(0)
    for step in range(updates):
        columns, keys = walk(rng, (32, WINDOW))
        ids = action_ids(keys)
        actions = {name: ids[..., part] for name, part in SPACE.slices.items()}
        batch = window_batch(torch.zeros(32, WINDOW, 0), actions)
        del batch["frames"]
        batch["tokens"] = picture_ids(columns)
        if step == 0:
            world._keep_starts(world.sequence(batch["tokens"], batch), world.counted(batch))
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20, 2 * (updates - step) / updates)
        optimizer.zero_grad()
        world.loss(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(world.parameters(), 1.0)
        optimizer.step()
    return world.eval()


def write_recordings(root: Path, count: int, steps: int, seed: int = 1) -> Path:
    """Recordings of random play."""
    columns, keys = walk(np.random.default_rng(seed), (count, steps))
    for i in range(count):
        with RecordingWriter(root / f"rec_{i}", size=SIZE) as writer:
            for column, key in zip(columns[i], keys[i], strict=True):
                writer.add(frame(column), user={"keys": KEYS[key]})
    return root
