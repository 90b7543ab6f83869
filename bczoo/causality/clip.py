"""A clip of a recording with what was measured at each of its steps, and its picture.

Place in the pipeline: ``bczoo causality`` (:mod:`bczoo.causality.report`) fills a :class:`Clip` while it measures, and
:func:`plot` shows at which moments the policy looks.

Shape legend: N steps of the clip, B batch, T steps of a window, R recordings, n tokens of a group, H = W frame size in
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch, InputSpec
from bczoo.core.style import (
    BLACK,
    BLUE,
    DASHES,
    GREEN,
    MUTED,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    SMALL,
    TEXT,
    VERMILION,
    WIDTH,
    saved_figure,
)  # fmt: skip
from bczoo.data.index import Index
from bczoo.data.recording import LEARNED
from bczoo.train.metrics import Measures, change_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = 6  # frames above the curves
STACKED = (BLUE, ORANGE, GREEN, BLACK, SKY, VERMILION)  # neighbours differ in grey, too
LEFT, RIGHT = 0.78, 0.12  # inches beside the axes
SHOWN: dict[str, Any] = {"marker": "v", "color": MUTED, "markersize": 4.5, "linestyle": "none"}
CHANGE: dict[str, Any] = {"marker": "^", "color": TEXT, "markersize": 3.5, "linestyle": "none"}
WINDOW: dict[str, Any] = {"color": PALE, "linewidth": 1}
PAD = 11  # points between axes and title, for the marks in between


@dataclass
class Clip:
    """Some steps of one recording in a row, and what was measured at each.

    Args:
        recording: its number in the index.
        name: of the recording.
        first: first frame.
        fps: steps per second.
        window: steps after which the policy starts afresh.
        frames: (N, 3, H, W) uint8.
        ids: per group recorded ids (N, n).
        scores: by name (N,), not a number where a step does not count.
    """

    recording: int
    name: str
    first: int
    fps: float
    window: int
    frames: Tensor
    ids: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, index: Index, recordings: np.ndarray, spec: InputSpec, name: str | None, start: float, seconds: float
    ) -> Clip:
        """The clip of a recording, still without scores.

        Args:
            index: of the recordings.
            recordings: (R,) numbers of those that are measured.
            spec: what the policy asks of its input.
            name: which one; if left out the first that is long enough, or the longest, in which a person acts there.
            start: where the clip begins, in seconds.
            seconds: its longest length.
        """
        names = {str(index.names[r]): int(r) for r in recordings}
        if name is not None and name not in names:
            raise UserError(
                f"there is no recording {name!r} among those measured; one of them is {next(iter(names))!r}"
            )
        first, wanted = round(start * spec.fps), round(seconds * spec.fps)
        if name is None:
            here = slice(first + 1, first + 1 + wanted)
            acted = [one for one, r in names.items() if np.isin(index.steps(r)[1][here], LEARNED).any()]
            name = max(acted or names, key=lambda one: min(int(index.n_frames[names[one]]) - 1, first + wanted))
        steps = int(index.n_frames[names[name]]) - 1
        n = min(wanted, steps - first)
        if first < 0 or n < 1:
            raise UserError(
                f"the clip from {start:g} s, {seconds:g} s long, lies outside of {name!r}, which has "
                f"{steps / spec.fps:g} s"
            )
        if not np.isin(index.steps(names[name])[1][first + 1 : first + 1 + n], LEARNED).any():
            raise UserError(
                f"no step counts in the clip of {name!r} from {start:g} s on, because no action there is a person's; "
                "choose another one with clip and clip_start"
            )
        frames = torch.zeros(n, 3, *spec.shape, dtype=torch.uint8)
        return cls(names[name], name, first, spec.fps, spec.window, frames)

    def add(self, batch: Batch, measures: Measures) -> None:
        """Take down what belongs to this clip."""
        n, steps = len(self.frames), batch["valid"].shape[1]
        for row in (batch["recording"] == self.recording).nonzero()[:, 0].tolist():
            start = int(batch["start"][row]) - self.first
            begin, end = max(start, 0), min(start + steps, n)
            if begin >= end:
                continue
            here, there = slice(begin, end), slice(begin - start, end - start)
            self.frames[here] = batch["frames"][row, there].cpu()
            for name, ids in batch["actions"].items():
                self.ids.setdefault(name, ids.new_zeros(n, ids.shape[-1], device="cpu"))[here] = ids[row, there].cpu()
            for name, (values, where) in measures.items():
                if values.ndim == 2:
                    kept = torch.where(where, values, torch.nan)[row, there].cpu().double()
                    self.scores.setdefault(name, kept.new_full((n,), torch.nan))[here] = kept

    @property
    def seconds(self) -> Tensor:
        """When each step is, (N,), from the beginning of the recording."""
        return (self.first + torch.arange(len(self.frames))) / self.fps

    @property
    def surprise(self) -> Tensor:
        """-ln of the probability that the policy gives to the whole recorded action, (N,) nats."""
        return torch.stack(
            [ids.shape[-1] * self.scores[f"cross_entropy/{name}"] for name, ids in self.ids.items()]
        ).sum(0)

    @property
    def changes(self) -> Tensor:
        """Steps whose action is not that of the step before, (N,) bool."""
        return change_points({k: v[None] for k, v in self.ids.items()}, ~self.surprise.isnan()[None])[0]


def plot(clip: Clip, path: Path, title: str, kind: str, space: ActionSpace) -> None:
    """Write the clip as a picture: frames above the scores of every step.

    Args:
        clip: what was measured.
        path: of the PNG.
        title: above the frames.
        kind: the perturbation of ``causality``.
        space: the policy's action space.
    """
    side = (WIDTH - LEFT - RIGHT) / PICTURES  # inches; frames are square
    tall = (0.32, side, 0.68, 1.9, 0.52, 1.2, 0.8)  # title, frames, their actions, causality, a gap, the rest, legend
    height = sum(tall)
    with saved_figure(path, height, layout=None) as figure:

        def axes(row: int) -> Axes:
            """Axes over the clip's time in a row of ``tall``."""
            bottom = 1 - sum(tall[: row + 1]) / height
            area = figure.add_axes((LEFT / WIDTH, bottom, side * PICTURES / WIDTH, tall[row] / height))
            area.set_xlim((clip.first - 0.5) / clip.fps, (clip.first + len(clip.frames) - 0.5) / clip.fps)
            return area

        figure.text(LEFT / WIDTH, 1 - 0.17 / height, title[-100:], fontsize="large", va="center")
        _plot_frames(axes(1), clip, space)
        upper, lower = axes(3), axes(5)
        for area in (upper, lower):
            _plot_windows(area, clip)
            area.grid(visible=False)
            area.set_ylabel("nats per action")
            area.locator_params(axis="y", nbins=5)
        _plot_causality(upper, clip, [group.name for group in space.groups])
        upper.set_title(f"Causality ({kind}): how much the decision hangs on the picture of this moment", pad=PAD)
        _plot_companions(lower, clip)
        lower.set_title("Beside it: how much it hangs on past actions, how far it is from the recorded one", pad=PAD)
        lower.set_xlabel("seconds of the recording")
        _explain(figure)


def _shown(clip: Clip) -> list[int]:
    """Steps whose frames are shown, at even times."""
    count = min(PICTURES, len(clip.frames))
    return [int((i + 0.5) * len(clip.frames) / count) for i in range(count)]


def _plot_frames(axes: Axes, clip: Clip, space: ActionSpace) -> None:
    """Frames over their own moments, in a short clip beside them so that none hides another; recorded actions below."""
    left, right = axes.get_xlim()
    half = 0.48 * (right - left) / PICTURES
    shown = _shown(clip)
    for i, step in enumerate(shown):
        middle = left + (i + 0.5) * (right - left) / len(shown)
        picture = clip.frames[step].permute(1, 2, 0).numpy()
        axes.imshow(picture, extent=(middle - half, middle + half, 0.02, 0.98), aspect="auto")
        axes.text(middle, -0.03, _in_words(clip, step, space), ha="center", va="top", fontsize=SMALL)
    axes.set_xlim(left, right)
    axes.set_ylim(0, 1)
    axes.axis("off")


def _in_words(clip: Clip, step: int, space: ActionSpace) -> str:
    """The recorded action of a step, a line for every group that does something."""
    if not clip.ids or clip.surprise[step].isnan():
        return "(not scored)"
    values = space.decode({name: ids[step].tolist() for name, ids in clip.ids.items()})
    lines = []
    for group in space.groups:
        value = values[group.name]
        if isinstance(value, list) and value:
            lines.append(f"{_plain(group.name)} {' '.join(value)}")
        elif not isinstance(value, list) and clip.ids[group.name][step].tolist() != group.neutral:
            lines.append(f"{_plain(group.name)} {value:{'+.2g' if isinstance(value, float) else '+d'}}")
    return "\n".join(lines) or "-"


def _plain(name: str) -> str:
    """The name of a group as people read it."""
    return name.replace("_", " ")


def _plot_windows(axes: Axes, clip: Clip) -> None:
    """A grey line where a window begins."""
    for start in range(-clip.first % clip.window, len(clip.frames), clip.window):
        axes.axvline((clip.first + start - 0.5) / clip.fps, **WINDOW, zorder=0)


def _plot_causality(axes: Axes, clip: Clip, groups: Sequence[str]) -> None:
    """Causality of every step, the groups on top of each other; grey where a step is not scored."""
    seconds, bottom = clip.seconds.numpy(), np.zeros(len(clip.frames))
    for i, group in enumerate(groups):
        nats = np.nan_to_num(clip.scores[f"causality/{group}"].numpy()).clip(min=0)
        color = STACKED[i % len(STACKED)]
        axes.bar(seconds, nats, 1 / clip.fps, bottom, color=color, label=_plain(group), linewidth=0)
        bottom += nats
    highest = bottom.max() or 1.0
    axes.set_ylim(0, 1.25 * highest)
    unscored = clip.scores["causality"].isnan().numpy()
    if unscored.any():
        axes.bar(seconds[unscored], 1.05 * highest, 1 / clip.fps, color=PALE, label="not scored", linewidth=0)
    axes.legend(loc="upper right", ncols=len(groups) + 1, borderaxespad=0.1, handlelength=1.2)
    over = axes.get_xaxis_transform()
    axes.plot(seconds[_shown(clip)], [1.04] * len(_shown(clip)), **SHOWN, transform=over, clip_on=False)
    changes = seconds[clip.changes.numpy()]
    axes.plot(changes, [-0.045] * len(changes), **CHANGE, transform=over, clip_on=False)
    axes.tick_params(axis="x", labelbottom=False)


def _plot_companions(axes: Axes, clip: Clip) -> None:
    """Action reliance and surprise of every step."""
    seconds = clip.seconds.numpy()
    reliance, surprise = clip.scores["action_reliance"].numpy(), clip.surprise.numpy()
    axes.plot(seconds, reliance, color=PURPLE, linewidth=1.5, label="action reliance")
    axes.plot(seconds, surprise, color=TEXT, linewidth=1.1, linestyle=DASHES[1], label="−ln p(recorded action)")
    axes.set_ylim(0, 1.3 * np.nanmax([*reliance, *surprise, 1e-3]))
    axes.legend(loc="upper right", ncols=2, borderaxespad=0.1)


def _explain(figure: Figure) -> None:
    """What the marks mean, below all."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], **SHOWN, label="shown above"),
        Line2D([], [], **CHANGE, label="the recorded action changes"),
        Line2D([], [], **WINDOW, label="a window begins, without a past"),
    ]
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), borderaxespad=0.2)
