"""Tables and verdicts of ``bczoo study confusion``.

Place in the pipeline: rows of :mod:`bczoo.studies.confusion` come in, one per trained policy; ``report.md``,
``report.json`` and two pictures go out. Everything that is claimed is computed here from the rows: rank correlations
with 95 % intervals from a bootstrap over kinds of policies, means with their range over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.files import write_json, write_text
from bczoo.core.statistics import interval_over_groups
from bczoo.studies.confusion_pictures import Kind, plot_prediction, plot_scaling

Row = dict[str, Any]
PREDICTORS = {  # measure -> sign: +1 where more of it should go with better play
    "loss": -1,
    "relative_cross_entropy": -1,
    "accuracy": 1,
    "change_perplexity": -1,
    "change_accuracy": 1,
    "persistence": -1,
    "causality": 1,
    "causality_freeze": 1,
    "causality_blank": 1,
    "causality_noise": 1,
    "action_reliance": -1,
    "visual_share": 1,
    "intervention_accuracy": 1,
}
OUTCOMES = ("return", "intervention_accuracy")
RESAMPLES = 2000  # of the kinds of policies
FEWEST = 10  # policies of a rank correlation
KIND = ("size", "fraction", "decoder", "past_actions")  # policies of one kind differ in their seed


@dataclass(frozen=True)
class ConfusionReport:
    """What a study found.

    Args:
        rows: one per policy.
        findings: rank correlations and effects, as plain JSON.
        folder: where report.md, report.json and the plots lie.
    """

    rows: list[Row]
    findings: dict[str, Any]
    folder: Path


def report(rows: list[Row], baselines: dict[str, dict[str, float]], folder: Path) -> ConfusionReport:
    """Write tables and plots, and print the tables.

    Args:
        rows: of :func:`bczoo.studies.confusion.run_trial`.
        baselines: per world what ``expert`` and ``random`` return.
        folder: where to.
    """
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    findings = {world: find([r for r in rows if r["world"] == world]) for world in worlds}
    text = "\n\n".join(
        section(world, [r for r in rows if r["world"] == world], baselines[world], findings[world]) for world in worlds
    )
    write_text(folder / "report.md", text + "\n")
    kinds = average(rows)
    whole = {"baselines": baselines, "findings": findings, "kinds": [asdict(kind) for kind in kinds], "rows": rows}
    write_json(folder / "report.json", whole, indent=1, allow_nan=False)
    draw(kinds, baselines, findings, folder)
    print(f"\n{text}\n\n{folder}/report.md, report.json, scaling.png, prediction.png")
    return ConfusionReport(rows, findings, folder)


def draw(
    kinds: Sequence[Kind], baselines: dict[str, dict[str, float]], findings: dict[str, Any], folder: Path
) -> list[Path]:
    """Write both pictures; returns where they are."""
    plot_scaling(kinds, baselines, folder / "scaling.png")
    plot_prediction(kinds, findings, folder / "prediction.png")
    return [folder / "scaling.png", folder / "prediction.png"]


# ---------------------------------------------------------------------- findings


def find(rows: Sequence[Row]) -> dict[str, Any]:
    """What the policies of one world show: correlations with the outcomes, and with size and data."""
    out: dict[str, Any] = {"policies": len(rows), "reliability": reliability(rows)}
    for outcome in OUTCOMES:
        out[outcome] = {
            name: correlation(rows, name, outcome, sign) for name, sign in PREDICTORS.items() if name != outcome
        }
    out["causality_over_loss"] = advantage(rows, "causality", "loss", "return")
    scaled = [r for r in rows if r["decoder"] == "decoder" and r["past_actions"]]
    for name in ("causality", "intervention_accuracy", "loss", "return"):
        out[f"{name}_by_size"] = correlation(scaled, "parameters", name, 1, within="fraction")
        out[f"{name}_by_data"] = correlation(scaled, "fraction", name, 1, within="size")
    return out


def correlation(
    rows: Sequence[Row], name: str, outcome: str, sign: int, within: str | None = None
) -> dict[str, Any] | None:
    """Rank correlation of a measure (times its sign) with an outcome; None where there are too few policies.

    Args:
        rows: of one world.
        name: of the measure.
        outcome: what it should predict.
        sign: -1 where less of the measure should be better.
        within: ranks are taken within rows that share this key, so that what it does is left out.
    """
    rows = [r for r in rows if r[name] is not None and r[outcome] is not None]
    if len(rows) < FEWEST:
        return None
    columns = [np.array([float(r[key]) for r in rows]) for key in (name, outcome)]
    groups = np.unique([str(r[within]) for r in rows], return_inverse=True)[1] if within else np.zeros(len(rows), int)

    def rho(chosen: np.ndarray) -> float:
        x, y = (centred_ranks(column[chosen], groups[chosen]) for column in columns)
        return sign * cosine(x, y)

    value = rho(np.arange(len(rows)))
    low, high = interval_over_groups(rho, kinds_of(rows), RESAMPLES)
    return None if math.isnan(value) else {"rho": value, "low": low, "high": high, "policies": len(rows)}


def advantage(rows: Sequence[Row], one: str, other: str, outcome: str) -> dict[str, Any] | None:
    """By how much one measure's rank correlation with the outcome exceeds another's, over the same policies."""
    rows = [r for r in rows if all(r[key] is not None for key in (one, other, outcome))]
    if len(rows) < FEWEST:
        return None
    columns = {key: np.array([float(r[key]) for r in rows]) for key in (one, other, outcome)}
    alone = np.zeros(len(rows), int)

    def difference(chosen: np.ndarray) -> float:
        ranks = {key: centred_ranks(column[chosen], alone) for key, column in columns.items()}
        first, second = (PREDICTORS[key] * cosine(ranks[key], ranks[outcome]) for key in (one, other))
        return first - second

    value = difference(np.arange(len(rows)))
    low, high = interval_over_groups(difference, kinds_of(rows), RESAMPLES)
    return None if math.isnan(value) else {"difference": value, "low": low, "high": high}


def centred_ranks(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ranks within each group, ties sharing their mean rank, minus the group's mean."""
    out = np.zeros(len(values))
    for group in np.unique(groups):
        inside = groups == group
        _, which, counts = np.unique(values[inside], return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]
        out[inside] = ranks - ranks.mean()
    return out


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else math.nan


def kinds_of(rows: Sequence[Row]) -> np.ndarray:
    """Which rows are of one kind of policy and differ in their seed alone, (rows,) int."""
    kinds = [str([row[key] for key in KIND]) for row in rows]
    return np.unique(kinds, return_inverse=True)[1]


def reliability(rows: Sequence[Row]) -> float | None:
    """Share of the variance of mean returns that is the policies' and not the luck of their games, from 0 to 1.

    No measure can correlate with the mean return by more than about its square root.
    """
    variance = float(np.var([row["return"] for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    noise = float(np.mean([np.var(row["returns"], ddof=1) / len(row["returns"]) for row in rows]))
    return max(0.0, 1 - noise / variance) if variance > 0 else None


# ---------------------------------------------------------------------- tables


def section(world: str, rows: Sequence[Row], baseline: dict[str, float], findings: dict[str, Any]) -> str:
    """The part of the report about one world."""
    parts = [
        f"### {world}",
        f"{len(rows)} policies; expert {baseline['expert']:.1f}, random {baseline['random']:.1f}. "
        f"{chance(rows, findings)}Means over seeds, ± half the range.",
        policies_table(rows),
        "Rank correlation over policies, 95 % intervals over kinds of policies; signs are turned so that more should "
        "be better.",
        predictors_table(findings),
        scaling_sentences(findings),
    ]
    return "\n\n".join(parts)


def chance(rows: Sequence[Row], findings: dict[str, Any]) -> str:
    """What to know before reading correlations: how much of the return is luck, and what a constant answer gets."""
    share, constant = findings["reliability"], rows[0].get("constant")
    parts = []
    if share is not None:
        parts.append(
            f"{share:.0%} of the variance of mean returns is the policies', the rest luck of {len(rows[0]['returns'])} "
            f"games, so no measure can correlate with it by more than about {math.sqrt(share):.2f}. "
        )
    if constant is not None:
        parts.append(f"The best constant answer is right in {constant:.0%} of the interventions that tell. ")
    return "".join(parts)


COLUMNS = {
    "loss": ("loss", 3),
    "accuracy": ("accuracy", 3),
    "change_accuracy": ("at changes", 3),
    "change_repeat_accuracy": ("repeating there", 3),
    "causality": ("causality", 2),
    "action_reliance": ("action reliance", 2),
    "persistence": ("persistence", 3),
    "intervention_accuracy": ("interventions", 2),
    "habit": ("as if nothing happened", 2),
    "return": ("return", 1),
}


def average(rows: Sequence[Row]) -> list[Kind]:
    """Kinds of policies, seeds averaged, in the order of their first policies."""
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(row[key] for key in ("world", *KIND)), []).append(row)
    return [
        Kind(
            **{key: some[0][key] for key in ("world", *KIND, "parameters")},
            policies=len(some),
            values={
                name: (float(np.mean(known)), float(np.ptp(known)) / 2)
                for name in COLUMNS
                if (known := [row[name] for row in some if row[name] is not None])
            },
        )
        for some in kinds.values()
    ]


def policies_table(rows: Sequence[Row]) -> str:
    """One line per kind of policy, seeds averaged."""
    head = ["size", "parameters", "data", "decoder", "past actions", *(title for title, _ in COLUMNS.values())]
    lines = [head, ["---"] * 5 + ["---:"] * len(COLUMNS)]
    for kind in average(rows):
        past = "yes" if kind.past_actions else "no"
        about = [kind.size, f"{kind.parameters / 1e6:.2f} M", f"{kind.fraction:.0%}", kind.decoder, past]
        lines.append([*about, *(_with_spread(kind, name, digits) for name, (_, digits) in COLUMNS.items())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_spread(kind: Kind, name: str, digits: int) -> str:
    if name not in kind.values:
        return "-"
    mean, spread = kind.values[name]
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if kind.policies > 1 else "")


def predictors_table(findings: dict[str, Any]) -> str:
    lines = ["| measure | with return in play | with intervention accuracy |", "|---|---:|---:|"]
    for name in PREDICTORS:
        cells = [_rho(findings[outcome].get(name)) for outcome in OUTCOMES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rho(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['rho']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def scaling_sentences(findings: dict[str, Any]) -> str:
    """Answers to the two questions of the study, worded by what the intervals allow."""
    lines = []
    for cause, held in (("size", "data"), ("data", "size")):
        for name in ("causality", "intervention_accuracy", "loss", "return"):
            found = findings[f"{name}_by_{cause}"]
            if found is not None:
                lines.append(f"- {name} with {cause} ({held} held fixed): {_direction(found)} {_rho(found)}")
    better = findings["causality_over_loss"]
    if better is not None:
        verdict = "undecided"
        if better["low"] > 0 or better["high"] < 0:
            verdict = "yes" if better["low"] > 0 else "no, worse"
        lines.append(
            f"- does causality predict play better than loss? {verdict}: rank correlation "
            f"{better['difference']:+.2f} ({better['low']:+.2f} to {better['high']:+.2f}) above that of the loss"
        )
    return "\n".join(lines)


def _direction(found: dict[str, Any]) -> str:
    if found["low"] > 0:
        return "rises,"
    return "falls," if found["high"] < 0 else "no clear direction,"
