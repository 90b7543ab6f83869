"""Several batches of one optimiser step against one batch that holds them all."""

from functools import partial

import lightning as L
import pytest
import tiny
import torch

from bczoo import ActionDecoder


def whole(batches):
    def joined(*parts):
        if isinstance(parts[0], dict):
            return {k: joined(*(p[k] for p in parts)) for k in parts[0]}
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0]

    return joined(*batches)


def step(batches):
    """Weights after one optimiser step on some batches."""
    decoder = partial(ActionDecoder, dropout=0.0)
    policy = tiny.tiny_policy(
        text_dim=None, encoder={"frozen": True}, decoder=decoder, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    before = {k: v.clone() for k, v in policy.named_parameters()}
    trainer = L.Trainer(max_steps=1, accumulate_grad_batches=len(batches), **tiny.QUIET)
    trainer.fit(policy, torch.utils.data.DataLoader(batches, batch_size=None))
    return {k: v.detach() - before[k] for k, v in policy.named_parameters()}


@pytest.mark.parametrize("evenly", [True, False])
def test_batches_of_a_step_have_equal_weight(evenly):
    batches = [tiny.tiny_batch(tiny.tiny_policy(text_dim=None), seed=i) for i in range(2)]
    for batch in batches:
        batch["user"][:], batch["valid"][:] = True, True
    if not evenly:
        batches[1]["user"][:, 1:] = False
    parts, one = step(batches), step([whole(batches)])
    furthest = max(float((parts[k] - one[k]).abs().max() / (one[k].abs().max() + 1e-6)) for k in one)
    assert furthest < 1e-3 if evenly else furthest > 1e-2, furthest
