"""``bczoo study toy``: the toy world of causal confusion (paper 2601.04575, section 5.1.1, figure 6).

Place in the pipeline: stands alone; a picture of what the measures of :mod:`bczoo.causality` look for, in a world of
five numbers. An expert brakes if and only if there is an obstacle. Beside the obstacle the learner sees the brake
light, which says whether the expert braked one step before and is nearly always right, and three distractors.

All networks of all replicas learn at once, as one stack of weights. A shallower network is a deeper one whose surplus
layers are the identity and stay so: what enters them is never below 0, so that ReLU changes nothing.

Shape legend: D networks of different depth, R replicas, K samples of one update, T steps, P points of a curve,
L hidden layers of the deepest network, U units. A bias is the weight of a last input that is always 1: U + 1 rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.progress import Progress
from bczoo.core.style import BAND, BLUE, DASHES, MUTED, SMALL, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

APPEARS = 0.1  # probability per step that an obstacle comes where there is none
GOES = 0.025  # probability per step that the obstacle goes
DISTRACTORS = 3
INPUTS = 2 + DISTRACTORS  # obstacle, brake light, distractors
# an obstacle while the light is off, and the light while there is no obstacle; without distractors as in the paper,
# and with the distractors that are usual
PROBES: Array = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=float)
USUAL_PROBES: Array = np.array([[1, 0, 0.5, 0.5, 0.5], [0, 1, 0.5, 0.5, 0.5]])
OPTIMAL_WEIGHTS, OPTIMAL_BIAS = (20.0, 0.0, 0.0, 0.0, 0.0), -10.0
TINY = 1e-12  # nats; a curve with a smaller range does not move
CLEAR = 0.75  # of the pairs of replicas must agree with the order of their depths
PANELS = 5  # side by side
PROGRESS = 0.05  # a gain below this share of the optimal linear policy's correctness is none


@dataclass(frozen=True)
class Settings:
    """What is trained and how; raises UserError where it cannot be done.

    Args:
        steps: of the expert that every network learns from, one sample each.
        replicas: networks of every depth, each with its own world and initial weights.
        batch: consecutive samples whose gradients are summed into one update.
        every: steps between two measurements.
        width: units of a hidden layer.
        depths: hidden layers of the networks; 0 is linear.
        linear_bias: give the linear network a bias, which the paper's has not.
        learning_rate: of plain SGD, per sample.
        seed: of worlds and initial weights.
        compare_steps: so many first steps are learned once more with one update per sample; 0 leaves that out.
    """

    steps: int
    replicas: int
    batch: int
    every: int
    width: int
    depths: tuple[int, ...]
    linear_bias: bool
    learning_rate: float
    seed: int
    compare_steps: int

    def __post_init__(self) -> None:
        for name in ("steps", "replicas", "batch", "every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.every % self.batch:
            raise UserError(f"batch must divide every: {self.batch} does not divide {self.every}")
        for name in ("steps", "compare_steps"):
            if getattr(self, name) % self.every:
                raise UserError(f"{name} must be a multiple of every ({self.every}), got {getattr(self, name)}")
        if not 0 <= self.compare_steps <= self.steps:
            raise UserError(f"compare_steps must be from 0 to steps ({self.steps}), got {self.compare_steps}")
        if len(set(self.depths)) != len(self.depths) or len(self.depths) < 2 or min(self.depths) < 0:
            raise UserError(f"depths needs two or more different numbers from 0 up, got {list(self.depths)}")
        if self.width < INPUTS:
            raise UserError(f"width must be at least {INPUTS}, the number of inputs, got {self.width}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}")


class World:
    """The endless drive of one replica.

    It starts without an obstacle and with the light off. How many steps are asked for at once changes nothing.

    Args:
        seed: of the study.
        replica: index of the replica.
    """

    def __init__(self, seed: int, replica: int) -> None:
        self._random = np.random.default_rng(np.random.SeedSequence([seed, replica], spawn_key=(0,)))
        self._obstacle = False

    def drive(self, steps: int) -> tuple[Array, Array]:
        """The next observations (T, 5) and what the expert did, 1 for braking (T,)."""
        sampled = self._random.random((steps, 1 + DISTRACTORS))
        chance = sampled[:, 0]
        # one number decides both: below APPEARS there is an obstacle next whatever was before, above 1 - GOES there
        # is none, and in between all stays; so a step looks back to the last number that decided
        decides = (chance < APPEARS) | (chance >= 1 - GOES)
        last = np.maximum.accumulate(np.where(decides, np.arange(1, steps + 1), 0))
        obstacle = np.concatenate([[self._obstacle], chance < APPEARS])[last]
        light = np.concatenate([[self._obstacle], obstacle[:-1]])
        self._obstacle = bool(obstacle[-1])
        return np.column_stack([obstacle, light, sampled[:, 1:]]), obstacle.astype(float)


def network(depth: int, width: int, seed: int, replica: int, linear_bias: bool = False) -> nn.Sequential:
    """A network with torch's own initial weights; its output is the logit of braking.

    Args:
        depth: hidden layers with ReLU; 0 is linear.
        width: units of a hidden layer.
        seed: of the study.
        replica: index of the replica.
        linear_bias: give the linear network a bias.
    """
    sampled = np.random.SeedSequence([seed, replica], spawn_key=(1, depth)).generate_state(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sampled[0]))
        if depth == 0:
            return nn.Sequential(nn.Linear(INPUTS, 1, bias=linear_bias))
        hidden = [nn.Linear(INPUTS if i == 0 else width, width) for i in range(depth)]
        layers = [module for linear in hidden for module in (linear, nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, 1))


class Stack:
    """Networks of several depths and replicas that learn together, each by plain SGD on binary cross-entropy.

    In double precision: late in training a step changes a weight by less than single precision can hold.

    Args:
        networks: D lists of R networks; the networks of one list have the same depth.
        width: units of a hidden layer.
        learning_rate: of a sample.
    """

    def __init__(self, networks: Sequence[Sequence[nn.Sequential]], width: int, learning_rate: float) -> None:
        self._deepest = max(len(_linears(row[0])) for row in networks) - 1
        sizes = [INPUTS] + [width] * self._deepest + [1]
        shapes = [(len(networks), len(networks[0]), a + 1, b) for a, b in pairwise(sizes)]
        self.weights = [np.zeros(shape) for shape in shapes]  # each (D, R, U + 1, U)
        self._rates = [np.zeros(shape) for shape in shapes]  # 0 where a weight does not learn
        for d, row in enumerate(networks):
            for r, one in enumerate(row):
                self._place(d, r, _linears(one), learning_rate)

    def _place(self, d: int, r: int, linears: list[nn.Linear], learning_rate: float) -> None:
        *hidden, output = linears
        for layer in range(len(hidden), self._deepest):
            inputs, units = self.weights[layer].shape[-2] - 1, self.weights[layer].shape[-1]
            self.weights[layer][d, r, :inputs] = np.eye(inputs, units)
        for layer, linear in [*enumerate(hidden), (self._deepest, output)]:
            weights, rates = self.weights[layer][d, r], self._rates[layer][d, r]
            weights[: linear.in_features] = linear.weight.detach().double().numpy().T
            rates[: linear.in_features] = learning_rate
            if linear.bias is not None:
                weights[-1] = linear.bias.detach().double().numpy()
                rates[-1] = learning_rate

    def _forward(self, observations: Array) -> tuple[list[Array], Array]:
        """What enters every layer, each (D, R, K, U + 1), and the logits (D, R, K, 1)."""
        entering = [_with_one(observations)]
        for weights in self.weights[:-1]:
            entering.append(_with_one(np.maximum(entering[-1] @ weights, 0)))
        return entering, entering[-1] @ self.weights[-1]

    def logits(self, observations: Array) -> Array:
        """Logits of braking (D, R, K) on observations (K, 5) or (R, K, 5)."""
        return self._forward(observations)[1][..., 0]

    def update(self, observations: Array, brakes: Array) -> None:
        """One step of SGD with the sum of the samples' gradients.

        Args:
            observations: (R, K, 5).
            brakes: what the expert did (R, K).
        """
        entering, logits = self._forward(observations)
        slope = (np.tanh(logits / 2) + 1) / 2 - brakes[..., None]  # of the loss by the logit
        for layer in reversed(range(len(self.weights))):
            change = entering[layer].swapaxes(-1, -2) @ slope
            if layer:
                back = slope @ self.weights[layer][..., :-1, :].swapaxes(-1, -2)
                slope = back * (entering[layer][..., :-1] > 0)
            change *= self._rates[layer]
            self.weights[layer] -= change


def _linears(one: nn.Sequential) -> list[nn.Linear]:
    return [module for module in one if isinstance(module, nn.Linear)]


def _with_one(values: Array) -> Array:
    out = np.ones((*values.shape[:-1], values.shape[-1] + 1))
    out[..., :-1] = values
    return out


def correctness(logits: Array) -> Array:
    """Causal correctness in nats: ln p(brake | obstacle, light off) - ln p(brake | no obstacle, light on).

    Args:
        logits: of braking on the two probes (..., 2).
    """
    log_brakes = -np.logaddexp(0, -logits)
    return log_brakes[..., 0] - log_brakes[..., 1]


def optimal_correctness() -> float:
    """Causal correctness of the linear policy with a bias that the paper calls optimal."""
    return float(correctness(PROBES @ np.array(OPTIMAL_WEIGHTS) + OPTIMAL_BIAS))


@dataclass(frozen=True)
class Curves:
    """Causal correctness over training, in nats.

    Args:
        steps: where it was measured (P,).
        correctness: as in the paper, distractors at 0 (P, D, R).
        usual: the same with the distractors at 0.5, their mean (P, D, R).
        right: share of replicas that at the end brake for the obstacle and not for the light, distractors at 0 (D,).
    """

    steps: Array
    correctness: Array
    usual: Array
    right: Array


def train(settings: Settings, steps: int, batch: int, title: str = "") -> Curves:
    """Train all networks from their initial weights on their replicas' worlds.

    Args:
        settings: what is trained.
        steps: how many samples.
        batch: consecutive samples of one update.
        title: of the progress bar.
    """
    replicas = range(settings.replicas)
    worlds = [World(settings.seed, r) for r in replicas]
    rows = [
        [network(depth, settings.width, settings.seed, r, settings.linear_bias) for r in replicas]
        for depth in settings.depths
    ]
    stack = Stack(rows, settings.width, settings.learning_rate)
    measured = [(stack.logits(PROBES), stack.logits(USUAL_PROBES))]
    with Progress(total=steps, desc=title, unit="step", unit_scale=True) as bar:
        for _ in range(steps // settings.every):
            driven = [world.drive(settings.every) for world in worlds]
            observations, brakes = (np.stack(part) for part in zip(*driven, strict=True))
            for i in range(0, settings.every, batch):
                stack.update(observations[:, i : i + batch], brakes[:, i : i + batch])
            measured.append((stack.logits(PROBES), stack.logits(USUAL_PROBES)))
            if not np.isfinite(measured[-1]).all():
                raise UserError(f"training diverged with updates of {batch} samples; lower learning_rate or batch")
            bar.update(settings.every)
    logits, usual = (np.stack(part) for part in zip(*measured, strict=True))
    right = ((logits[-1, ..., 0] > 0) & (logits[-1, ..., 1] < 0)).mean(axis=-1)
    measured_at = np.arange(len(logits), dtype=float) * settings.every
    return Curves(measured_at, correctness(logits), correctness(usual), right)


@dataclass(frozen=True)
class Batching:
    """How far the curves are from those of one update per sample, on the same worlds and initial weights.

    Args:
        steps: how many steps were learned both ways.
        batch: samples of an update.
        nats: largest difference over all points and replicas, per depth.
        relative: the same by the range of the depth's curves over these steps.
    """

    steps: int
    batch: int
    nats: dict[int, float]
    relative: dict[int, float]


def compare_batching(settings: Settings, curves: Curves, one_by_one: Curves) -> Batching:
    """Largest differences between the curves of both ways.

    Args:
        settings: what was trained.
        curves: of updates with ``settings.batch`` samples.
        one_by_one: of updates with one sample, over the first steps.
    """
    reference = one_by_one.correctness
    difference = np.abs(curves.correctness[: len(reference)] - reference).max(axis=(0, 2))  # (D,)
    spread = np.ptp(reference, axis=(0, 2))
    return Batching(
        int(one_by_one.steps[-1]),
        settings.batch,
        dict(zip(settings.depths, difference.tolist(), strict=True)),
        dict(zip(settings.depths, (difference / np.maximum(spread, TINY)).tolist(), strict=True)),
    )


@dataclass(frozen=True)
class DepthResult:
    """The curves of one depth in numbers, in nats unless said otherwise.

    Args:
        depth: hidden layers.
        start: correctness before training, mean over replicas.
        final: correctness at the end of every replica.
        mean: correctness averaged over training of every replica.
        usual: correctness at the end with usual distractors, mean over replicas.
        right: share of replicas that decide rightly on both probes at the end.
        steps_to_one: first measured step where the mean over replicas has 1 nat, None if never.
        steps_to_half: the same for half of the optimal linear policy's correctness.
    """

    depth: int
    start: float
    final: list[float]
    mean: list[float]
    usual: float
    right: float
    steps_to_one: int | None
    steps_to_half: int | None


@dataclass(frozen=True)
class Verdict:
    """What the paper says of figure 6, and whether these curves say it too.

    Args:
        depths: results per depth, shallowest first.
        by_mean: depths in order of correctness averaged over training, lowest first.
        by_final: depths in order of correctness at the end, lowest first.
        deeper_is_faster: both orders are the order of the depths.
        ahead: per pair of neighbouring depths, the share of pairs of replicas where the deeper one has the higher
            correctness averaged over training; 0.5 is chance.
        unclear: pairs of neighbouring depths whose share is below ``CLEAR``: more replicas could turn their order.
        optimal: correctness of the optimal linear policy, which has a bias.
        linear_gain: what the linear network gained from start to end, mean over replicas; None without one.
        linear_progress: that gain is at least ``PROGRESS`` of ``optimal``.
        reproduced: deeper is faster, and the linear network makes no progress; None without a linear network.
    """

    depths: list[DepthResult]
    by_mean: list[int]
    by_final: list[int]
    deeper_is_faster: bool
    ahead: dict[str, float]
    unclear: list[str]
    optimal: float
    linear_gain: float | None
    linear_progress: bool | None
    reproduced: bool | None


def judge(depths: Sequence[int], curves: Curves) -> Verdict:
    """The verdict on curves.

    Args:
        depths: hidden layers of the networks, in the order of the curves.
        curves: of the whole training.
    """
    optimal = optimal_correctness()
    order = sorted(range(len(depths)), key=lambda d: depths[d])
    results = [_depth_result(depths[d], d, curves, optimal) for d in order]
    by_mean = [x.depth for x in sorted(results, key=lambda x: float(np.mean(x.mean)))]
    by_final = [x.depth for x in sorted(results, key=lambda x: float(np.mean(x.final)))]
    faster = by_mean == by_final == sorted(depths)
    ahead = {
        f"{low.depth}-{high.depth}": float(np.mean(np.subtract.outer(high.mean, low.mean) > 0))
        for low, high in pairwise(results)
    }
    unclear = [pair for pair, share in ahead.items() if share < CLEAR]
    if results[0].depth > 0:
        return Verdict(results, by_mean, by_final, faster, ahead, unclear, optimal, None, None, None)
    gain = float(np.mean(results[0].final)) - results[0].start
    progress = gain >= PROGRESS * optimal
    return Verdict(results, by_mean, by_final, faster, ahead, unclear, optimal, gain, progress, faster and not progress)


def _depth_result(depth: int, d: int, curves: Curves, optimal: float) -> DepthResult:
    own = curves.correctness[:, d]  # (P, R)

    def steps_to(nats: float) -> int | None:
        reached = np.flatnonzero(own.mean(axis=1) >= nats)
        return int(curves.steps[reached[0]]) if len(reached) else None

    return DepthResult(
        depth=depth,
        start=float(own[0].mean()),
        final=own[-1].tolist(),
        mean=own.mean(axis=0).tolist(),
        usual=float(curves.usual[-1, d].mean()),
        right=float(curves.right[d]),
        steps_to_one=steps_to(1.0),
        steps_to_half=steps_to(optimal / 2),
    )


@dataclass(frozen=True)
class ToyResult:
    """What the study found.

    Args:
        settings: what was trained.
        curves: causal correctness over training.
        verdict: order of the depths, and whether the linear network made progress.
        batching: how much the batched updates changed the curves; None if that was left out.
        seconds: wall time of the training, and of the one with an update per sample.
    """

    settings: Settings
    curves: Curves
    verdict: Verdict
    batching: Batching | None
    seconds: dict[str, float]


def study_toy(
    steps: int = 10_000_000,
    replicas: int = 5,
    batch: int = 20,
    every: int = 10_000,
    width: int = 10,
    depths: tuple[int, ...] = (0, 1, 2, 3, 4),
    linear_bias: bool = False,
    learning_rate: float = 1e-4,
    seed: int = 0,
    compare_steps: int = 1_000_000,
    out: str = "runs/toy",
) -> ToyResult:
    """Train networks of several depths on the toy world and say whether figure 6 of the paper comes out.

    Args:
        steps: of the expert that every network learns from, one sample each.
        replicas: networks of every depth, each with its own world and initial weights.
        batch: consecutive samples whose gradients are summed into one update.
        every: steps between two measurements.
        width: units of a hidden layer.
        depths: hidden layers of the networks; 0 is linear.
        linear_bias: give the linear network a bias, which the paper's has not.
        learning_rate: of plain SGD, per sample.
        seed: of worlds and initial weights.
        compare_steps: so many first steps (all, if there are fewer) are learned once more with one update per sample,
            to show that batch changes nothing; 0 leaves that out.
        out: folder for toy.json and toy.png.
    """
    settings = Settings(
        steps, replicas, batch, every, width, tuple(depths), linear_bias, learning_rate, seed, min(compare_steps, steps)
    )
    require_folder_target(out, "--out")
    result = run_study(settings)
    folder = Path(out)
    write_json(folder / "toy.json", as_dict(result), indent=1, allow_nan=False)
    plot(settings, result.curves, folder / "toy.png")
    print(f"\n{table(result)}\n\n{sentences(result)}\n\n{folder / 'toy.json'}, {folder / 'toy.png'}")
    return result


def run_study(settings: Settings) -> ToyResult:
    """Train, compare the two ways of updating, and judge."""
    start = time.perf_counter()
    curves = train(settings, settings.steps, settings.batch, f"{settings.batch} samples an update")
    seconds = {"training": time.perf_counter() - start}
    batching = None
    if settings.compare_steps:
        start = time.perf_counter()
        one_by_one = train(settings, settings.compare_steps, 1, "1 sample an update")
        seconds["comparison"] = time.perf_counter() - start
        batching = compare_batching(settings, curves, one_by_one)
    return ToyResult(settings, curves, judge(settings.depths, curves), batching, seconds)


def as_dict(result: ToyResult) -> dict[str, Any]:
    """The result as plain data; curves per depth, each a list of replicas."""

    def by_depth(values: Array) -> dict[str, list[list[float]]]:
        return {str(depth): values[:, d].T.round(5).tolist() for d, depth in enumerate(result.settings.depths)}

    return {
        "settings": asdict(result.settings),
        "verdict": asdict(result.verdict),
        "batching": asdict(result.batching) if result.batching else None,
        "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
        "steps": [int(step) for step in result.curves.steps],
        "correctness": by_depth(result.curves.correctness),
        "usual": by_depth(result.curves.usual),
    }


def name_of(depth: int, settings: Settings) -> str:
    """A network as it is called in table and plot."""
    linear = "linear, with bias" if settings.linear_bias else "linear, no bias"
    return linear if depth == 0 else f"depth {depth}"


def table(result: ToyResult) -> str:
    """Markdown table of the verdict: one row per depth, and the optimal linear policy."""
    lines = [
        "| network | mean over training (nats) | at the end (nats) | steps to 1 nat | steps to "
        f"{result.verdict.optimal / 2:.1f} nats | both probes right | at the end, usual distractors (nats) "
        "| change by batching |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result.verdict.depths:
        change = f"{result.batching.relative[row.depth]:.2%}" if result.batching else ""
        lines.append(
            f"| {name_of(row.depth, result.settings)} "
            f"| {_with_range(row.mean)} | {_with_range(row.final)} | {_count(row.steps_to_one)} "
            f"| {_count(row.steps_to_half)} | {row.right:.0%} | {row.usual:.2f} | {change} |"
        )
    optimal = f"{result.verdict.optimal:.2f}"
    return "\n".join([*lines, f"| optimal linear policy, with bias | | {optimal} | | | 100% | {optimal} | |"])


def _with_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _count(steps: int | None) -> str:
    return "never" if steps is None else f"{steps:,}"


def sentences(result: ToyResult) -> str:
    """The verdict in words, with the numbers that it rests on."""
    verdict, settings = result.verdict, result.settings
    lines = [
        f"Depths by mean over training: {_order(verdict.by_mean)}; at the end: {_order(verdict.by_final)}. "
        f"Deeper is faster: {_yes(verdict.deeper_is_faster)}.",
        "The deeper of two neighbours is ahead in "
        + ", ".join(f"{share:.0%} ({pair})" for pair, share in verdict.ahead.items())
        + f" of the pairs of replicas ({settings.replicas} each).",
    ]
    if verdict.unclear:
        lines.append(
            f"Within the spread of replicas: {', '.join(verdict.unclear)} (clear from {CLEAR:.0%}); "
            "more replicas could turn that order."
        )
    if verdict.linear_gain is not None:
        lines.append(
            f"The linear network gained {verdict.linear_gain:.2f} nats; from {PROGRESS * verdict.optimal:.2f} on that "
            f"would be progress ({PROGRESS:.0%} of the optimal linear policy's {verdict.optimal:.2f}). "
            f"Progress: {_yes(bool(verdict.linear_progress))}."
        )
        lines.append(f"Figure 6 reproduced: {_yes(bool(verdict.reproduced))}.")
    if result.batching:
        nats, relative = max(result.batching.nats.values()), max(result.batching.relative.values())
        lines.append(
            f"Updates of {settings.batch} samples instead of 1, same worlds and initial weights, "
            f"{result.batching.steps:,} steps: the curves differ by at most {nats:.4f} nats, {relative:.2%} of a "
            "curve's range."
        )
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    lines.append(f"{settings.steps:,} steps, {len(settings.depths) * settings.replicas} networks: {spent}.")
    return "\n".join(lines)


def _order(depths: Sequence[int]) -> str:
    return " < ".join(map(str, depths))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def plot(settings: Settings, curves: Curves, path: Path) -> None:
    """Draw the curves, a panel per depth: mean over replicas, and a band from the lowest to the highest.

    Args:
        settings: what was trained.
        curves: of the networks.
        path: of the picture.
    """
    from matplotlib.ticker import FuncFormatter

    order = sorted(range(len(settings.depths)), key=lambda d: settings.depths[d])
    columns = min(len(order), PANELS)
    rows = -(-len(order) // columns)
    with saved_figure(path, height=1.1 + 2.7 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for area, d in zip(axes, order, strict=False):
            own = curves.correctness[:, d]  # (P, R)
            band = area.fill_between(
                curves.steps, own.min(axis=1), own.max(axis=1), color=BLUE, alpha=BAND, linewidth=0
            )
            (mean,) = area.plot(curves.steps, own.mean(axis=1), color=BLUE)
            optimal = area.axhline(optimal_correctness(), color=MUTED, linestyle=DASHES[1], linewidth=1.2)
            area.set_title(name_of(settings.depths[d], settings))
            area.set_xlim(0, curves.steps[-1])
            area.locator_params(axis="x", nbins=2)
            area.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps / 1e6:g} M" if steps else "0"))
            _write_final(area, curves.steps[-1], own[-1])
        for area in axes[len(order) :]:
            area.set_axis_off()
        figure.supxlabel("steps of the expert to learn from", fontsize="medium")
        figure.supylabel("causal correctness (nats)", fontsize="medium")
        labels = [
            f"mean of {settings.replicas} replicas",
            "from the lowest to the highest",
            "optimal linear policy, with bias",
        ]
        figure.legend([mean, band, optimal], labels, loc="outside upper center", ncols=3)


def _write_final(axes: Axes, step: float, final: Array) -> None:
    """The mean of the last values in digits: above the band, or below it where the optimal policy's line is near."""
    below = 0.85 * optimal_correctness() < final.max() < 1.05 * optimal_correctness()
    axes.annotate(
        f"{final.mean():.2f} at the end", (step, final.min() if below else final.max()), (0, -4 if below else 4),
        textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=SMALL,
    )  # fmt: skip


def drawn_from(content: Mapping[str, Any]) -> tuple[Settings, Curves]:
    """Settings and curves of a toy.json, for :func:`plot`."""
    settings = Settings(**content["settings"] | {"depths": tuple(content["settings"]["depths"])})

    def by_point(name: str) -> Array:
        return np.stack([np.array(content[name][str(depth)]).T for depth in settings.depths], axis=1)  # (P, D, R)

    right = {depth["depth"]: depth["right"] for depth in content["verdict"]["depths"]}
    shares = np.array([right[depth] for depth in settings.depths])
    return settings, Curves(np.array(content["steps"]), by_point("correctness"), by_point("usual"), shares)
