"""Laws, verdict and picture of ``bczoo study characters``.

Place in the pipeline: takes the rows of :mod:`bczoo.studies.characters`, fits one law per repetition (all sizes of one
variant, split and seed) by :mod:`bczoo.scaling`, and writes ``characters.json`` and ``characters.png``.

Repetitions give the intervals: of seeds for dense and sparse; of splits, each the mean of its seeds, for classes, since
seeds of one split share its difficulty. So an interval covers what another seed or split would do, which a bootstrap
over the points of one repetition leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bczoo.core.errors import UserError
from bczoo.core.files import write_json
from bczoo.core.style import BLACK, COLORS, DASHES, MUTED, saved_figure, shades
from bczoo.core.tables import markdown_table
from bczoo.core.workers import in_processes
from bczoo.scaling.command import Settings
from bczoo.scaling.curves import Curve, prepare_all
from bczoo.scaling.law import ScalingFit

NAMES = {"dense": "dense", "sparse": "sparse", "classes": "sparse, super-classed"}
PAPER = {"dense": 0.63, "sparse": 0.50, "classes": 0.15}  # a, figure 11 of the paper
METHODS = {  # the first one is the paper's and decides
    "squares": ("parametric", Settings(objective="squares", resamples=0)),
    "huber": ("parametric", Settings(resamples=0)),
    "frontier": ("frontier", Settings(resamples=0)),
}
SKIP = 0.05  # of a run's tokens


@dataclass(frozen=True)
class Exponent:
    """Exponent a of one variant by one method.

    Args:
        a: mean over units; None if no repetition could be fitted.
        low: end of the 95 % interval (Student's t over units); None with fewer than two units.
        high: its other end.
        repeats: a of every repetition that could be fitted.
        units: seeds, or splits where there are several.
        refused: by reason the number of repetitions that could not be fitted.
        constants: E, alpha and beta, means over repetitions, where the method knows them.
    """

    a: float | None
    low: float | None
    high: float | None
    repeats: list[float]
    units: int
    refused: dict[str, int]
    constants: dict[str, float]


def report(
    rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], folder: Path, workers: int = 1
) -> dict[str, Any]:
    """Fit, judge, print and write.

    Args:
        rows: of all runs.
        plan: what was trained.
        folder: of characters.json and characters.png.
        workers: processes that fit.

    Returns:
        What is in characters.json.
    """
    tasks = [([row for row in rows if row["variant"] == v], m) for v in NAMES for m in METHODS]
    fitted = iter(in_processes(exponent, tasks, workers))
    found = {v: {m: next(fitted) for m in METHODS} for v in NAMES}
    decisive = {v: by_method[next(iter(METHODS))] for v, by_method in found.items()}
    judged = verdict(decisive)
    content: dict[str, Any] = {
        "plan": dict(plan),
        "runs": list(rows),
        "exponents": {v: {m: asdict(e) for m, e in by_method.items()} for v, by_method in found.items()},
        "verdict": judged,
        "gap": {v: _gap([r for r in rows if r["variant"] == v]) for v in NAMES},
    }
    write_json(folder / "characters.json", content, indent=1)
    plot(rows, content["exponents"], folder / "characters.png")
    print(f"\n{table(found)}\n\n{sentences(content)}\n\n{folder / 'characters.json'}, {folder / 'characters.png'}")
    return content


def exponent(rows: Sequence[Mapping[str, Any]], method: str) -> Exponent:
    """The exponent of one variant's runs, by repetition, and its interval."""
    fits: dict[tuple[int, int], ScalingFit] = {}
    refused: dict[str, int] = {}
    name, settings = METHODS[method]
    for key in sorted({(row["split"], row["seed"]) for row in rows}):
        of_repeat = [row for row in rows if (row["split"], row["seed"]) == key]
        curves = [Curve(r["params"], np.array(r["tokens"]), np.array(r["loss"]), name=r["name"]) for r in of_repeat]
        try:
            fits[key] = settings.fit(name, prepare_all(curves, SKIP)[0])
        except UserError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
    splits = sorted({split for split, _ in fits})
    by_split = [[fit.a for (at, _), fit in fits.items() if at == split] for split in splits]
    units = [float(np.mean(values)) for values in by_split] if len(splits) > 1 else [a for v in by_split for a in v]
    constants = {
        constant: float(np.mean([getattr(fit, constant) for fit in fits.values()]))
        for constant in ("E", "alpha", "beta")
        if fits and all(getattr(fit, constant) is not None for fit in fits.values())
    }
    mean = float(np.mean(units)) if units else None
    low, high = interval(units)
    return Exponent(mean, low, high, [fit.a for fit in fits.values()], len(units), refused, constants)


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean by Student's t; none of fewer than two values."""
    if len(values) < 2:
        return None, None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def verdict(found: Mapping[str, Exponent]) -> dict[str, str]:
    """``reproduced``, ``contradicted`` or ``undecided`` per step of the claim dense > sparse > classes, and in all.

    A step is reproduced if the intervals are apart in its direction and contradicted if they are apart in the other;
    the claim is reproduced if all steps are, and contradicted if one is.
    """
    steps = {f"{one} > {other}": _step(found[one], found[other]) for one, other in pairwise(NAMES)}
    answers = set(steps.values())
    whole = "contradicted" if "contradicted" in answers else "undecided" if "undecided" in answers else "reproduced"
    return {**steps, "all": whole}


def _step(one: Exponent, other: Exponent) -> str:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return "undecided"
    if one.low > other.high:
        return "reproduced"
    return "contradicted" if one.high < other.low else "undecided"


def _gap(rows: Sequence[Mapping[str, Any]]) -> float:
    """Loss on held-out characters less the last training loss, mean over runs; far above 0 it is memorising."""
    return float(np.mean([row["test_loss"] - np.mean(row["loss"][-5:]) for row in rows]))


def table(found: Mapping[str, Mapping[str, Exponent]]) -> str:
    """Exponents in Markdown, a row per variant and method."""
    rows = [["variant", "method", "a", "95 % interval", "a in the paper", "E", "alpha", "beta", "fitted", "units"]]
    for variant, by_method in found.items():
        for method, e in by_method.items():
            shown = [f"{e.constants[name]:.3f}" if name in e.constants else "-" for name in ("E", "alpha", "beta")]
            ends = "-" if e.low is None else f"{e.low:.3f} to {e.high:.3f}"
            a, fitted = "-" if e.a is None else f"{e.a:.3f}", f"{len(e.repeats)}/{len(e.repeats) + _refused(e)}"
            rows.append([NAMES[variant], method, a, ends, f"{PAPER[variant]:.2f}", *shown, fitted, str(e.units)])
    return markdown_table(rows, left=2)


def _refused(e: Exponent) -> int:
    return sum(e.refused.values())


def sentences(content: Mapping[str, Any]) -> str:
    """The verdict in words, and what was refused."""
    lines = [f"{step}: {answer}" for step, answer in content["verdict"].items() if step != "all"]
    lines.append(f"a falls from dense over sparse to super-classed: {content['verdict']['all']}")
    gaps = ", ".join(f"{gap:+.3f} ({variant})" for variant, gap in content["gap"].items())
    lines.append(f"held-out less training loss, nats: {gaps}")
    for variant, by_method in content["exponents"].items():
        for method, e in by_method.items():
            lines += [f"refused: {variant}, {method}, {n} times: {why}" for why, n in e["refused"].items()]
    return "\n".join(f"* {line}" for line in lines)


def plot(rows: Sequence[Mapping[str, Any]], exponents: Mapping[str, Any], path: Path) -> None:
    """Draw the curves of each variant, and the exponents with their intervals.

    Args:
        rows: of all runs.
        exponents: as in characters.json.
        path: of the picture.
    """
    sizes = sorted({row["shape"] for row in rows})
    colors = dict(zip(sizes, shades(len(sizes)), strict=True))
    smallest = {i: min(row["params"] for row in rows if row["shape"] == i) for i in sizes}
    with saved_figure(path, height=6.6) as figure:
        *areas, last = figure.subplots(2, 2).flatten()
        for area, (variant, name) in zip(areas, NAMES.items(), strict=True):
            for row in (row for row in rows if row["variant"] == variant):
                (curve,), _ = prepare_all([Curve(row["params"], np.array(row["tokens"]), np.array(row["loss"]))], SKIP)
                area.plot(curve.compute, curve.loss, color=colors[row["shape"]], linewidth=0.8)
            area.set_xscale("log")
            area.set_title(name)
            area.set_xlabel("compute C (FLOPs)")
            area.set_ylabel("loss (nats)")
        handles = [areas[0].plot([], [], color=colors[i], label=f"N = {smallest[i]:,}")[0] for i in sizes]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        for i, (method, color) in enumerate(zip(METHODS, COLORS, strict=False)):
            places = [x + 0.18 * (i - 1) for x in range(len(NAMES))]
            shown = [exponents[variant][method] for variant in NAMES]
            for x, e in zip(places, shown, strict=True):
                last.plot([x] * len(e["repeats"]), e["repeats"], ".", color=color, markersize=3)
                if e["low"] is not None:
                    last.plot([x, x], [e["low"], e["high"]], color=color, linewidth=1.2)
            known = [(x, e["a"]) for x, e in zip(places, shown, strict=True) if e["a"] is not None]
            last.plot([x for x, _ in known], [a for _, a in known], "o", color=color, label=method)
        last.plot(range(len(NAMES)), list(PAPER.values()), "_", color=BLACK, markersize=16, label="paper")
        last.set_xticks(range(len(NAMES)), [name.replace(", ", ",\n") for name in NAMES.values()])
        last.set_title("Exponent a, 95 % intervals")
        last.set_xlim(-0.5, len(NAMES) - 0.5)
        last.set_ylim(0, 1)
        last.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=DASHES[1])
        last.legend(loc="lower left", ncols=2)
