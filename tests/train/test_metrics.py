"""Metrics of logits against loops over single tokens, in one process and over two."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes

from bczoo.causality.metrics import CausalityMetrics, divergence
from bczoo.causality.scores import kl
from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup
from bczoo.train.loss import bc_loss
from bczoo.train.metrics import ActionMetrics, StepMeans

SPACE = ActionSpace(
    "small", (HeldGroup("keys", ("_none", "w", "a", "d"), tokens=2), BinnedGroup("turn", (-1.0, 1.0), low=-9, high=9))
)


def random_batch(seed, batch=3, steps=7):
    """Logits, ids that often stay the same, and the mask of the steps that count."""
    torch.manual_seed(seed)
    ids, logits = {}, {}
    for g in SPACE.groups:
        ids[g.name] = torch.randint(0, g.choices, (batch, steps, g.tokens))
        for t in range(1, steps):
            stays = torch.rand(batch) < 0.6
            ids[g.name][stays, t] = ids[g.name][stays, t - 1]
        logits[g.name] = 2 * torch.randn(batch, steps, g.tokens, g.choices)
    return logits, ids, torch.rand(batch, steps) < 0.7


def mean(values):
    return sum(values) / len(values) if values else math.nan


def slow(batches):
    """All metrics by their definitions, token by token."""
    seen = defaultdict(list)
    for logits, actions, mask in batches:
        p = {name: group.double().softmax(-1).tolist() for name, group in logits.items()}
        ids = {name: group.tolist() for name, group in actions.items()}
        for b, row in enumerate(mask.tolist()):
            for t, counts in enumerate(row):
                followed = counts and t > 0 and row[t - 1]
                changed = followed and any(group[b][t] != group[b][t - 1] for group in ids.values())
                for g in SPACE.groups if counts else ():
                    for n in range(g.tokens):
                        now, at = ids[g.name][b][t][n], p[g.name][b][t][n]
                        seen[g.name, "ids", n].append(now)
                        seen[g.name, "nats"].append(-math.log(at[now]))
                        seen[g.name, "hit"].append(at.index(max(at)) == now)
                        if changed:
                            seen[g.name, "change nats"].append(-math.log(at[now]))
                            seen[g.name, "change hit"].append(at.index(max(at)) == now)
                            seen[g.name, "change again"].append(now == ids[g.name][b][t - 1][n])
                        if followed:
                            before = ids[g.name][b][t - 1][n]
                            seen[g.name, "again"].append(now == before)
                            seen[g.name, "persistence"].append(at[before] - (now == before))
    out = {}
    for g in SPACE.groups:
        entropies = []
        for n in range(g.tokens):
            shares = [seen[g.name, "ids", n].count(i) / len(seen[g.name, "ids", n]) for i in range(g.choices)]
            entropies.append(-sum(s * math.log(s) for s in shares if s))
        out |= {
            f"perplexity/{g.name}": math.exp(mean(seen[g.name, "nats"])),
            f"relative_cross_entropy/{g.name}": mean(seen[g.name, "nats"]) / mean(entropies),
            f"accuracy/{g.name}": mean(seen[g.name, "hit"]),
            f"change_perplexity/{g.name}": math.exp(mean(seen[g.name, "change nats"])),
            f"change_accuracy/{g.name}": mean(seen[g.name, "change hit"]),
            f"repeat_accuracy/{g.name}": mean(seen[g.name, "again"]),
            f"change_repeat_accuracy/{g.name}": mean(seen[g.name, "change again"]),
            f"persistence/{g.name}": mean(seen[g.name, "persistence"]),
        }
    return out


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_of_the_epoch_are_those_of_single_tokens():
    batches = [random_batch(seed, batch=seed + 1) for seed in range(3)]
    batches.append((*random_batch(9)[:2], torch.zeros(3, 7, dtype=torch.bool)))
    metrics = ActionMetrics(SPACE)
    for logits, ids, mask in batches:
        metrics.update(logits, ids, mask)
    out, expected = metrics.compute(), slow(batches)
    together = [{k: torch.cat([b[i][k] for b in batches]) for k in batches[0][i]} for i in (0, 1)]
    expected["loss"] = bc_loss(*together, torch.cat([b[2] for b in batches])).total.item()
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        assert out[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    metrics.reset()
    assert all(value.isnan() for value in metrics.compute().values())


def test_a_change_needs_a_counted_step_before_it_and_repeating_is_counted_by_hand():
    """One key of a single group over eight steps; step 4 does not count."""
    space = ActionSpace("keys", (HeldGroup("keys", ("_none", "w", "a", "d"), tokens=1),))
    ids = torch.tensor([1, 1, 2, 2, 3, 1, 1, 2]).view(1, 8, 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1]]).bool()
    metrics = ActionMetrics(space)
    metrics.update({"keys": torch.nn.functional.one_hot(ids, 4) * 3.0}, {"keys": ids}, mask)
    out = metrics.compute()
    # followed steps 1 2 3 6 7, of which 1 3 6 repeat; changes are 2 and 7
    assert out["repeat_accuracy/keys"].item() == pytest.approx(3 / 5)
    assert out["change_repeat_accuracy/keys"].item() == 0
    assert out["accuracy/keys"].item() == out["change_accuracy/keys"].item() == 1
    again = math.exp(3) / (math.exp(3) + 3)
    other = 1 / (math.exp(3) + 3)
    assert out["persistence/keys"].item() == pytest.approx((3 * again + 2 * other) / 5 - 3 / 5)


def sticky(windows=40, steps=500, stays=0.8):
    """Windows of a chain over three states and its true conditional probabilities, (B, T, 1) and (B, T, 1, 3)."""
    rng = np.random.default_rng(0)
    states = np.zeros((windows, steps), int)
    states[:, 0] = rng.integers(0, 3, windows)
    for t in range(1, steps):
        moves = rng.random(windows) >= stays
        states[:, t] = (states[:, t - 1] + moves * rng.integers(1, 3, windows)) % 3
    return torch.from_numpy(states)[..., None]


def chain_logits(ids, stays):
    before = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
    p = torch.full((3, 3), (1 - stays) / 2).fill_diagonal_(stays)
    return p.log()[before]


@pytest.mark.parametrize(("believed", "expected"), [(0.8, 0.0), (0.95, 0.15), (0.5, -0.3)])
def test_persistence_is_zero_for_a_calibrated_policy_and_positive_for_one_that_repeats_too_much(believed, expected):
    ids = sticky()
    space = ActionSpace("turn", (BinnedGroup("turn", (-1.0, 1.0), low=-9, high=9),))
    metrics = ActionMetrics(space)
    metrics.update({"turn": chain_logits(ids, believed)}, {"turn": ids}, torch.ones(ids.shape[:2]).bool())
    assert metrics.compute()["persistence/turn"].item() == pytest.approx(expected, abs=0.01)


def test_relative_cross_entropy_is_one_for_frequencies_alone_and_zero_for_certainty():
    _, ids, mask = random_batch(4, batch=6)
    frequencies, certain = {}, {}
    for g in SPACE.groups:
        ones = torch.nn.functional.one_hot(ids[g.name], g.choices).float()
        frequencies[g.name] = ones[mask].mean(0).log().expand(ones.shape)
        certain[g.name] = ones * 100
    for logits, expected in ((frequencies, 1.0), (certain, 0.0)):
        metrics = ActionMetrics(SPACE)
        metrics.update(logits, ids, mask)
        out = metrics.compute()
        for g in SPACE.groups:
            assert out[f"relative_cross_entropy/{g.name}"].item() == pytest.approx(expected, abs=1e-5)


def test_a_group_that_never_changes_has_no_relative_cross_entropy():
    logits, ids, mask = random_batch(4)
    ids["turn"][:] = 1
    metrics = ActionMetrics(SPACE)
    metrics.update(logits, ids, mask)
    out = metrics.compute()
    assert out["relative_cross_entropy/turn"].isnan() and not out["relative_cross_entropy/keys"].isnan()


def test_every_name_has_a_mean_over_its_own_steps():
    torch.manual_seed(0)
    metrics = StepMeans({"score": (), "shares": (2,), "never": ()})
    values, shares = torch.randn(2, 3, 4), torch.randn(2, 3, 4, 2)
    where, elsewhere = torch.rand(2, 3, 4) < 0.5, torch.rand(2, 3, 4) < 0.5
    values[0, ~where[0]] = torch.nan  # what does not count may be anything
    metrics.update({"score": (values[0], where[0]), "shares": (shares[0], elsewhere[0])})
    metrics.update({"score": (values[1], where[1])})
    out = metrics.compute()
    torch.testing.assert_close(out["score"], values[where].mean())
    torch.testing.assert_close(out["shares"], shares[0][elsewhere[0]].mean(0))
    assert out["never"].isnan()


def test_scores_of_a_policy_that_is_no_bcpolicy():
    """Two sets of logits are all that causality needs."""
    torch.manual_seed(0)
    frames, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    heads = {g.name: torch.nn.Linear(8, g.tokens * g.choices) for g in SPACE.groups}

    def predict(x):
        return {g.name: heads[g.name](x).unflatten(-1, (g.tokens, g.choices)) for g in SPACE.groups}

    _, ids, _ = random_batch(0, 2, 5)
    mask = torch.ones(2, 5).bool()
    mask[0, 3:] = False
    logits, instead = predict(frames), predict(other)
    actions, causality = ActionMetrics(SPACE), CausalityMetrics(SPACE, reliance=False)
    actions.update(logits, ids, mask)
    causality.update(divergence("causality", kl(logits, instead), mask))
    out, expected = actions.compute(), slow([(logits, ids, mask)])
    assert out["perplexity/keys"].item() == pytest.approx(expected["perplexity/keys"], rel=1e-5)
    nats = []
    for b, t in mask.nonzero().tolist():
        of_step = 0.0
        for g in SPACE.groups:
            p, q = (x[g.name][b, t].double().softmax(-1) for x in (logits, instead))
            of_step += (p * (p / q).log()).sum().item()
        nats.append(of_step)
    assert causality.compute()["causality"].item() == pytest.approx(mean(nats), rel=1e-5)
    assert "visual_share" not in causality.compute()


def test_visual_share_compares_the_means():
    metrics = CausalityMetrics(SPACE, ["blank", "swap"])
    one = torch.ones(1, 4)
    mask, some = torch.ones(1, 4).bool(), torch.tensor([[True, False, False, False]])
    metrics.update({"causality": (3 * one, some), "causality_swap": (9 * one, mask)})
    metrics.update({"action_reliance": (one, mask)})
    out = metrics.compute()
    assert out["visual_share"].item() == 0.75 and out["causality_swap"].item() == 9
    for nothing in (0.0, 1e-9, 2e-4):  # rounding errors are nothing too
        still = CausalityMetrics(SPACE)
        still.update({"causality": (nothing * one, mask), "action_reliance": (0 * one, mask)})
        assert still.compute()["visual_share"].isnan()


# ---------------------------------------------------------------------- several processes


def share_of(case, rank):
    """Batches of a rank; None for all ranks together."""
    masked = (*random_batch(20)[:2], torch.zeros(3, 7, dtype=torch.bool))
    cases = {
        "uneven": ([random_batch(0), random_batch(1, batch=1), masked], [random_batch(2, batch=5)]),
        "one rank counts nothing": ([random_batch(3)], [masked]),
        "one rank has no batch": ([], [random_batch(4), random_batch(5, batch=2)]),
    }
    return [*cases[case][0], *cases[case][1]] if rank is None else cases[case][rank]


CASES = ("uneven", "one rank counts nothing", "one rank has no batch")


def reduce(case, rank):
    actions, causality = ActionMetrics(SPACE), CausalityMetrics(SPACE, ["swap", "blank"])
    for logits, ids, mask in share_of(case, rank):
        actions.update(logits, ids, mask)
        instead = {name: group.flip(1) for name, group in logits.items()}
        measures = divergence("causality", kl(logits, instead), mask)
        measures |= divergence("causality_blank", kl(logits, instead), mask & (torch.arange(7) > 3))
        causality.update(measures | divergence("action_reliance", kl(instead, logits), mask))
    return actions.compute() | causality.compute()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save({case: reduce(case, rank) for case in CASES}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_what_one_with_all_batches_gives(tmp_path):
    in_two_processes(run_rank, str(tmp_path))
    for rank in range(2):
        reduced = torch.load(tmp_path / f"{rank}.pt")
        for case in CASES:
            expected = reduce(case, None)
            assert not any(value.isnan() for value in expected.values())
            assert reduced[case].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(reduced[case][name], value, rtol=1e-5, atol=1e-6)
