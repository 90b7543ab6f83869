"""The codebook: nearest codes, gradients, running means, codes that die, several processes."""

from __future__ import annotations

import pytest
import torch
from processes import in_two_processes
from torch import distributed

from bczoo.core.errors import UserError
from bczoo.models.tokenizer import quantiser
from bczoo.models.tokenizer.quantiser import Quantiser

pytestmark = pytest.mark.usefixtures("one_thread")


def made(codes=16, width=4, seed=0, **options) -> Quantiser:
    torch.manual_seed(seed)
    return Quantiser(codes, width, **options)


def vectors(count=64, width=4, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


ALL = torch.ones(64, dtype=torch.bool)


@pytest.mark.parametrize("unit_length", [False, True])
def test_the_nearest_code_is_found_in_pieces(unit_length, monkeypatch):
    one = made(unit_length=unit_length)
    found = one.nearest(vectors())
    a, b = (torch.nn.functional.normalize(t, dim=-1) if unit_length else t for t in (vectors(), one.codebook))
    assert torch.equal(found, torch.cdist(a, b).argmin(-1))
    monkeypatch.setattr(quantiser, "AT_ONCE", 5 * 16)
    assert torch.equal(one.nearest(vectors()), found)


def test_no_more_distances_are_in_memory_than_there_are_vectors_and_codes():
    """A broadcast over the width would take d times as much."""
    one, sizes = made(codes=128, width=32), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Sizes():
        one(vectors(200, 32), torch.ones(200, dtype=torch.bool))
    assert max(sizes) == 200 * 128


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_the_gradient_passes_straight_through(learning):
    """It is that of the codes, by finite differences, as if the vectors had been the codes."""
    one = made(learning=learning, commitment=0.0).eval().double()
    at = vectors(6).double().requires_grad_()
    weight = vectors(6, seed=2).double()

    def value(codes):
        return ((codes * weight).sin()).sum()

    out = one(at, ALL[:6])
    value(out.codes.double()).backward()
    codes, step = one.lookup(out.ids), 1e-4
    for place in ((0, 0), (3, 2), (5, 3)):
        moved = torch.zeros_like(codes)
        moved[place] = step
        slope = (value(codes + moved) - value(codes - moved)) / (2 * step)
        assert at.grad[place].item() == pytest.approx(slope.item(), rel=1e-4)


def test_the_commitment_is_weighted_and_moves_vectors_alone():
    one = made(learning="gradient", commitment=0.25, restart=0.0)
    at = vectors().requires_grad_()
    out = one(at, ALL)
    apart = (at - one.lookup(out.ids)).square().mean(-1)
    torch.testing.assert_close(out.loss, 1.25 * apart)
    out.loss.sum().backward()
    torch.testing.assert_close(at.grad, 0.25 * 2 * (at - one.lookup(out.ids)).detach() / 4)
    assert one.codebook.grad.abs().sum() > 0
    assert not made(learning="ema")(vectors(), ALL).loss.requires_grad


def test_running_means_are_those_of_the_batches():
    one = made(decay=0.75, restart=0.0)
    counts, sums = torch.zeros(16), torch.zeros(16, 4)
    for seed in range(3):
        batch = vectors(seed=seed)
        ids = one.nearest(batch)
        counts = 0.75 * counts + 0.25 * torch.bincount(ids, minlength=16)
        sums = 0.75 * sums + 0.25 * torch.stack([batch[ids == code].sum(0) for code in range(16)])
        before = one.codebook.clone()
        one(batch, ALL)
    torch.testing.assert_close(one.counts, counts)
    chosen = counts > 0
    torch.testing.assert_close(one.codebook[chosen], sums[chosen] / counts[chosen, None])
    assert torch.equal(one.codebook[~chosen], before[~chosen])


def test_pictures_that_do_not_count_are_not_learned_from():
    counted = torch.arange(64) < 32
    odd = vectors()
    odd[~counted] = 1000.0
    one, other = made(), made()
    torch.manual_seed(5)
    one(odd, counted)
    torch.manual_seed(5)
    other(odd[counted], counted[counted])
    assert one.codebook.abs().max() < 100 and one.counts.sum() == pytest.approx(other.counts.sum().item())


def test_evaluation_leaves_the_codebook_as_it_is():
    one = made().eval()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    one(vectors(), ALL)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_the_first_batch_fills_the_codebook_and_dead_codes_come_back(learning):
    one = made(learning=learning)
    one(vectors(), ALL)
    assert len(one.nearest(vectors()).unique()) == 16
    with torch.no_grad():
        one.codebook[3:] = 1e3  # nobody will choose these
    for seed in range(800):
        one(vectors(seed=seed % 7), ALL)
        if one.codebook.abs().max() < 100:
            break
    assert one.codebook.abs().max() < 100 and len(one.nearest(vectors()).unique()) > 12


def test_more_dead_codes_than_vectors_are_replaced_one_after_the_other():
    one = made(codes=100)
    one(vectors(), ALL)
    assert len(one.codebook.unique(dim=0)) == 100, "no two codes were put on the same vector"
    assert (one.counts > 0).sum() == 64
    one(vectors(seed=3), ALL)
    assert (one.counts > 0).sum() == 100


def test_none_is_replaced_where_that_is_off():
    one = made(restart=0.0, learning="gradient")
    before = one.codebook.clone()
    one(vectors(), ALL)
    assert torch.equal(one.codebook, before)


def test_a_copy_goes_on_in_the_same_way():
    one, other = made(), made(seed=9)
    one(vectors(), ALL)
    other.load_state_dict(one.state_dict())
    for both in (one, other):
        torch.manual_seed(4)
        both(vectors(seed=2), ALL)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_bfloat16_changes_no_id():
    one, batch = made(codes=512, width=32), vectors(256, 32)
    plain = one.nearest(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one.nearest(batch), plain)
        out = one.eval()(batch, torch.ones(256, dtype=torch.bool))
    assert torch.equal(out.ids, plain) and out.codes.dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"learning": "kmeans"}, {"decay": 1.0}, {"commitment": -1}, {"restart": 2}])
def test_arguments_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        made(**wrong)


def _process(rank, address, results):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    one = made()
    for step in range(3):
        half = vectors(seed=step).chunk(2)[rank]
        torch.manual_seed(rank)  # processes draw other numbers
        one(half, ALL[:32])
    torch.save(one.state_dict(), f"{results}/{rank}")
    distributed.destroy_process_group()


def test_two_processes_keep_the_codebook_of_their_batches_together(tmp_path):
    in_two_processes(_process, f"file://{tmp_path}/meet", str(tmp_path))
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = made()
    for step in range(3):
        whole = vectors(seed=step)
        torch.manual_seed(0)
        if step == 0:  # codes are put on vectors of the first process
            alone._replace(whole[:32], ALL[:32])
            alone.counts.mul_(2)
            alone.sums.mul_(2)
        alone.restart = 0.0
        alone(whole, ALL)
    torch.testing.assert_close(first["counts"], alone.counts)
    torch.testing.assert_close(first["codebook"], alone.codebook)
