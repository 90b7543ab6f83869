"""Tables, verdict and picture of ``bczoo study labels``.

Place in the pipeline: takes the rows of :mod:`bczoo.studies.labels` and writes ``labels.json`` and ``labels.png``.

For each number n of labelled recordings, and for the loss on held-out recordings as for the return in play:

    gain       of m recordings with guesses over none: labelled less guessed (of returns guessed less labelled), by seed
    gap        the same of m recordings with the truth
    won back   mean gain over mean gap, where the interval of the gap is above 0

Intervals are Student's t over seeds, of differences between policies that share a seed and so its recordings. That
guesses help is ``reproduced`` for an n if the interval of the gain is above 0, ``contradicted`` if it is below, and
``undecided`` otherwise. What guesses are worth in labels is read off the loss of policies that learned from labels
alone: the number of labelled recordings that gives the loss of n and m guessed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.devices import processor
from bczoo.core.files import write_json
from bczoo.core.style import BLACK, DASHES, MUTED, point_style, saved_figure
from bczoo.core.tables import markdown_table
from bczoo.studies.characters_report import interval

NAMES = {"labelled": "n labelled", "guessed": "n labelled + m read off", "true": "n + m labelled"}
BETTER = {"loss": -1, "return": 1}  # sign of an improvement
LABELS = {"loss": "held-out loss", "return": "return in play"}
MOST = 0.5  # share of the gap that counts as most of it won back
SPREAD = 1.06  # factor between points of one n in the picture
Row = Mapping[str, Any]


def report(
    policies: Sequence[Row], readers: Sequence[Row], baselines: Mapping[str, float], plan: Row, folder: Path
) -> dict[str, Any]:
    """Compare, judge, print and write.

    Args:
        policies: rows of all policies.
        readers: rows of all inverse dynamics models.
        baselines: return of expert and random play.
        plan: what was trained.
        folder: of labels.json and labels.png.

    Returns:
        What is in labels.json.
    """
    compared = {measure: compare(policies, measure) for measure in BETTER}
    content: dict[str, Any] = {
        "plan": dict(plan),
        "processor": processor(),
        "policies": list(policies),
        "readers": list(readers),
        "baselines": dict(baselines),
        "compared": compared,
        "worth": worth(policies),
        "verdict": {measure: verdict(rows) for measure, rows in compared.items()},
    }
    write_json(folder / "labels.json", content, indent=1)
    plot(content, folder / "labels.png")
    print(f"\n{tables(content)}\n\n{sentences(content)}\n\n{folder / 'labels.json'}, {folder / 'labels.png'}")
    return content


def compare(policies: Sequence[Row], measure: str) -> list[dict[str, Any]]:
    """For each n the mean of every way, and what guesses and the truth gain over labels alone.

    Args:
        policies: rows.
        measure: loss or return.
    """
    out = []
    for n in sorted({row["few"] for row in policies}):
        by_way = {way: _by_seed(policies, way, n, measure) for way in NAMES}
        gain, gap = (BETTER[measure] * (by_way[way] - by_way["labelled"]) for way in ("guessed", "true"))
        low = interval(gap.tolist())[0]
        there_is_one = low is not None and low > 0
        out.append(
            {
                "few": n,
                **{way: _summary(values) for way, values in by_way.items()},
                "gain": _summary(gain),
                "gap": _summary(gap),
                "won_back": float(gain.mean() / gap.mean()) if there_is_one else None,
            }
        )
    return out


def _by_seed(policies: Sequence[Row], way: str, n: int, measure: str) -> np.ndarray:
    rows = sorted((row for row in policies if (row["way"], row["few"]) == (way, n)), key=lambda row: row["seed"])
    return np.array([row[measure] for row in rows], float)


def _summary(values: np.ndarray) -> dict[str, float | None]:
    low, high = interval(values.tolist())
    return {"mean": float(values.mean()), "low": low, "high": high}


def worth(policies: Sequence[Row]) -> list[dict[str, Any]]:
    """For each n how many labelled recordings alone give the loss of n and m guessed ones.

    Between two numbers of recordings that were trained on, the loss is taken to be linear in the logarithm of the
    number; ``at`` says ``within`` them, or that it is ``less`` than the smallest or ``more`` than the largest.
    """
    points: dict[int, list[float]] = {}
    for row in policies:
        if row["way"] != "guessed":
            points.setdefault(row["recordings"], []).append(row["loss"])
    counts = sorted(points)
    losses = np.minimum.accumulate([np.mean(points[count]) for count in counts])
    out = []
    for n in sorted({row["few"] for row in policies}):
        loss = float(_by_seed(policies, "guessed", n, "loss").mean())
        count = float(np.exp(np.interp(-loss, -losses, np.log(counts))))
        at = "less" if loss > losses[0] else "more" if loss < losses[-1] else "within"
        out.append({"few": n, "labelled": count, "at": at})
    return out


def verdict(compared: Sequence[Row]) -> dict[str, str]:
    """Whether guesses help, by n and in all: reproduced if they do for every n, contradicted if they harm for one."""
    steps = {f"n = {row['few']}": _judged(row["gain"]) for row in compared}
    answers = set(steps.values())
    whole = "contradicted" if "contradicted" in answers else "undecided" if "undecided" in answers else "reproduced"
    return {**steps, "all": whole}


def _judged(gain: Mapping[str, float | None]) -> str:
    low, high = gain["low"], gain["high"]
    if low is None or high is None:
        return "undecided"
    return "reproduced" if low > 0 else "contradicted" if high < 0 else "undecided"


def tables(content: Row) -> str:
    """Loss and return by n and way, and the quality of the guesses, in Markdown."""
    out = []
    for measure, rows in content["compared"].items():
        digits = 3 if measure == "loss" else 1
        head = [f"n, {LABELS[measure]}", *NAMES.values(), "gain of guesses", "of the truth", "won back"]
        cells = [
            [str(row["few"]), *(_shown(row[k], digits) for k in (*NAMES, "gain", "gap")), _won(row)] for row in rows
        ]
        out.append(markdown_table([head, *cells]))
    names = [name for name in content["readers"][0] if name not in ("few", "seed", "name")]
    quality = [["n, guesses", *names]]
    for n in sorted({row["few"] for row in content["readers"]}):
        values = [[row[name] for row in content["readers"] if row["few"] == n and name in row] for name in names]
        quality.append([str(n), *(f"{np.mean(one):.3f}" if one else "-" for one in values)])
    return "\n\n".join([*out, markdown_table(quality)])


def _shown(of: Mapping[str, float | None], digits: int) -> str:
    ends = "" if of["low"] is None else f" ({of['low']:.{digits}f} to {of['high']:.{digits}f})"
    return f"{of['mean']:.{digits}f}{ends}"


def _won(row: Row) -> str:
    return "no gap" if row["won_back"] is None else f"{row['won_back']:.0%}"


def sentences(content: Row) -> str:
    """The verdict in words."""
    plan, baselines = content["plan"], content["baselines"]
    lines = [
        f"{plan['env']}, recordings of {plan['minutes']:.2f} minutes, m = {plan['more']}; {plan['seeds']} seeds, "
        f"{plan['games']} games each; expert {baselines['expert']:.1f}, random {baselines['random']:.1f}; "
        f"{content['processor']}; 95 % intervals over seeds"
    ]
    for measure, verdicts in content["verdict"].items():
        by_n = ", ".join(f"{step} {answer}" for step, answer in verdicts.items() if step != "all")
        lines.append(f"guesses improve the {LABELS[measure]}: {verdicts['all']} ({by_n})")
    bounds = {"less": "less than ", "within": "", "more": "more than "}
    for row in content["worth"]:
        count = f"{bounds[row['at']]}{row['labelled']:.1f}"
        lines.append(f"{row['few']} labelled and {plan['more']} read off are worth {count} labelled, by held-out loss")
    for measure, rows in content["compared"].items():
        enough = [row["few"] for row in rows if row["won_back"] is not None and row["won_back"] >= MOST]
        told = f"from {min(enough)} labelled recordings on" if enough else "with none of these numbers of labels"
        lines.append(f"half of the gap or more is won back, by {LABELS[measure]}, {told}")
    return "\n".join(f"* {line}" for line in lines)


def plot(content: Row, path: Path) -> None:
    """Draw loss and return over n, a line per way, and the quality of the guesses.

    Args:
        content: as in labels.json.
        path: of the picture.
    """
    with saved_figure(path, height=3.6) as figure:
        *areas, last = figure.subplots(1, 3)
        counts = [row["few"] for row in content["compared"]["loss"]]
        for area, (measure, rows) in zip(areas, content["compared"].items(), strict=True):
            for i, (way, name) in enumerate(NAMES.items()):
                places, means = [n * SPREAD ** (i - 1) for n in counts], [row[way]["mean"] for row in rows]
                style = point_style(i)
                area.plot(places, means, linewidth=1.2, **style, label=name)
                for x, row in zip(places, rows, strict=True):
                    if row[way]["low"] is not None:
                        area.plot([x, x], [row[way]["low"], row[way]["high"]], color=style["color"], linewidth=0.9)
            area.set_title(LABELS[measure].capitalize())
        for name, dashes in (("expert", DASHES[1]), ("random", DASHES[2])):
            areas[1].axhline(content["baselines"][name], color=MUTED, linewidth=0.8, linestyle=dashes, label=name)
        for i, (name, color_of) in enumerate({"joint": "read off", "joint_copy": "the one before, copied"}.items()):
            by_n = [np.mean([row[name] for row in content["readers"] if row["few"] == n]) for n in counts]
            style = point_style(i + 3) if name == "joint" else {"color": BLACK, "linestyle": DASHES[1]}
            last.plot(counts, by_n, linewidth=1.2, **style, label=color_of)
        last.set_title("Whole actions right")
        last.set_ylim(0, 1)
        last.legend(loc="lower right")
        for area in (*areas, last):
            area.set_xscale("log")
            area.set_xticks(counts, [str(n) for n in counts])
            area.minorticks_off()
            area.set_xlabel("n, labelled recordings")
        handles, labels = areas[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5)
