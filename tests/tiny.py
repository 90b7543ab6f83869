"""A tiny policy and batches for tests: the real parts, under a million parameters, 64-pixel frames."""

from __future__ import annotations

from functools import partial

import torch

from bczoo import ActionDecoder, ActionSpace, BCPolicy, ImageEncoder, PolicyTransformer

SIZE = 64


def tiny_policy(seed=0, encoder=None, transformer=None, decoder=ActionDecoder, **arguments) -> BCPolicy:
    torch.manual_seed(seed)
    encoder = {"backbone": "test_efficientnet", "frame_size": SIZE, "pretrained": False, "drop_path": 0.0} | (
        encoder or {}
    )
    transformer = {"width": 32, "layers": 2, "heads": 4, "dropout": 0.0} | (transformer or {})
    arguments = {"window": 5, "text_dim": 16} | arguments
    return BCPolicy(PolicyTransformer(**transformer), partial(ImageEncoder, **encoder), decoder, **arguments)


def random_actions(space: ActionSpace, batch: int, steps: int) -> dict[str, torch.Tensor]:
    return {g.name: torch.randint(0, g.choices, (batch, steps, g.tokens)) for g in space.groups}


def tiny_batch(policy: BCPolicy, batch=2, steps=5, seed=0) -> dict:
    torch.manual_seed(seed)
    text = torch.randn(batch, steps, policy.input_spec.text_dim or 1)
    text[:, ::2] = 0
    return {
        "frames": torch.randint(0, 256, (batch, steps, 3, SIZE, SIZE), dtype=torch.uint8),
        "actions": random_actions(policy.action_space, batch, steps),
        **({"text": text} if policy.input_spec.text_dim else {}),
        "user": torch.ones(batch, steps, dtype=torch.bool),
        "system": torch.zeros(batch, steps, dtype=torch.bool),
        "valid": torch.ones(batch, steps, dtype=torch.bool),
        "recording": torch.arange(batch),
        "start": torch.zeros(batch, dtype=torch.long),
    }
