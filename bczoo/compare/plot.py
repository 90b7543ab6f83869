"""``bczoo plot``: what runs logged, over steps or time.

Place in the pipeline: reads ``metrics.csv`` of runs (:mod:`bczoo.compare.runs`), groups them by seed, and writes a
picture in the common style (:mod:`bczoo.core.style`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from bczoo.compare.command import metric_names
from bczoo.compare.groups import Group, group_by_seed
from bczoo.compare.runs import Curve, Run, read_run
from bczoo.compare.table import chosen
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target
from bczoo.core.style import BAND, line_style, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 12  # points, up to which each gets a marker
PANEL_HEIGHT = 2.9  # inches
UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def plot(
    runs: list[str],
    metric: list[str] | str = "val/loss",
    out: str = "curves.png",
    x: Literal["steps", "seconds"] = "steps",
) -> str:
    """Plot curves of runs: a panel per metric, a line per run, runs that differ in their seed alone as one with a band.

    The line is the mean over seeds, the band reaches from the lowest to the highest of them.

    Args:
        runs: runs such as runs/quickstart.
        metric: what to plot, with commas between: val/loss, or train for all that begins with train/.
        out: the picture; its ending names the format (png, pdf, svg).
        x: steps; or seconds, the time of the training, at the mean pace of each run.
    """
    require_file_target(out, "--out", "curves.png")
    groups = group_by_seed([read_run(run) for run in runs])
    if not groups:
        raise UserError("give at least one run, such as runs/quickstart")
    known = dict.fromkeys(name for group in groups for run in group.runs for name in run.curves)
    names = chosen(metric_names(metric) or ["val/loss"], known, "logged")
    columns = 2 if len(names) > 1 else 1
    lines = -(-len(names) // columns)
    unit, scale = _unit(groups) if x == "seconds" else ("steps", 1.0)
    with saved_figure(out, height=PANEL_HEIGHT * lines + 0.25 * len(groups)) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            for i, group in enumerate(groups):
                _draw(panel, [_over(run, name, x, scale) for run in group.runs if name in run.curves], group, i)
            panel.set_title(name)
            panel.set_xlabel(unit if x == "steps" else f"{unit} of training")
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        handles = {handle.get_label(): handle for panel in panels for handle in panel.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=1)
    for group in groups:
        for run in group.runs:
            if lacking := [name for name in names if name not in run.curves]:
                print(f"{run.name} did not log {', '.join(lacking)}")
    print(out)
    return out


def _draw(panel: Axes, curves: list[Curve], group: Group, i: int) -> None:
    """The mean of a group's curves, and the range between them."""
    if not curves:
        return
    style = line_style(i)
    steps, values = at_common_steps(curves)
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    marker = "o" if len(steps) <= FEW else None
    panel.plot(steps, values.mean(0), **style, marker=marker, label=f"{group.name}{seeds}")
    if len(values) > 1:
        panel.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=BAND, linewidth=0)


def at_common_steps(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Curves at the steps of all of them, within the range that all of them have; between their own steps on a line.

    Returns:
        steps (n,), values (curves, n).

    Raises:
        UserError: they have no step in common.
    """
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        raise UserError("runs of one configuration logged this metric at steps that do not meet; plot them one by one")
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])


def _over(run: Run, name: str, x: str, scale: float) -> Curve:
    steps, values = run.curves[name]
    return (steps, values) if x == "steps" else (steps * _pace(run) / scale, values)


def _pace(run: Run) -> float:
    """Seconds a step, the mean over the training."""
    seconds, steps = run.training.get("seconds"), run.training.get("steps")
    if not seconds or not steps:
        raise UserError(f"{run.name} has no record of how long it trained; plot it over steps")
    return seconds / steps


def _unit(groups: list[Group]) -> tuple[str, float]:
    """The unit of time in which the longest run takes at least two, and its seconds."""
    longest = max(_pace(run) * run.training["steps"] for group in groups for run in group.runs)
    return next(((name, seconds) for name, seconds in UNITS if longest >= 2 * seconds), UNITS[-1])
