"""Pictures of ``bczoo study confusion``.

Place in the pipeline: :mod:`bczoo.studies.confusion_report` hands over kinds of policies, seeds averaged, and the rank
correlations that it found; ``scaling.png`` and ``prediction.png`` go out. ``report.json`` holds all that is drawn, so
``bczoo study redraw`` draws it again without the policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bczoo.core.style import MUTED, SMALL, line_style, point_style, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WORDS = {  # measure -> as the axes call it, with its unit
    "loss": "loss (nats)",
    "causality": "causality (nats)",
    "change_accuracy": "accuracy at changes",
    "intervention_accuracy": "intervention accuracy",
    "return": "return in play",
}
SCALED = ("loss", "causality", "intervention_accuracy", "return")
PREDICTING = ("loss", "causality", "change_accuracy", "intervention_accuracy")
DECODERS = {"decoder": "action decoder", "no decoder": "no decoder", "independent": "independent heads"}
ROOM = 1.3  # by how much the axis of shares goes on beyond the smallest and the largest
BESIDE = 1.06  # factor between the places of two sizes with the same share


@dataclass(frozen=True)
class Kind:
    """Policies of one world that differ in their seed alone.

    Args:
        world: the game.
        size: of the backbone.
        parameters: of the whole policy.
        fraction: share of the training frames.
        decoder: how actions are predicted.
        past_actions: whether the policy sees them.
        policies: how many there are.
        values: by measure the mean over them, and half the range; half the range of one policy is 0.
    """

    world: str
    size: str
    parameters: float
    fraction: float
    decoder: str
    past_actions: bool
    policies: int
    values: Mapping[str, Sequence[float]]


def plot_scaling(kinds: Sequence[Kind], baselines: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Loss, causality, intervention accuracy and return over the share of data; a row each, and a column per world.

    Args:
        kinds: of all worlds; those with the action decoder and past actions are drawn, a line per size.
        baselines: per world the mean return of ``expert`` and ``random``.
        path: of the picture.
    """
    scaled = [kind for kind in kinds if kind.decoder == "decoder" and kind.past_actions]
    worlds, sizes = _each(kind.world for kind in kinds), _each(kind.size for kind in scaled)
    with saved_figure(path, height=1.2 + 1.75 * len(SCALED)) as figure:
        axes = figure.subplots(len(SCALED), len(worlds), squeeze=False, sharex=True)
        for column, world in enumerate(worlds):
            here = [kind for kind in scaled if kind.world == world]
            for row, name in enumerate(SCALED):
                _plot_sizes(axes[row, column], here, sizes, name)
            axes[0, column].set_title(world)
            play = baselines[world]
            note = f"expert {play['expert']:,.0f}, random play {play['random']:,.0f}".replace("-", "−")
            axes[-1, column].set_title(note, fontsize=SMALL, color=MUTED, loc="right", pad=3)
            axes[-1, column].set_xlabel("share of the recordings to learn from")
        for row, name in enumerate(SCALED):
            axes[row, 0].set_ylabel(WORDS[name])
        figure.align_ylabels(axes[:, 0])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        title = f"mean over {_policies(scaled)}; bars: ± half the range over them"
        figure.legend(handles, labels, title=title, loc="outside upper center", ncols=len(labels))


def _plot_sizes(axes: Axes, kinds: Sequence[Kind], sizes: Sequence[str], name: str) -> None:
    """One measure over the share of data, a line per size; they stand side by side, so that no bar hides another."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shares = sorted({kind.fraction for kind in kinds})
    for i, size in enumerate(sizes):
        some = sorted((k for k in kinds if k.size == size and name in k.values), key=lambda k: k.fraction)
        if not some:
            continue
        aside = BESIDE ** (i - (len(sizes) - 1) / 2)
        means, spreads = ([kind.values[name][j] for kind in some] for j in (0, 1))
        look = line_style(i) | point_style(i) | {"capsize": 2.5, "elinewidth": 1}
        label = f"{size}: {some[0].parameters / 1e6:.2f} M parameters"
        axes.errorbar([kind.fraction * aside for kind in some], means, spreads, **look, label=label)
    axes.set_xscale("log")
    axes.set_xlim(shares[0] / ROOM, shares[-1] * ROOM)
    axes.xaxis.set_major_locator(FixedLocator(shares))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))


def plot_prediction(kinds: Sequence[Kind], findings: Mapping[str, Any], path: Path) -> None:
    """Return in play over what should predict it, a point per kind of policy; a row per world.

    Args:
        kinds: of all worlds.
        findings: per world the rank correlations over policies, by outcome and measure.
        path: of the picture.
    """
    worlds, looks = _each(kind.world for kind in kinds), _each((kind.decoder, kind.past_actions) for kind in kinds)
    decoders = _each(decoder for decoder, _ in looks)
    with saved_figure(path, height=1.2 + 2.3 * len(worlds)) as figure:
        axes = figure.subplots(len(worlds), len(PREDICTING), squeeze=False, sharey="row")
        for row, world in enumerate(worlds):
            for column, name in enumerate(PREDICTING):
                area = axes[row, column]
                for decoder, past in looks:
                    some = [k for k in kinds if (k.world, k.decoder, k.past_actions) == (world, decoder, past)]
                    _plot_kinds(area, some, name, decoders.index(decoder), past)
                area.set_xlabel(WORDS[name])
                found = findings[world]["return"].get(name)
                text = (
                    "" if found is None else f"ρ = {found['rho']:+.2f}\n({found['low']:+.2f} to {found['high']:+.2f})"
                )
                area.set_title(text.replace("-", "−"), fontsize="medium")
            axes[row, 0].set_ylabel(f"{world}\n{WORDS['return']}")
        title = (
            f"a point is the mean over {_policies(kinds)}, its bars are ± half the range over them\n"
            "ρ: rank correlation over policies (95 % interval); + where what should be better goes with a higher return"
        )
        marks = _legend(decoders, both=len({past for _, past in looks}) > 1)
        figure.legend(handles=marks, title=title, loc="outside lower center", ncols=len(marks), columnspacing=1.2)


def _plot_kinds(axes: Axes, kinds: Sequence[Kind], name: str, decoder: int, past: bool) -> None:
    """Points of one decoder; hollow where past actions are hidden."""
    known = [kind for kind in kinds if name in kind.values and "return" in kind.values]
    x, x_spread, y, y_spread = ([kind.values[key][i] for kind in known] for key in (name, "return") for i in (0, 1))
    look = point_style(decoder)
    axes.errorbar(
        x, y, y_spread, x_spread, **look, linestyle="none", elinewidth=0.8, ecolor=(look["color"], 0.45),
        markerfacecolor=look["color"] if past else "white", markeredgewidth=1.2,
    )  # fmt: skip
    axes.locator_params(axis="x", nbins=3)


def _legend(decoders: Sequence[str], both: bool) -> list[Line2D]:
    """What the points mean; hollow ones too, where there are both."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="none", **point_style(i), label=DECODERS.get(name, name))
        for i, name in enumerate(decoders)
    ]
    for label, face in (("past actions seen", MUTED), ("not seen", "white")) if both else ():
        marks.append(Line2D([], [], linestyle="none", marker="o", color=MUTED, markerfacecolor=face, label=label))
    return marks


def _each(values: Any) -> list[Any]:
    """Every value once, in order."""
    return list(dict.fromkeys(values))


def _policies(kinds: Sequence[Kind]) -> str:
    """How many policies a kind has, in words."""
    counts = sorted({kind.policies for kind in kinds})
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
