"""What recordings hold, in numbers and in a picture: ``bczoo data stats``.

Place in the pipeline: for looking at data before training on it. Counts are those of ``bczoo data check``
(`check.py`) and of what a training starts with (`summary.py`); games and lengths of holds are added here. Frames are
looked at in a bounded sample, all else is counted.

Shape legend: n steps of a recording, K names of keys and buttons.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, sweep, write_json
from bczoo.core.style import BLUE, GREEN, ORANGE, PURPLE, SKY, SMALL, saved_figure
from bczoo.core.tables import markdown_table
from bczoo.data.check import LOOK_SIZE, Report, count
from bczoo.data.errors import printable
from bczoo.data.index import Index, open_index
from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE, LEARNED
from bczoo.data.summary import FrameSample, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_HOLD = 2000  # steps that are told apart; longer holds count as this
LOOK_SECONDS = 60.0  # after which no further frames are looked at
DRAWN = 14  # names in the picture
LEVELS = 16  # bars of the histogram of brightness
PICTURES = (".png", ".svg", ".pdf")
NO_GAME = "no game named"
PACKED = "not read, in archives"  # of recordings that would have to be unpacked for their game's name


@dataclass
class Game:
    """Recordings and hours of a game."""

    recordings: int = 0
    hours: float = 0.0


@dataclass
class Held:
    """How a key or button is used.

    Args:
        share: of the steps that are learned from, in which it is held.
        presses: how often it was pressed.
        per_minute: the same per minute of such steps.
        median_s: half of the presses are no longer, in seconds.
        longest_s: the longest one.
        lengths: presses by their length in steps.
    """

    share: float
    presses: int
    per_minute: float
    median_s: float
    longest_s: float
    lengths: dict[int, int]


@dataclass
class Stats:
    """What recordings hold.

    Args:
        counts: what ``data check`` counts, of all recordings; frames are not decoded.
        fps: steps per second.
        games: by name.
        idle: share of no-ops in the steps that were looked at.
        held: by ``group:name``, the most frequent first.
        motions: by group, steps by bin, such as {"mouse_dx": {"-3..-2": 7, "0": 90, ...}}.
        still: by group, share of the steps in the bin of 0.
        instructions: how many begin anywhere.
        instruction_s: median length of one in seconds; 0 where there is none.
        brightness: frames of the sample by mean level, in bins of equal width from 0 to 255.
        frames: the sample itself.
    """

    counts: Report
    fps: float
    games: dict[str, Game] = field(default_factory=dict)
    idle: float = 0.0
    held: dict[str, Held] = field(default_factory=dict)
    motions: dict[str, dict[str, int]] = field(default_factory=dict)
    still: dict[str, float] = field(default_factory=dict)
    instructions: int = 0
    instruction_s: float = 0.0
    brightness: list[int] = field(default_factory=list)
    frames: FrameSample = field(default_factory=FrameSample)

    @property
    def status(self) -> int:
        """Exit status: 1 if a recording is broken, as far as headers show."""
        return self.counts.status

    def __str__(self) -> str:
        counts, sample = self.counts, self.frames
        recordings = sum(game.recordings for game in self.games.values())
        learned = counts.user_steps + counts.labelled_steps
        total = max(counts.frames, 1)
        lines = [
            f"{counts.root}: {recordings:,} recordings, {counts.hours:.2f} h, "
            f"{counts.frames:,} steps of {self.fps:g} a second",
            "",
            markdown_table(
                [
                    ("game", "recordings", "hours"),
                    *((name, f"{game.recordings:,}", f"{game.hours:.2f}") for name, game in self.games.items()),
                ]
            ),
            "",
            f"actions  {learned:,} steps are learned from ({learned / total:.1%}); {self.idle:.1%} of them are no-ops",
            "",
        ]
        if self.held:
            rows = [("held", "steps", "presses a minute", "median (s)", "longest (s)")]
            rows += [
                (name, f"{h.share:.1%}", f"{h.per_minute:.1f}", f"{h.median_s:.2f}", f"{h.longest_s:.2f}")
                for name, h in self.held.items()
            ]
            lines += [markdown_table(rows), ""]
        lines += [f"{group:<13}still in {share:.1%} of the steps" for group, share in self.still.items()]
        unseen, plural = counts.texts_without_embedding, "s" * (self.instructions != 1)
        lines += [
            f"text         in {counts.text_steps / total:.1%} of the steps; {self.instructions:,} instruction{plural}"
            + (f", half of them no longer than {self.instruction_s:.1f} s" if self.instructions else "")
            + (f"; {unseen:,} others have no embedding, so no policy sees them" if unseen else "")
        ]
        if sample.frames:
            same, still = sample.unchanged / max(sample.pairs, 1), len(sample.still)
            lines += [
                f"brightness   {np.mean(sample.brightness):.0f} of 255 on average; {sample.black / sample.frames:.1%} "
                f"of the frames are black (of {sample.frames:,} frames of {sample.recordings:,} recordings)",
                f"duplicates   {same:.1%} of the frames show the same as the one before",
                f"frozen       {still:,} recording{'s' * (still != 1)} whose picture never changes"
                + (f": {', '.join(sample.still[:10])}" if sample.still else ""),
            ]
        if counts.unknown_names:
            names = ", ".join(f"{name} {steps:,}" for name, steps in counts.unknown_names.items())
            lines.append(f"not in the action space (steps): {names}")
        if counts.broken:
            lines.append(f"{len(counts.broken)} broken:")
            lines += [f"  {name}: {reason}" for name, reason in counts.broken.items()]
        return "\n".join(lines)


def stats(
    recordings: str,
    json: str | None = None,
    out: str | None = None,
    action_space: str | dict[str, Any] = "keyboard_mouse",
    fps: float = 20.0,
    text_dim: int | None = 768,
    videos: int = 64,
) -> Stats:
    """Count hours, games, keys, motions, instructions, and look at a sample of the frames.

    The exit status is 1 if a recording is broken; it is named, and the others are counted.

    Args:
        recordings: folder of recordings or of archives of them, an archive, or one recording.
        json: file to write the numbers to as JSON, with all histograms.
        out: picture to write, such as stats.png.
        action_space: name of the action space to map actions to, or its dict.
        fps: steps per second that recordings are brought to.
        text_dim: values that a text embedding must have; null for policies that take no text.
        videos: of how many recordings, at most, frames are looked at.
    """
    arguments.whole("videos", videos, 0)
    if json is not None:
        require_file_target(json, "--json", "stats.json")
    if out is not None:
        require_file_target(out, "--out", "stats.png")
        if Path(out).suffix not in PICTURES:
            raise UserError(f"--out {out} does not end like a picture: {', '.join(PICTURES)}")
    found = count_all(open_index(recordings, ActionSpace.of(action_space), fps, text_dim), recordings, videos)
    print(found)
    for path in filter(None, (json, out)):
        sweep(Path(path).parent)
    if json is not None:
        write_json(json, dataclasses.asdict(found), indent=1)
    if out is not None:
        draw(found, out)
    return found


def count_all(index: Index, root: str, videos: int = 64) -> Stats:
    """The numbers of all recordings of an index.

    Args:
        index: with an action space.
        root: what the user called them.
        videos: of how many recordings frames are looked at, at most.
    """
    space, fps = index.target.space, index.target.fps
    assert space is not None
    summary = summarise(index, index.usable, frame_size=LOOK_SIZE, seconds=LOOK_SECONDS, videos=videos)
    found = Stats(count(index, root), fps, idle=summary.idle / max(summary.steps, 1))
    lengths: list[np.ndarray] = []  # of instructions
    holds = {group.name: np.zeros((_names(group), LONGEST_HOLD + 1), np.int64) for group in space.groups}
    games: dict[str, Game] = {}
    near = set(index.at_hand(index.usable).tolist())
    for recording in index.usable.tolist():
        game = games.setdefault(_game(index, recording) if recording in near else PACKED, Game())
        game.recordings += 1
        game.hours += float(index.n_frames[recording]) / fps / 3600
        lengths.append(index.texts(recording)[1])
        learned = np.isin(index.steps(recording)[1], LEARNED)
        ids = index.labels(recording)
        for group in space.groups:
            if not isinstance(group, BinnedGroup):
                _count_holds(_held(ids[:, space.slices[group.name]], group) & learned[:, None], holds[group.name])
    found.games = dict(sorted(games.items(), key=lambda item: -item[1].hours))
    steps = found.counts.user_steps + found.counts.labelled_steps
    for group in space.groups:
        by_name = found.counts.actions.get(group.name, {})
        if isinstance(group, BinnedGroup):
            found.motions[group.name] = by_name
            found.still[group.name] = list(by_name.values())[group.neutral[0]] / max(steps, 1) if by_name else 0.0
            continue
        for (name, held), per_length in zip(by_name.items(), holds[group.name], strict=True):
            if held:
                found.held[f"{group.name}:{name}"] = _use(held, per_length, steps, fps)
    found.held = dict(sorted(found.held.items(), key=lambda item: -item[1].share))
    texts = np.concatenate([np.zeros(0), *lengths])
    found.instructions, found.instruction_s = len(texts), float(np.median(texts)) / fps if len(texts) else 0.0
    found.frames = summary.sample or FrameSample()
    found.brightness = np.histogram(found.frames.brightness, LEVELS, (0, 255))[0].tolist()
    return found


def _game(index: Index, recording: int) -> str:
    with index.reading(recording) as folder:
        env = read_metadata(folder / ANNOTATION_FILE).env
    return printable("/".join(filter(None, (env.env, env.env_subtype)))) or NO_GAME


def _names(group: Any) -> int:
    """How many names of keys or buttons a group has."""
    return 0 if isinstance(group, BinnedGroup) else len(group.names) - isinstance(group, HeldGroup)


def _held(ids: np.ndarray, group: Any) -> np.ndarray:
    """Which names are held, (n, K) bool, by the ids (n, tokens) of a group."""
    if not isinstance(group, HeldGroup):
        return ids.astype(bool)
    held = np.zeros((len(ids), group.choices), bool)
    np.put_along_axis(held, ids.astype(np.int64), True, axis=1)
    return held[:, 1:]  # id 0 is nothing


def _count_holds(held: np.ndarray, lengths: np.ndarray) -> None:
    """Add the lengths of all runs in ``held`` (n, K) to ``lengths`` (K, longest + 1)."""
    padded = np.zeros((len(held) + 2, held.shape[1]), np.int8)
    padded[1:-1] = held
    change = np.diff(padded, axis=0).T  # (K, n + 1)
    name, begin = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    np.add.at(lengths, (name, np.minimum(end - begin, LONGEST_HOLD)), 1)


def _use(held: int, lengths: np.ndarray, steps: int, fps: float) -> Held:
    """How a name is used that is held in ``held`` of ``steps`` steps."""
    presses, present = int(lengths.sum()), np.flatnonzero(lengths)
    median = int(np.searchsorted(np.cumsum(lengths), presses / 2))
    return Held(
        share=held / steps,
        presses=presses,
        per_minute=presses / (steps / fps / 60),
        median_s=median / fps,
        longest_s=int(present[-1]) / fps,
        lengths={int(length): int(lengths[length]) for length in present},
    )


def draw(found: Stats, path: str | Path) -> None:
    """Write the picture: games, keys, motions, lengths of holds, brightness."""
    motions = [(group, bins) for group, bins in found.motions.items() if sum(bins.values())]
    rows = 2 + (len(motions) + 1) // 2
    with saved_figure(path, height=2.9 * rows) as figure:
        axes = iter(figure.subplots(rows, 2).flat)
        _bars(next(axes), {name: game.hours for name, game in found.games.items()}, "Hours by game", "hours", BLUE)
        shares = {name: 100 * held.share for name, held in found.held.items()}
        _bars(next(axes), shares, f"Held, in % of steps ({found.idle:.1%} no-ops)", "%", ORANGE)
        _draw_holds(next(axes), found)
        _draw_brightness(next(axes), found)
        for group, bins in motions:
            _draw_bins(next(axes), group, bins)
        for rest in axes:
            rest.set_axis_off()


def _bars(axes: Axes, values: dict[str, float], title: str, unit: str, color: str) -> None:
    names = list(values)[:DRAWN][::-1]
    axes.barh(names, [values[name] for name in names], color=color)
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel=unit)


def _draw_holds(axes: Axes, found: Stats) -> None:
    lengths: Counter[int] = Counter()
    for held in found.held.values():
        lengths.update(held.lengths)
    edges = np.geomspace(0.5, LONGEST_HOLD + 0.5, 25) / found.fps
    seconds = np.array(list(lengths)) / found.fps
    axes.hist(seconds, edges.tolist(), weights=list(lengths.values()), color=GREEN)
    axes.set(title="How long keys and buttons are held", xlabel="seconds", ylabel="presses", xscale="log")


def _draw_brightness(axes: Axes, found: Stats) -> None:
    width = 255 / LEVELS
    axes.bar((np.arange(LEVELS) + 0.5) * width, found.brightness, width * 0.95, color=SKY)
    same = found.frames.unchanged / max(found.frames.pairs, 1)
    axes.set(title=f"Brightness ({same:.1%} frames repeat)", xlabel="mean level", ylabel="frames of the sample")


def _draw_bins(axes: Axes, group: str, bins: dict[str, int]) -> None:
    places = np.arange(len(bins))
    axes.bar(places, list(bins.values()), color=PURPLE)
    axes.set_xticks(places, list(bins), rotation=90, fontsize=SMALL)
    axes.grid(axis="x", visible=False)
    axes.set(title=group, ylabel="steps", yscale="log", ylim=(0.5, None))
