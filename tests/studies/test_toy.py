"""The toy world: its statistics, learning by hand against torch, batching, and the verdict in both directions."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from bczoo.cli import main
from bczoo.core.configs import find
from bczoo.core.errors import UserError
from bczoo.studies.toy import (
    APPEARS,
    GOES,
    INPUTS,
    PROBES,
    Curves,
    Settings,
    Stack,
    World,
    compare_batching,
    correctness,
    judge,
    network,
    optimal_correctness,
    study_toy,
    train,
)

SMALL = {
    "steps": 2000,
    "replicas": 2,
    "batch": 10,
    "every": 500,
    "width": 10,
    "depths": (0, 1, 3),
    "linear_bias": False,
    "learning_rate": 1e-4,
    "seed": 0,
    "compare_steps": 1000,
}


def settings(**options):
    return Settings(**SMALL | options)


def test_world_has_the_papers_statistics():
    observations, brakes = World(seed=0, replica=0).drive(400_000)
    obstacle, light, distractors = observations[:, 0], observations[:, 1], observations[:, 2:]
    assert obstacle.mean() == pytest.approx(APPEARS / (APPEARS + GOES), abs=0.01)  # 0.8, where both balance
    assert obstacle[1:][obstacle[:-1] == 0].mean() == pytest.approx(0.1, abs=0.004)
    assert 1 - obstacle[1:][obstacle[:-1] == 1].mean() == pytest.approx(0.025, abs=0.001)
    assert set(np.unique(obstacle)) == {0, 1}
    assert (brakes == obstacle).all()
    assert light[0] == 0 and (light[1:] == brakes[:-1]).all()
    assert distractors.min() >= 0 and distractors.max() < 1
    np.testing.assert_allclose(distractors.mean(axis=0), 0.5, atol=0.003)
    np.testing.assert_allclose(np.cov(distractors.T) * 12, np.eye(3), atol=0.01)
    assert abs(np.corrcoef(distractors[:, 0], obstacle)[0, 1]) < 0.01


def test_world_is_the_same_however_much_is_asked_for_at_once():
    whole, pieces = World(3, 1), World(3, 1)
    observations, brakes = whole.drive(1000)
    parts = [pieces.drive(n) for n in (1, 99, 250, 650)]
    np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), observations)
    np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), brakes)


def test_replicas_and_seeds_have_their_own_worlds_and_weights():
    drives = [World(seed, replica).drive(50)[0] for seed, replica in ((0, 0), (0, 1), (1, 0))]
    weights = [network(2, 10, seed, replica)[0].weight for seed, replica in ((0, 0), (0, 1), (1, 0))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(drives[i], drives[j])
        assert not torch.equal(weights[i], weights[j])


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_networks_are_those_of_the_paper(depth):
    one = network(depth, 10, seed=0, replica=0)
    linears = [m for m in one if isinstance(m, nn.Linear)]
    assert len(linears) == depth + 1
    assert sum(isinstance(m, nn.ReLU) for m in one) == depth
    assert all(m.out_features == 10 for m in linears[:-1]) and linears[-1].out_features == 1
    assert all((m.bias is None) == (depth == 0) for m in linears)


def test_linear_network_can_have_a_bias():
    (linear,) = network(0, 10, seed=0, replica=0, linear_bias=True)
    assert linear.bias is not None
    stack = Stack([[nn.Sequential(linear)]], 10, 0.1)
    learn_once(stack, *World(0, 0).drive(100))
    assert stack.logits(np.zeros((1, INPUTS))).item() != linear.bias.item()


def test_drawing_networks_leaves_torchs_random_numbers_alone():
    before = torch.random.get_rng_state()
    network(2, 10, seed=0, replica=0)
    assert torch.equal(before, torch.random.get_rng_state())


def learn_once(stack, observations, brakes):
    """One update of a stack with a single replica."""
    stack.update(observations[None], brakes[None])


def learn_by_autograd(one, observations, brakes, learning_rate):
    """Plain SGD, one sample an update."""
    one.double()
    optimizer = torch.optim.SGD(one.parameters(), lr=learning_rate)
    loss = nn.BCEWithLogitsLoss()
    for x, y in zip(torch.from_numpy(observations), torch.from_numpy(brakes), strict=True):
        optimizer.zero_grad()
        loss(one(x), y[None]).backward()
        optimizer.step()


def test_stack_learns_as_torch_does_one_by_one():
    rows = [[network(depth, 10, seed=0, replica=r) for r in range(2)] for depth in (2, 0, 1, 3)]
    learning_rate = 0.1  # weights move far
    stack = Stack(rows, 10, learning_rate)
    worlds = [World(0, r).drive(300) for r in range(2)]
    before = stack.logits(PROBES)
    for t in range(300):
        stack.update(np.stack([w[0][t : t + 1] for w in worlds]), np.stack([w[1][t : t + 1] for w in worlds]))
    after = stack.logits(PROBES)
    for d, row in enumerate(rows):
        for r, one in enumerate(row):
            learn_by_autograd(one, *worlds[r], learning_rate)
            with torch.no_grad():
                expected = one(torch.from_numpy(PROBES))[:, 0].numpy()
            np.testing.assert_allclose(after[d, r], expected, rtol=1e-9)
            assert np.abs(after[d, r] - before[d, r]).max() > 0.5


def test_curves_are_those_of_each_replica_on_its_own_world():
    options = settings(depths=(2, 0), learning_rate=0.05, every=100)
    curves = train(options, 300, 10)
    assert curves.steps.tolist() == [0, 100, 200, 300]
    for r in range(2):
        world, stack = World(0, r), Stack([[network(d, 10, 0, r)] for d in (2, 0)], 10, 0.05)
        for point in range(4):
            usual = PROBES + np.array([0, 0, 0.5, 0.5, 0.5])
            np.testing.assert_allclose(curves.correctness[point, :, r], correctness(stack.logits(PROBES))[:, 0])
            np.testing.assert_allclose(curves.usual[point, :, r], correctness(stack.logits(usual))[:, 0])
            for _ in range(10):
                learn_once(stack, *world.drive(10))


def test_right_is_to_brake_for_the_obstacle_and_not_for_the_light():
    options = settings(depths=(2, 0), learning_rate=0.05, replicas=3, every=1000, steps=20_000)
    assert train(options, 20_000, 10).right.tolist() == [1, 0]


def test_an_update_of_many_samples_is_their_summed_gradient():
    rows = [[network(depth, 10, seed=0, replica=0)] for depth in (0, 2)]
    stack = Stack(rows, 10, 0.01)
    observations, brakes = World(0, 0).drive(40)
    learn_once(stack, observations, brakes)
    for d, (one,) in enumerate(rows):
        one.double()
        logits = one(torch.from_numpy(observations))[:, 0]
        nn.BCEWithLogitsLoss(reduction="sum")(logits, torch.from_numpy(brakes)).backward()
        with torch.no_grad():
            for parameter in one.parameters():
                parameter -= 0.01 * parameter.grad
            expected = one(torch.from_numpy(PROBES))[:, 0].numpy()
        np.testing.assert_allclose(stack.logits(PROBES)[d, 0], expected, rtol=1e-9)


def test_batching_equals_one_sample_an_update_to_first_order():
    """What is left is small, and falls with the batch: there are k - 1 samples that an update does not know of."""
    options = settings(learning_rate=2e-3)
    by_batch = {batch: train(options, 2000, batch).correctness for batch in (1, 5, 20)}
    moved = np.abs(by_batch[1] - by_batch[1][0]).max(axis=(0, 2))
    off = {batch: np.abs(by_batch[batch] - by_batch[1]).max(axis=(0, 2)) for batch in (5, 20)}
    assert (off[20] < 0.02 * moved).all()
    np.testing.assert_allclose(off[20] / off[5], 19 / 4, rtol=0.5)


def test_probes_ask_for_the_obstacle_and_for_the_light():
    assert PROBES.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    logits = np.array([[2.0, -3.0], [0.0, 0.0], [-700.0, 700.0]])
    p = 1 / (1 + np.exp(-logits[:2]))
    np.testing.assert_allclose(correctness(logits)[:2], np.log(p[:, 0]) - np.log(p[:, 1]))
    assert correctness(logits)[2] == pytest.approx(-700)  # stable far out
    assert optimal_correctness() == pytest.approx(10)
    by_light = PROBES @ np.array([0.0, 20, 0, 0, 0]) - 10  # brakes because the light is on
    assert correctness(by_light) == pytest.approx(-10)


def made_up(finals, jitter=0.0, start=0.0, usual=7.0, right=(0, 0.5, 1)):
    """Curves that rise in a straight line to ``finals``, three replicas."""
    rise = np.linspace(0, 1, 11)[:, None, None]
    ends = np.array(finals)[None, :, None] + jitter * np.array([-1.0, 0, 1])
    values = start + rise * (ends - start)
    return Curves(
        np.arange(11) * 100.0, values, np.full_like(values, usual), np.array(right[: len(finals)], dtype=float)
    )


def test_verdict_says_yes_where_the_paper_comes_out():
    verdict = judge([0, 1, 2], made_up([0.1, 2.0, 6.0]))
    assert verdict.by_mean == verdict.by_final == [0, 1, 2]
    assert verdict.deeper_is_faster and verdict.reproduced and verdict.linear_progress is False
    assert verdict.linear_gain == pytest.approx(0.1)
    assert verdict.ahead == {"0-1": 1.0, "1-2": 1.0}
    assert [d.steps_to_one for d in verdict.depths] == [None, 500, 200]
    assert [d.steps_to_half for d in verdict.depths] == [None, None, 900]
    assert verdict.depths[1].mean == pytest.approx([1.0] * 3)
    assert [(d.usual, d.right) for d in verdict.depths] == [(7, 0), (7, 0.5), (7, 1)]


def test_verdict_does_not_depend_on_the_order_given():
    assert judge([2, 0, 1], made_up([6.0, 0.1, 2.0], right=[0.9, 0, 0.5])) == judge(
        [0, 1, 2], made_up([0.1, 2.0, 6.0], right=[0, 0.5, 0.9])
    )


def test_verdict_says_no_where_a_shallower_network_wins():
    verdict = judge([0, 1, 2], made_up([0.1, 6.0, 2.0]))
    assert verdict.by_mean == verdict.by_final == [0, 2, 1]
    assert not verdict.deeper_is_faster and not verdict.reproduced
    assert verdict.ahead == {"0-1": 1.0, "1-2": 0.0}


def test_verdict_says_no_where_the_deeper_network_is_only_better_at_the_end():
    curves = made_up([0.1, 5.0, 6.0])
    curves.correctness[:-1, 2] = 0
    verdict = judge([0, 1, 2], curves)
    assert verdict.by_final == [0, 1, 2] and verdict.by_mean == [0, 2, 1]
    assert not verdict.deeper_is_faster and not verdict.reproduced


def test_verdict_says_no_where_the_linear_network_makes_progress():
    verdict = judge([0, 1, 2], made_up([0.6, 2.0, 6.0]))
    assert verdict.deeper_is_faster and verdict.linear_progress and verdict.reproduced is False
    # a network that was there from the start has gained nothing
    assert judge([0, 1, 2], made_up([0.6, 2.0, 6.0], start=0.6)).linear_progress is False


def test_verdict_without_a_linear_network_leaves_that_open():
    verdict = judge([1, 2], made_up([2.0, 6.0]))
    assert verdict.deeper_is_faster
    assert verdict.linear_gain is verdict.linear_progress is verdict.reproduced is None


def test_verdict_says_no_where_the_deeper_network_only_leads_on_the_way():
    curves = made_up([0.1, 5.0, 6.0])
    curves.correctness[-1, 2] = 4.0
    verdict = judge([0, 1, 2], curves)
    assert verdict.by_final == [0, 2, 1] and verdict.by_mean == [0, 1, 2]
    assert not verdict.deeper_is_faster and not verdict.reproduced


def test_verdict_shows_how_sure_the_order_is():
    verdict = judge([1, 2, 3], made_up([2.0, 2.5, 9.0], jitter=1.0))
    assert verdict.ahead == {"1-2": pytest.approx(6 / 9), "2-3": 1.0}
    assert verdict.unclear == ["1-2"]


def test_difference_of_batching_is_relative_to_the_curves_range():
    whole, prefix = made_up([0.0, 2.0, 6.0]), made_up([0.0, 2.0, 6.0])
    whole.correctness[3, 1, 2] += 0.1
    first = Curves(prefix.steps[:6], prefix.correctness[:6], prefix.usual[:6], prefix.right)
    off = compare_batching(settings(depths=(0, 1, 2)), whole, first)
    assert off.steps == 500
    assert off.nats == {0: 0.0, 1: pytest.approx(0.1), 2: 0.0}
    assert off.relative == {0: 0.0, 1: pytest.approx(0.1), 2: 0.0}  # depth 1 ranges from 0 to 1 so far
    whole.correctness[3, 2, 0] += 0.1
    assert compare_batching(settings(depths=(0, 1, 2)), whole, first).relative[2] == pytest.approx(0.1 / 3)


def test_command_writes_curves_verdict_and_plot(tmp_path, capsys):
    options = ["--steps", "4000", "--every", "1000", "--replicas", "2", "--batch", "20", "--depths", "[0,1,2]"]
    assert main(["study", "toy", *options, "--compare_steps", "2000", "--out", str(tmp_path / "new" / "toy")]) == 0
    printed = capsys.readouterr().out
    assert "| linear, no bias |" in printed and "| depth 2 |" in printed and "Figure 6 reproduced: no." in printed
    assert "2,000 steps: the curves differ by at most" in printed
    content = json.loads((tmp_path / "new" / "toy" / "toy.json").read_text())
    assert content["steps"] == [0, 1000, 2000, 3000, 4000]
    assert content["settings"]["batch"] == 20 and content["settings"]["depths"] == [0, 1, 2]
    assert {d: np.shape(c) for d, c in content["correctness"].items()} == dict.fromkeys("012", (2, 5))
    assert {d: np.shape(c) for d, c in content["usual"].items()} == dict.fromkeys("012", (2, 5))
    assert content["verdict"]["depths"][1]["final"] == pytest.approx(
        [replica[-1] for replica in content["correctness"]["1"]], abs=1e-5
    )
    assert 0 < content["batching"]["relative"]["2"] < 0.05
    assert (tmp_path / "new" / "toy" / "toy.png").read_bytes()[:4] == b"\x89PNG"


def test_a_depth_learns_the_same_beside_other_depths():
    alone = train(settings(depths=(1, 0)), 1000, 10)
    beside = train(settings(depths=(0, 3, 1)), 1000, 10)
    np.testing.assert_allclose(alone.correctness[:, [1, 0]], beside.correctness[:, [0, 2]], rtol=1e-9)


def test_shipped_configuration_holds_the_defaults():
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(study_toy).parameters.items()}
    shipped = yaml.safe_load(find("experiments/toy").read_text())
    assert shipped | {"depths": tuple(shipped["depths"])} == defaults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 30}, "batch must divide every: 30 does not divide 500"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"steps": 2100}, r"steps must be a multiple of every \(500\), got 2100"),
        ({"compare_steps": 300}, "compare_steps must be a multiple of every"),
        ({"compare_steps": 2500}, r"compare_steps must be from 0 to steps \(2000\)"),
        ({"compare_steps": -500}, "compare_steps must be from 0"),
        ({"depths": (2,)}, "two or more different numbers"),
        ({"depths": (1, 1)}, "two or more different numbers"),
        ({"depths": (-1, 1)}, "two or more different numbers"),
        ({"width": INPUTS - 1}, "width must be at least 5"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(UserError, match=message):
        settings(**options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_is_told():
    with pytest.raises(UserError, match="diverged with updates of 10 samples; lower learning_rate or batch"):
        train(settings(learning_rate=1e200), 2000, 10)
