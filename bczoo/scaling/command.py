"""``bczoo scaling fit``: from runs, or a table, to exponents, constants, a file and a picture.

Place in the pipeline: reads curves (:mod:`bczoo.scaling.points`), takes out what never enters a fit
(:mod:`bczoo.scaling.curves`), has one of the three methods fit them, and writes what came out for
``bczoo scaling plan`` (:mod:`bczoo.scaling.planning`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, write_json
from bczoo.core.tables import markdown_table
from bczoo.scaling import frontier, parametric
from bczoo.scaling.curves import Curve, prepare_all
from bczoo.scaling.extrapolation import Extrapolation, extrapolate
from bczoo.scaling.isoflop import fit_isoflop
from bczoo.scaling.law import EXPONENTS, ScalingFit
from bczoo.scaling.points import parse_columns, read_sources


@dataclass(frozen=True)
class Settings:
    """Options of the methods, as :func:`fit` takes them."""

    crossings: frontier.Method = "crossings"
    objective: parametric.Objective = "huber"
    huber_delta: float = 1e-3
    paper_bounds: bool = False
    resamples: int = 1000
    seed: int = 0

    def fit(self, method: str, curves: Sequence[Curve]) -> ScalingFit:
        """The fit of prepared curves by a method."""
        if method == "frontier":
            return frontier.fit_frontier(curves, self.crossings, self.paper_bounds, self.resamples, self.seed)
        if method == "isoflop":
            return fit_isoflop(curves, None, self.resamples, self.seed)
        n, run = (np.concatenate([np.full(len(c.loss), x) for x, c in pairs]) for pairs in _by_curve(curves))
        d, y = (np.concatenate(values) for values in ([c.tokens for c in curves], [c.loss for c in curves]))
        options: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed, "objective": self.objective}
        return parametric.fit_parametric(n, d, y, run, self.huber_delta, **options)


def fit(
    sources: list[str],
    method: Literal["auto", "frontier", "parametric", "isoflop"] = "auto",
    target: str = "loss",
    flops: Literal["6nd", "6nd_attention", "measured"] = "6nd",
    params: Literal["with", "without"] = "with",
    columns: str | None = None,
    skip: float = 0.05,
    crossings: Literal["crossings", "grid"] = "crossings",
    objective: Literal["huber", "squares"] = "huber",
    huber_delta: float = 1e-3,
    paper_bounds: bool = False,
    holdout: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    out: str | None = None,
) -> ScalingFit:
    """Fit a scaling law to runs: how the best size, the best amount of data and the loss go with compute.

    Args:
        sources: runs such as runs/a, or tables such as points.csv with the columns run, params, tokens, loss, maybe
            flops.
        method: auto takes the frontier of curves that cross, and the parametric law where that is refused; isoflop
            takes parabolas at budgets.
        target: what is fitted in the place of the loss, such as val/loss, or a column of the table.
        flops: how compute is counted: 6 N D, with attention, or as measured.
        params: whether sizes count embeddings.
        columns: columns of tables that are named otherwise, such as params=N,tokens=D.
        skip: share of the tokens at the start of a run that is left out.
        crossings: how the frontier is read; grid as in the paper, whose slope is low.
        objective: of the parametric law; squares of the loss as in the paper.
        huber_delta: of the objective huber; from there on residuals count by their size.
        paper_bounds: keep E of the frontier above 0.1, as in the paper.
        holdout: fit without the largest size, and say how well that one is predicted.
        resamples: of the bootstrap behind the intervals; 0 for none.
        seed: of the bootstrap.
        out: file for the fit, such as fit.json; a picture of the same name lies beside it.
    """
    if out is not None:
        require_file_target(out, "--out", "fit.json")
    if not 0 <= skip < 1:
        raise UserError(f"--skip is a share of the tokens from 0 to below 1, got {skip}")
    if resamples < 0:
        raise UserError(f"--resamples must be at least 0, got {resamples}")
    read = read_sources(sources, target, flops, params, parse_columns(columns))
    curves, dropped = prepare_all(read.curves, skip)
    dropped, flags = [*read.dropped, *dropped], list(read.notes)
    if method in ("auto", "frontier") and _rises(curves):
        flags.append(f"{target} rises with compute: the largest value is the best, and E, c, c0 are refused")
        curves = [curve._replace(loss=-curve.loss) for curve in curves]
    if flops != "6nd" and method in ("auto", "parametric"):
        flags.append(f"the parametric law has its best size under C = 6 N D, whatever --flops {flops} counts")
    settings = Settings(crossings, objective, huber_delta, paper_bounds, resamples, seed)
    held: Extrapolation | None = None
    refused: dict[str, str] = {}
    found: ScalingFit | None = None
    for name in ("frontier", "parametric") if method == "auto" else (method,):
        try:
            if holdout:
                held, found = extrapolate(curves, lambda chosen, name=name: settings.fit(name, chosen))  # type: ignore[misc]
            else:
                found = settings.fit(name, curves)
            break
        except UserError as error:
            refused[name] = str(error)
    if found is None:
        if out is not None:
            empty = {
                **dict.fromkeys(EXPONENTS),
                "intervals": {},
                "dropped": dropped,
                "flags": flags,
                "refused": refused,
            }
            write_json(out, {"method": method, **empty})
        raise UserError("; ".join(f"{name}: {why}" for name, why in refused.items()))
    found = replace(
        found,
        dropped=(*dropped, *found.dropped),
        flags=(*flags, *found.flags),
        refused=refused | found.refused,
        tokens_per_frame=read.tokens_per_frame,
    )
    print(report(found, target))
    if held is not None:
        print(f"\n{held}")
    if out is not None:
        from bczoo.scaling.pictures import draw_fit

        picture = Path(out).with_suffix(".png")
        write_json(out, found.to_dict() | ({} if held is None else {"holdout": held.to_dict()}))
        draw_fit(curves, found, picture, target)
        print(f"\n{out}, {picture}")
    return found


def report(found: ScalingFit, target: str = "loss") -> str:
    """A fit in Markdown: constants with their intervals, then what was left out, flagged and refused."""
    what = {
        "a": "N_opt = a0 C^a",
        "b": "D_opt = b0 C^b",
        "a0": "",
        "b0": "",
        "E": f"{target} = E + c0 C^-c at the optimum",
        "c": "",
        "c0": "",
        "A": f"{target} = E + A N^-alpha + B D^-beta",
        "B": "",
        "alpha": "",
        "beta": "",
    }
    rows = [[found.method, "", "value", "95 % interval"]]
    for name, formula in what.items():
        if (value := getattr(found, name)) is not None:
            low, high = found.intervals.get(name, (None, None))
            rows.append([name, formula, f"{value:.5g}", "-" if low is None else f"{low:.4g} to {high:.4g}"])
    lines = [markdown_table(rows, left=2)]
    for title, told in (("left out", found.dropped), ("flagged", found.flags)):
        lines += [f"* {title}: {line}" for line in told]
    reasons: dict[str, list[str]] = {}
    for name, why in found.refused.items():
        reasons.setdefault(why, []).append(name)
    lines += [f"* refused: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def _by_curve(curves: Sequence[Curve]) -> tuple[list[tuple[float, Curve]], list[tuple[int, Curve]]]:
    """Every curve with its size, and with its number."""
    return [(c.params, c) for c in curves], list(enumerate(curves))


def _rises(curves: Sequence[Curve]) -> bool:
    """Whether a measure grows with compute, judged by ranks: returns and scores of causality do."""
    c, y = (np.concatenate(values) for values in ([k.compute for k in curves], [k.loss for k in curves]))
    of_c, of_y = (np.argsort(np.argsort(values)).astype(float) for values in (c, y))
    return len(c) > 2 and float(np.corrcoef(of_c, of_y)[0, 1]) > 0
