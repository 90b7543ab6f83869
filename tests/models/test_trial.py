"""Parts of the user's own that return the wrong thing are refused before training, with what they have to return."""

import pytest
import torch
from tiny import tiny_policy

from bczoo import ActionDecoder, CNNPolicy, ImageEncoder, PolicyTransformer
from bczoo.core.errors import UserError
from bczoo.models.trial import check_forward


class TensorDecoder(ActionDecoder):
    def forward(self, latents, embedded):
        return latents


class HalfDecoder(ActionDecoder):
    def forward(self, latents, embedded):
        return dict(list(super().forward(latents, embedded).items())[:1])


class FlatEncoder(ImageEncoder):
    def forward(self, frames):
        return super().forward(frames)[:, 0]


class NarrowTransformer(PolicyTransformer):
    def forward(self, x, layout):
        return super().forward(x, layout)[..., :-1]


class FailingEncoder(ImageEncoder):
    def forward(self, frames, mask):
        return super().forward(frames)


class OwnDecoder(ActionDecoder):
    """One that is as it should be."""


class ListPolicy(CNNPolicy):
    def logits_from(self, encoded, batch):
        return list(super().logits_from(encoded, batch).values())


def with_part(part, cls):
    policy = tiny_policy()
    module = getattr(policy, part)
    module.__class__ = cls
    return policy


@pytest.mark.parametrize(
    ("part", "cls", "line"),
    [
        ("decoder", TensorDecoder, r"TensorDecoder: a decoder has to return a dict of logits .*returned a tensor"),
        ("decoder", HalfDecoder, r"HalfDecoder: a decoder has to return a dict of logits .*returned \{\w+: a tensor"),
        (
            "encoder",
            FlatEncoder,
            r"FlatEncoder: an encoder has to return a tensor \(N, I, D\).*returned a tensor \(2, ",
        ),
        ("transformer", NarrowTransformer, r"NarrowTransformer: a transformer has to return a tensor \(B, L, D\)"),
        ("encoder", FailingEncoder, r"FailingEncoder failed on a window of zeros, before training: TypeError"),
    ],
)
def test_a_part_that_returns_the_wrong_thing_is_refused(part, cls, line):
    with pytest.raises(UserError, match=line):
        with_part(part, cls).setup("fit")


def test_a_family_that_returns_the_wrong_thing_is_refused():
    policy = CNNPolicy(width=32, layers=1, heads=2, window=4)
    policy.__class__ = ListPolicy
    with pytest.raises(UserError, match=r"ListPolicy: a policy has to return a dict of logits.*returned a list"):
        check_forward(policy)


def test_a_right_part_passes_and_nothing_is_changed():
    policy = with_part("decoder", OwnDecoder)
    policy.train()
    policy.encoder.eval()  # as a frozen one is
    state, generator = {k: v.clone() for k, v in policy.state_dict().items()}, torch.get_rng_state()
    check_forward(policy)
    assert policy.training and policy.decoder.training and not policy.encoder.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, state[k]) for k, v in policy.state_dict().items())
    assert not any(m._forward_hooks for m in policy.modules())


def test_policies_of_bczoo_alone_are_not_tried(monkeypatch):
    policy = tiny_policy()
    monkeypatch.setattr(type(policy), "logits", lambda *_: pytest.fail("a forward pass of a policy that is known"))
    check_forward(policy)
