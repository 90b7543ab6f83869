"""Pictures of a fit: curves and their envelope, the optimum over compute, isoFLOP slices, residuals.

Place in the pipeline: ``bczoo scaling fit --out fit.json`` draws ``fit.png`` here, in the common style
(:mod:`bczoo.core.style`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bczoo.core.style import BAND, BLACK, BLUE, MUTED, ORANGE, saved_figure, shades
from bczoo.scaling.curves import Curve
from bczoo.scaling.isoflop import FEWEST_SIZES, slices
from bczoo.scaling.law import ScalingFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLICES = 6
PLACES = 60  # of a line


def draw_fit(curves: Sequence[Curve], fit: ScalingFit, path: str | Path, target: str = "loss") -> None:
    """Write the picture of a fit.

    Args:
        curves: that were fitted.
        fit: of them.
        path: of the picture.
        target: what was fitted, for the axes.
    """
    with saved_figure(path, height=8.6) as figure:
        figure.suptitle(f"{fit.method}: a = {fit.a:.3f}, b = {fit.b:.3f}")
        (loss, best), (iso, rest) = figure.subplots(2, 2)
        sizes = sorted({curve.params for curve in curves})
        colors = dict(zip(sizes, shades(len(sizes)), strict=True))
        _losses(loss, curves, fit, colors, target)
        _optimum(best, curves, fit)
        _slices(iso, curves, fit, target)
        _residuals(rest, curves, fit, colors)


def _losses(axes: Axes, curves: Sequence[Curve], fit: ScalingFit, colors: dict[float, str], target: str) -> None:
    named = set(list(colors)[:: max(1, len(colors) // 6)])  # a legend of all would hide the curves
    for curve in sorted(curves, key=lambda curve: curve.params):
        label = f"N = {curve.params:.3g}" if curve.params in named else None
        named.discard(curve.params)
        marker = "." if len(curve.loss) == 1 else ""
        axes.plot(curve.compute, curve.loss, color=colors[curve.params], linewidth=1, marker=marker, label=label)
    if fit.E is not None:
        c = np.geomspace(*fit.range["flops"], PLACES)
        axes.plot(c, fit.loss_opt(c), color=BLACK, linestyle="--", label="E + c0 C^-c")
        axes.set_ylim(0.97 * min(float(k.loss.min()) for k in curves), max(float(k.loss.max()) for k in curves))
    axes.set_xscale("log")
    axes.set_title("Loss and its envelope")
    axes.set_xlabel("compute C (FLOPs)")
    axes.set_ylabel(target)
    axes.legend(loc="upper right")


def _optimum(axes: Axes, curves: Sequence[Curve], fit: ScalingFit) -> None:
    low, high = fit.range["flops"]
    c = np.geomspace(low, 10 * high, PLACES)
    for color, name, quantity, line in ((BLUE, "N", "n_opt", fit.n_opt(c)), (ORANGE, "D", "d_opt", fit.d_opt(c))):
        exponent = fit.a if name == "N" else fit.b
        axes.plot(c, line, color=color, label=f"{name} best, C^{exponent:.3f}")
        if fit.samples:
            ends = np.array([fit.interval_of(quantity, x) for x in c])
            axes.fill_between(c, ends[:, 0], ends[:, 1], color=color, alpha=BAND, linewidth=0)
    if fit.law is None:
        axes.plot(fit.points[:, 0], fit.points[:, 1], "o", color=BLUE)
        axes.plot(fit.points[:, 0], fit.points[:, 2], "s", color=ORANGE)
    axes.axvspan(high, 10 * high, color=MUTED, alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Best N and D (grey: beyond the fit)")
    axes.set_xlabel("compute C (FLOPs)")
    axes.legend(loc="upper left")


def _slices(axes: Axes, curves: Sequence[Curve], fit: ScalingFit, target: str) -> None:
    axes.set_title("isoFLOP curves")
    axes.set_xlabel("size N")
    axes.set_ylabel(target)
    axes.set_xscale("log")
    positive = [curve for curve in curves if curve.loss.min() > 0]
    low, high = fit.range["flops"]
    cuts = [
        (budget, cut[np.argsort(cut[:, 1])])
        for budget, cut in slices(positive, np.geomspace(low, high, SLICES + 2)[1:-1])
        if len(np.unique(cut[:, 1])) >= FEWEST_SIZES
    ]
    for (budget, cut), color in zip(cuts, shades(len(cuts)), strict=True):
        axes.plot(np.exp(cut[:, 1]), np.exp(cut[:, 3]), "o", color=color, label=f"C = {budget:.2g}")
        if fit.law is not None:
            n = np.geomspace(np.exp(cut[0, 1]), np.exp(cut[-1, 1]), PLACES)
            axes.plot(n, fit.law.loss(n, budget / (6 * n)), color=color, linewidth=1)
        else:
            axes.plot(np.exp(cut[:, 1]), np.exp(cut[:, 3]), color=color, linewidth=1)
    if cuts:
        axes.legend(loc="upper right")
    else:
        axes.text(0.5, 0.5, "no budget is shared by three runs", ha="center", transform=axes.transAxes)


def _residuals(axes: Axes, curves: Sequence[Curve], fit: ScalingFit, colors: dict[float, str]) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("compute C (FLOPs)")
    if fit.law is not None:
        for curve in curves:
            predicted = fit.law.loss(curve.params, curve.tokens)
            axes.plot(curve.compute, np.log(curve.loss / predicted), ".", color=colors[curve.params], markersize=3)
        axes.set_title("Residuals: ln loss less ln law")
    else:
        c, n, d, _ = fit.points.T
        axes.plot(c, np.log(n / fit.n_opt(c)), "o", color=BLUE, label="N")
        axes.plot(c, np.log(d / fit.d_opt(c)), "s", color=ORANGE, label="D")
        axes.legend(loc="best")
        axes.set_title("Residuals of the optimum: ln less ln law")
