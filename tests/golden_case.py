"""The golden policy: weights and inputs by formula, expected values from files.

``golden_tensor`` and ``golden_inputs`` follow the formulas that the expected values were computed with; streams of
numpy's legacy RandomState are frozen, so nothing but the results is stored.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from bczoo import ActionDecoder, Agent, BCPolicy, ImageEncoder, PolicyTransformer
from bczoo.hub import open_p2p

FOLDER = Path(__file__).parent / "golden"
SEED, BATCH, STEPS = 20260, 2, 6
GROUPS = {
    "keys": "keys",
    "mouse_buttons": "mouse_buttons",
    "mouse_dx": "mouse_delta_x",
    "mouse_dy": "mouse_delta_y",
}


@cache
def expected() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden_public.safetensors")


@cache
def results() -> dict:
    return json.loads((FOLDER / "golden_public.json").read_text())["results"]


def by_group(prefix: str) -> dict[str, torch.Tensor]:
    """Expected tensors of all groups under our group names."""
    return {ours: expected()[f"{prefix}.{theirs}"] for ours, theirs in GROUPS.items()}


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of the published state_dict entry ``name``."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(shape)
    learned = ("_embedding.weight", "_tokens", "_token", "text_embedding_for_no_text_input")
    if name.endswith(("running_mean", ".bias")):
        value = 0.02 * r
    elif name.endswith("running_var"):
        value = 1.0 + 0.1 * np.abs(r)
    elif name.endswith(".scale") or (name.endswith(".weight") and len(shape) == 1):
        value = 1.0 + 0.1 * r
    elif name.endswith("_sinks"):
        value = 0.5 * r
    elif name.endswith(learned):
        value = 0.1 * r
    elif len(shape) == 4:
        value = r * np.sqrt(2.75 / float(np.prod(shape[1:])))
    else:
        value = r * np.sqrt(1.0 / float(shape[1]))
    return np.asarray(value, dtype=np.float32)


def golden_frames(seed: int, batch: int, steps: int) -> np.ndarray:
    """uint8 (B, T, 3, 192, 192): 24x24 random blocks blown up 8 times, plus pixel noise."""
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (batch, steps, 3, 24, 24), dtype=np.int64)
    noise = rng.randint(0, 32, (batch, steps, 3, 192, 192), dtype=np.int64)
    return (coarse.repeat(8, axis=-1).repeat(8, axis=-2) * 7 // 8 + noise).astype(np.uint8)


def close(ours, theirs, atol=2e-5, rtol=0) -> None:
    """Assert that values are equal to golden ones within tolerance, whatever their types."""
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol, check_dtype=False)


def assert_plays_as_expected(agent: Agent) -> None:
    """Greedy play past the wrap of the window: ids exactly, decisions and probabilities within tolerance."""
    logits = by_group("online.logits")
    for t, frame in enumerate(online_frames(15)):
        decision = agent.step(frame)
        ids = [i for group in GROUPS for i in decision.ids[group]]
        assert ids == expected()["online.action_ids"][t].tolist(), t
        close(agent.session.latent[0], expected()["online.action_out_token"][t])
        for name, theirs in logits.items():
            close(torch.from_numpy(decision.probabilities[name]), theirs[t].softmax(-1))


def online_frames(count: int) -> np.ndarray:
    return golden_frames(SEED + 5, 1, count)[0]


@cache
def inputs() -> dict:
    """Frames, actions, text, mask of the steps that count of the teacher-forced case."""
    r1, r2, r3, r4 = (np.random.RandomState(SEED + i) for i in (1, 2, 3, 4))
    shape = (BATCH, STEPS)
    actions = {
        "keys": r1.randint(0, 20, (*shape, 4), dtype=np.int64),
        "mouse_buttons": r1.randint(0, 4, (*shape, 2), dtype=np.int64),
        "mouse_dx": r1.randint(0, 23, (*shape, 1), dtype=np.int64),
        "mouse_dy": r1.randint(0, 17, (*shape, 1), dtype=np.int64),
    }
    text = r2.standard_normal((*shape, 1, 768)).astype(np.float32)
    has_text = r3.randint(0, 2, shape, dtype=np.int64).astype(bool)
    has_text[:, 0], has_text[:, -1] = False, True
    text[~has_text] = 0.0
    user = r4.randint(0, 4, shape, dtype=np.int64) > 0
    user[:, 0], user[:, 1] = True, False
    user[-1, -1] = False  # a padded step
    return {
        "frames": torch.from_numpy(golden_frames(SEED, *shape)),
        "actions": {k: torch.from_numpy(v) for k, v in actions.items()},
        "text": torch.from_numpy(text[:, :, 0]),
        "mask": torch.from_numpy(user),
    }


def published_names(policy: BCPolicy) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our state_dict names to the published ones, with the published shapes, which the package's are held against."""
    shapes = {
        e["name"]: tuple(e["shape"]) for e in json.loads((FOLDER / "golden_public.json").read_text())["state_dict"]
    }
    names = {ours: (theirs, shapes[theirs]) for ours, theirs in open_p2p.reference_names(policy).items()}
    for ours, tensor in policy.state_dict().items():
        theirs, shape = names[ours]
        assert open_p2p.reference_shape(ours, tuple(tensor.shape)) == shape, theirs
    return names


def golden_policy(attention: str = "sdpa") -> BCPolicy:
    """The golden policy with its formula weights, in evaluation mode."""
    policy = BCPolicy(
        PolicyTransformer(width=64, layers=3, heads=4, attention=attention),
        lambda width: ImageEncoder(width, pretrained=False),
        lambda width, space: ActionDecoder(width, space, layers=3, heads=8),
        window=STEPS,
    )
    own = policy.state_dict()
    weights = {
        ours: torch.from_numpy(golden_tensor(theirs, shape)).reshape(own[ours].shape)
        for ours, (theirs, shape) in published_names(policy).items()
    }
    policy.load_state_dict(weights)
    return policy.eval()
