"""``bczoo study characters``: why the exponent of a policy's best size is small (paper 2411.04434, section 5.1).

Place in the pipeline: small GPTs (:mod:`bczoo.nn.gpt`) learn characters of a source
(:mod:`bczoo.studies.characters_source`), and :mod:`bczoo.studies.characters_report` fits a law to their losses and
judges. Three variants see the same characters at the same compute and differ in what is supervised::

    dense     the next character at all 16 positions
    sparse    the next character at the last position only, as a policy is told an action a frame
    classes   as sparse, but only which of two random halves of the alphabet the next character is in: a coarse target

The paper finds exponents a of 0.63, 0.50 and 0.15. One run per variant, size, seed and, for classes, split of the
alphabet; each leaves a file, so an interrupted study goes on and more seeds add to it.

Shape legend: B windows, L context, D width, V classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.workers import default_workers, in_processes
from bczoo.nn.gpt import GPT, INITIAL_STD
from bczoo.scaling.law import FLOPS_PER_PARAMETER
from bczoo.scaling.rates import best_rate, next_rate
from bczoo.studies.characters_source import CLASSES, MarkovSource, Source, TextSource, training_characters
from bczoo.train.callbacks.scaling import GROWTH, model_sizes

VARIANTS = ("dense", "sparse", "classes")
CONTEXT = 16
MOST_EPOCHS = 4  # of a text
WARM_UP = 0.01  # of the steps
SWEPT = 0.2  # of the tokens of a run, for a run of the sweep
JUDGED = 0.2  # of a run of the sweep, at its end, whose mean loss compares rates
TEST_WINDOWS = 4096
TEST_STREAM = 10**9  # of characters; those of runs are below
TIMED_STEPS = 8


@dataclass(frozen=True)
class Shape:
    """A size.

    Args:
        width: D.
        layers: blocks.
        tokens: characters that a run of this size sees.
    """

    width: int
    layers: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Args:
        shapes: sizes, smallest first.
        rates: learning rates of the sweep.
        batch: windows of a step.
        seeds: repetitions.
        splits: of the alphabet, each with all seeds.
        source_seed: of the chain.
        text: path of a text in the place of the chain.
    """

    shapes: tuple[Shape, ...]
    rates: tuple[float, ...]
    batch: int
    seeds: int
    splits: int
    source_seed: int = 0
    text: str | None = None


RATES = (0.032, 0.016, 0.008, 0.004, 0.002, 0.001)
PLANS = {
    "smoke": Plan((Shape(8, 1, 80_000), Shape(16, 1, 60_000), Shape(32, 1, 40_000)), (0.016, 0.008), 16, 2, 2),
    "cpu": Plan(
        shapes=(
            Shape(16, 1, 3_000_000),
            Shape(24, 1, 3_000_000),
            Shape(32, 2, 2_000_000),
            Shape(48, 2, 1_500_000),
            Shape(64, 3, 800_000),
        ),
        rates=RATES,
        batch=64,
        seeds=3,
        splits=3,
    ),
    "night": Plan(
        shapes=(
            Shape(16, 1, 16_000_000),
            Shape(24, 1, 16_000_000),
            Shape(32, 2, 16_000_000),
            Shape(48, 2, 12_000_000),
            Shape(64, 3, 8_000_000),
            Shape(96, 3, 6_000_000),
            Shape(128, 5, 4_000_000),
        ),
        rates=RATES,
        batch=64,
        seeds=3,
        splits=3,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        variant: of :data:`VARIANTS`.
        shape: index of the size in the plan.
        split: of the alphabet; 0 for variants without one.
        seed: of weights and characters.
    """

    variant: str
    shape: int
    split: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-size{self.shape}-split{self.split}-seed{self.seed}"


def runs(plan: Plan) -> list[Run]:
    """All runs, seed by seed, so that a study that is stopped early is whole for its first seeds; the largest first."""
    kinds = [("dense", 0), ("sparse", 0), *(("classes", split) for split in range(plan.splits))]
    shapes = list(reversed(range(len(plan.shapes))))
    return [Run(v, i, split, seed) for seed in range(plan.seeds) for i in shapes for v, split in kinds]


class CharacterModel(nn.Module):
    """A GPT over characters; classes are the characters, by the table of the input, or two by a head of their own.

    Args:
        width: D.
        layers: blocks.
        variant: of :data:`VARIANTS`.
        split: of the alphabet.
    """

    halves: Tensor

    def __init__(self, width: int, layers: int, variant: str, split: int = 0) -> None:
        super().__init__()
        self.dense = variant == "dense"
        self.embedding = nn.Embedding(CLASSES, width)
        self.gpt = GPT(width, layers, max(1, width // 16), CONTEXT)
        self.head = nn.Linear(width, 2) if variant == "classes" else None
        nn.init.normal_(self.embedding.weight, std=INITIAL_STD)
        order = np.random.default_rng([split, 2]).permutation(CLASSES)
        self.register_buffer("halves", torch.from_numpy((order < CLASSES // 2).astype(np.int64)))

    def loss(self, windows: Tensor) -> Tensor:
        """Cross-entropy in nats a supervised position of windows (B, L + 1)."""
        inputs, targets = windows[:, :-1], windows[:, 1:]
        outputs = self.gpt(self.embedding(inputs))  # (B, L, D)
        if not self.dense:
            outputs, targets = outputs[:, -1:], targets[:, -1:]
        if self.head is None:
            logits = outputs @ self.embedding.weight.T  # (B, L or 1, V)
        else:
            logits, targets = self.head(outputs), self.halves[targets]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def study_characters(
    size: Literal["smoke", "cpu", "night"] = "cpu",
    out: str = "runs/characters",
    seeds: int | None = None,
    splits: int | None = None,
    text: str | None = None,
    source_seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
) -> Any:
    """Train small GPTs on characters with dense, sparse and coarse targets, and compare how their best size grows.

    Args:
        size: of the study: smoke (to try it), cpu (20 minutes of two idle cores at most), night.
        out: folder of runs, characters.json and characters.png; a study that was interrupted goes on there.
        seeds: repetitions, if others than the size's own.
        splits: random halves of the alphabet, if others than the size's own.
        text: file to learn from, in ASCII; characters of a Markov chain, which never ends, if left out.
        source_seed: of the chain.
        workers: runs at the same time, one thread each; one per processor core if left out.
        dry_run: say what there is to do and how long that takes here, and stop.
    """
    from bczoo.studies.characters_report import report

    if size not in PLANS:
        raise UserError(f"the size of a study is one of {', '.join(PLANS)}, got {size!r}")
    given = {name: value for name, value in (("seeds", seeds), ("splits", splits)) if value is not None}
    if wrong := [name for name, value in given.items() if value < 1]:
        raise UserError(f"{wrong[0]} is at least 1, got {given[wrong[0]]}")
    plan = dataclasses.replace(PLANS[size], **given, text=text, source_seed=source_seed)  # type: ignore[arg-type]
    _require_fresh(plan)
    require_folder_target(out, "--out")
    folder, workers = Path(out), workers or default_workers()
    todo = runs(plan)
    missing = [run for run in todo if not _path(folder, run).exists()]
    print(f"{len(todo)} runs, {len(todo) - len(missing)} of them are already there")
    seconds = _seconds(plan)
    left = sum(seconds[run.shape] for run in missing)
    _tell_cost(plan, todo, seconds, left, workers)
    if dry_run:
        return None
    _keep_plan(plan, folder)
    rates = dict(in_processes(sweep, [(v, plan, str(folder)) for v in VARIANTS], workers))
    for variant, found in rates.items():
        print(f"learning rates of {variant}: {', '.join(f'{rate:g}' for rate in found)}", flush=True)
    started, done = time.perf_counter(), 0.0

    def tell(row: dict[str, Any]) -> None:
        nonlocal done
        done += seconds[row["shape"]]
        minutes = (time.perf_counter() - started) * (left / done - 1) / 60
        print(f"{row['name']}: N = {row['params']:,}, loss {row['test_loss']:.4f}; {minutes:.0f} min left", flush=True)

    in_processes(do_run, [(r, rates[r.variant][r.shape], plan, str(folder)) for r in missing], workers, tell)
    rows = [json.loads(_path(folder, run).read_text()) for run in todo]
    return report(rows, dataclasses.asdict(plan), folder, workers)


def _require_fresh(plan: Plan) -> None:
    """Raise where a text is too short for its loss to be that of fresh characters."""
    if plan.text is None:
        return
    there, most = training_characters(plan.text), max(shape.tokens for shape in plan.shapes)
    if most > MOST_EPOCHS * there:
        raise UserError(
            f"{plan.text} has {there:,} characters to train on, and a run sees {most:,}: above {MOST_EPOCHS} times the "
            "training loss is not that of fresh characters; take a longer text or a smaller --size"
        )


def _tell_cost(plan: Plan, todo: list[Run], seconds: list[float], left: float, workers: int) -> None:
    for i, shape in enumerate(plan.shapes):
        n, count = _params(shape), sum(run.shape == i for run in todo)
        flops = FLOPS_PER_PARAMETER * n * shape.tokens
        print(f"N = {n:>9,}: {count} runs of {shape.tokens:,} characters, {flops:.2g} FLOPs, {seconds[i]:.0f} s each")
    total = sum(FLOPS_PER_PARAMETER * _params(plan.shapes[r.shape]) * plan.shapes[r.shape].tokens for r in todo)
    print(
        f"{total:.2g} FLOPs in all; the runs that are missing take {left / workers / 60:.0f} min in {workers} processes"
    )


def _params(shape: Shape) -> int:
    return int(model_sizes(CharacterModel(shape.width, shape.layers, "dense"))["params"])


def _seconds(plan: Plan) -> list[float]:
    """Seconds of one thread that a run of each size takes here now, by a few steps of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = []
    for shape in plan.shapes:
        steps = training(shape, "dense", 0, 0.001, TIMED_STEPS * plan.batch * CONTEXT, plan, 0)
        next(steps)  # the first one is slow
        started = time.perf_counter()
        a_step = len(list(steps)) and (time.perf_counter() - started) / (TIMED_STEPS - 1)
        out.append(a_step * shape.tokens / (plan.batch * CONTEXT))
    torch.set_num_threads(threads)
    return out


def _keep_plan(plan: Plan, folder: Path) -> None:
    """Note the plan in the folder of its study; runs of another plan must not be taken for this one's."""
    path = folder / "plan.json"
    this = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(plan, seeds=0, splits=0))))
    if path.exists() and json.loads(path.read_text()) != this:
        raise UserError(f"{folder} holds a study of another size, source or version; choose another folder with --out")
    write_json(path, this, indent=1)


def _path(folder: Path, run: Run) -> Path:
    return folder / "runs" / f"{run.name}.json"


def source(plan: Plan, stream: int, held_out: bool = False) -> Source:
    """Characters of a plan: ``stream`` numbers independent ones."""
    return MarkovSource(plan.source_seed, stream) if plan.text is None else TextSource(plan.text, stream, held_out)


def training(
    shape: Shape, variant: str, split: int, rate: float, tokens: int, plan: Plan, stream: int
) -> Iterator[tuple[CharacterModel, Tensor]]:
    """Train a model at a constant rate behind a warm-up; yields it and the loss after every step."""
    torch.manual_seed(stream)
    model, windows = CharacterModel(shape.width, shape.layers, variant, split), source(plan, stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    steps = tokens // (plan.batch * CONTEXT)
    warm_up = max(1, math.ceil(WARM_UP * steps))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / warm_up)
        loss = model.loss(torch.from_numpy(windows.windows(plan.batch, CONTEXT + 1)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield model, loss.detach()


def sweep(variant: str, plan: Plan, out: str) -> tuple[str, list[float]]:
    """The learning rate of each size, by short runs of the first seed; kept in ``<out>/rates/<variant>.json``."""
    path = Path(out) / "rates" / f"{variant}.json"
    if path.exists():
        return variant, [size["best"] for size in json.loads(path.read_text())]
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for shape in plan.shapes:
        start = found[-1]["best"] if found else None
        tried: dict[float, float] = {}
        while (rate := next_rate(plan.rates, tried, start)) is not None:
            steps = training(shape, variant, 0, rate, max(int(SWEPT * shape.tokens), 1), plan, 0)
            losses = torch.stack([loss for _, loss in steps])
            tried[rate] = float(losses[-max(1, int(JUDGED * len(losses))) :].mean())
        found.append({"best": best_rate(tried), "tried": {f"{rate:g}": loss for rate, loss in tried.items()}})
    write_json(path, found, indent=1)
    return variant, [size["best"] for size in found]


def do_run(run: Run, rate: float, plan: Plan, out: str) -> dict[str, Any]:
    """Train one model and log its loss, a row for every percent of growth in steps, each at its interval's middle."""
    torch.set_num_threads(1)
    shape, a_step = plan.shapes[run.shape], plan.batch * CONTEXT
    started, since, losses, rows = time.perf_counter(), 0, [], []
    stream = 1 + VARIANTS.index(run.variant) + len(VARIANTS) * (run.split + 1000 * run.seed)  # 0 is the sweep's
    steps = training(shape, run.variant, run.split, rate, shape.tokens, plan, stream)
    for step, (model, loss) in enumerate(steps, 1):  # noqa: B007 - the last one is tested
        losses.append(loss)
        if step >= (1 + GROWTH) * since:
            rows.append(((since + step) / 2 * a_step, float(torch.stack(losses).mean())))
            since, losses = step, []
    with torch.no_grad():
        held_out = source(plan, TEST_STREAM, held_out=True).windows(TEST_WINDOWS, CONTEXT + 1)
        test_loss = float(model.loss(torch.from_numpy(held_out)))
    row = {
        **dataclasses.asdict(run),
        "name": run.name,
        "params": int(model_sizes(model)["params"]),
        "rate": rate,
        "seconds": round(time.perf_counter() - started, 1),
        "test_loss": round(test_loss, 6),
        "tokens": [tokens for tokens, _ in rows],
        "loss": [float(f"{loss:.7g}") for _, loss in rows],
    }
    write_json(_path(Path(out), run), row)
    return row
