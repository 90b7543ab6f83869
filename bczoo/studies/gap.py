"""``bczoo gap``: how much a policy's decisions change by the way in which frames reach it.

Place in the pipeline: policies learn from video files and play on frames straight from the game (paper 2601.04575,
section 3.1, figure 3). An expert plays (:mod:`bczoo.play.episodes`); the same frames and actions go to a policy as play
shows them, through video files written and read as recordings are (:mod:`bczoo.data.recording`), and resized by other
filters; :mod:`bczoo.causality.scores` and :mod:`bczoo.train.loss` say how far the predictions are apart.

Shape legend: N steps of an episode, T steps of a window, B windows of a forward, H = W frame size in pixels, A action
tokens, n tokens and V choices of a group.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bczoo.causality.scores import kl
from bczoo.core.actions import ActionSpace, Values
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.frames import FILTERS, named_size, resize
from bczoo.core.progress import Progress
from bczoo.core.spec import InputSpec, window_batch
from bczoo.core.statistics import interval_over_episodes
from bczoo.core.style import COLORS, SMALL, TEXT, saved_figure
from bczoo.data.recording import RecordingWriter, parse_steps, read_annotation
from bczoo.data.video import read_frames
from bczoo.games.game import Game, GameOrName, announce, as_game
from bczoo.games.players import make_player
from bczoo.models.bc.decoder import Logits
from bczoo.models.policy import Policy
from bczoo.play.episodes import check_playable, play
from bczoo.play.open import open_policy
from bczoo.train.loss import bc_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAME = "game"
ELSEWHERE = "another moment"
FORMATS = {"yuv420p": "yuv420p", "yuv444p": "yuv444p", "rgb": "rgb24"}  # name in tables -> of the video file
LARGEST_CRF = 51
FRAMES_PER_FORWARD = 256
INTERVAL = "95 % interval over games"
SMALLEST_AXIS = 1e-3  # nats; rounding errors of a policy that does not look are no bars
Interval = tuple[float, float]


def gap(
    policy: str,
    env: GameOrName,
    compare: str | None = None,
    episodes: int = 5,
    seed: int = 2_000_000,
    crf: list[int] | int | None = None,
    text: str | None = None,
    out: str = "runs/gap",
    device: str = "cpu",
    revision: str | None = None,
) -> GapResult:
    """Measure how far video files and resize filters change a policy's decisions in a game.

    The game's expert plays. Its frames and actions go to the policy several times: as the policy sees them in play,
    through video files as in training, and resized by other filters. Writes gap.json and gap.png.

    Args:
        policy: an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        env: the game, such as doom/defend_the_center, or package.module:function for your own, which needs an expert;
            from Python also a Game.
        compare: a second policy to show beside the first, such as one trained with augmentation.
        episodes: how many games the expert plays.
        seed: of the first game.
        crf: rate factors of the videos, 0 (no loss but that of the colour format) to 51, such as 23 or '[18, 30]';
            0, 18, 23 and 30 if left out.
        text: instruction to the policies; the one that each was fine-tuned under if left out.
        out: folder of the results.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit of the first policy on the Hub.
    """
    rates = _checked_rates([0, 18, 23, 30] if crf is None else [crf] if isinstance(crf, int) else crf)
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    require_folder_target(out, "--out")
    game = as_game(env)
    announce(game)
    env = env if isinstance(env, str) else game.name
    make_player("expert", game)
    names = _labels([policy] if compare is None else [policy, compare])
    subjects = [_load(policy, game, device, text, revision)]
    if compare is not None:
        subjects.append(_load(compare, game, device, text))
    result = measure(game, dict(zip(names, subjects, strict=True)), episodes, seed, rates)
    folder = Path(out)
    sources = dict(zip(names, [policy, compare], strict=False))
    content = {"env": env, "sources": sources, **result.to_dict()}
    write_json(folder / "gap.json", content, indent=1, allow_nan=False)
    plot(result.game, content["policies"], folder / "gap.png")
    print(f"\n{env}, {episodes} games of the expert, {result.steps} steps, seeds from {seed}\n\n{result.table()}\n")
    print(f"{result.group_table()}\n\n{folder / 'gap.json'}, {folder / 'gap.png'}")
    return result


# ---------------------------------------------------------------------- versions of the same frames


@dataclass(frozen=True)
class Version:
    """A way by which the frames of a game reach a policy.

    Args:
        name: in tables; of these, GAME is what play shows, and ELSEWHERE the same as GAME half an episode away.
        filter: resized straight from the game by this filter; None takes the policy's own.
        pix_fmt: colour format of the video file that the frames go through; None for no file.
        crf: rate factor of that file.
    """

    name: str
    filter: str | None = None
    pix_fmt: str | None = None
    crf: int = 0


def versions(own_filter: str, rates: Sequence[int]) -> list[Version]:
    """All that are measured, from what play shows to a yardstick: wrong pictures, that a policy has to notice.

    Args:
        own_filter: resize filter of the policy.
        rates: rate factors of the video files.
    """
    videos = [Version(f"{name} crf {rate}", None, pix_fmt, rate) for name, pix_fmt in FORMATS.items() for rate in rates]
    filters = [Version(f"{name} filter", name) for name in FILTERS if name != own_filter]
    return [Version(GAME), *videos, *filters, Version(ELSEWHERE)]


@dataclass(frozen=True)
class Episode:
    """What the expert saw and did.

    Args:
        frames: N frames as the game shows them, uint8 (height, width, 3).
        values: N actions, in the game's action space.
        fps: steps per second.
    """

    frames: list[np.ndarray]
    values: list[Values]
    fps: float


@dataclass(frozen=True)
class Shown:
    """The frames of an episode in one version.

    Args:
        frames: (N, H, W, 3) uint8.
        n_bytes: of the video file; None for none.
    """

    frames: np.ndarray
    n_bytes: int | None = None


def show(episode: Episode, version: Version, spec: InputSpec) -> Shown:
    """The frames of an episode as a policy gets them in one version.

    Args:
        episode: what the expert saw.
        version: which one.
        spec: of the policy; videos are stored at its frame size.
    """
    size = spec.frame_size
    if version.pix_fmt is None:
        frames = np.stack([resize(frame, size, version.filter or spec.resize) for frame in episode.frames])
        return Shown(np.roll(frames, len(frames) // 2, axis=0) if version.name == ELSEWHERE else frames)
    with tempfile.TemporaryDirectory() as folder:
        recording = _write(episode, Path(folder) / "episode", spec, version.pix_fmt, version.crf)
        video = recording / f"{named_size(size, 'x')}.mp4"
        frames = read_frames(video, 0, len(episode.frames), size, filter=spec.resize)
        return Shown(frames, video.stat().st_size)


def action_ids(episode: Episode, spec: InputSpec) -> dict[str, Tensor]:
    """The expert's actions as training reads them of a recording, per group (N, n).

    Args:
        episode: what the expert did.
        spec: of the policy.
    """
    space: ActionSpace = spec.actions
    with tempfile.TemporaryDirectory() as folder:
        recording = _write(episode, Path(folder) / "episode", spec, "yuv444p", LARGEST_CRF)
        steps = parse_steps(read_annotation(recording), space, spec.fps, None, recording)
    ids = torch.from_numpy(steps.ids[1:].astype(np.int64))  # annotation i + 1 answers frame i
    return {name: ids[:, part] for name, part in space.slices.items()}


def _write(episode: Episode, folder: Path, spec: InputSpec, pix_fmt: str, crf: int) -> Path:
    """A recording of an episode, its frames resized by the policy's own filter, so that only the file differs."""
    with RecordingWriter(folder, fps=episode.fps, size=spec.frame_size, pix_fmt=pix_fmt, crf=crf) as writer:
        for frame, values in zip(episode.frames, episode.values, strict=True):
            writer.add(resize(frame, spec.frame_size, spec.resize), user=values)
    return folder


def expert_episode(game: Game, seed: int) -> Episode:
    """One episode of the game's expert.

    Args:
        game: what is played.
        seed: of the episode.
    """
    episode = Episode([], [], game.fps)

    def keep(_: int, frame: np.ndarray, decision: Any, reward: float) -> None:
        episode.frames.append(frame)
        episode.values.append(decision.values)

    play(game, make_player("expert", game), 1, seed, parallel=1, progress=False, on_step=keep)
    return episode


# ---------------------------------------------------------------------- what a policy makes of them


@dataclass(frozen=True)
class Subject:
    """A policy that is measured.

    Args:
        policy: in evaluation mode.
        instruction: embedding (E,) of the instruction in every step; None for none.
    """

    policy: Policy
    instruction: Tensor | None = None


@torch.no_grad()
def predict(subject: Subject, frames: np.ndarray, ids: Mapping[str, Tensor]) -> Logits:
    """Logits of every step of an episode, per group (1, N, n, V) on the CPU.

    As in validation the episode is cut into windows one after the other, with the recorded actions before every token.

    Args:
        subject: the policy.
        frames: (N, H, W, 3) uint8.
        ids: recorded actions, per group (N, n).
    """
    policy = subject.policy
    window, n_steps = policy.input_spec.window, len(frames)
    pixels = _windows(torch.from_numpy(frames).permute(0, 3, 1, 2), window)  # (windows, T, 3, H, W)
    actions = {name: _windows(group, window) for name, group in ids.items()}
    at_once = max(1, FRAMES_PER_FORWARD // window)
    parts: dict[str, list[Tensor]] = {name: [] for name in ids}
    for first in range(0, len(pixels), at_once):
        some = slice(first, first + at_once)
        seen = pixels[some].contiguous().to(policy.device)  # (B, T, 3, H, W)
        text = None
        if subject.instruction is not None:
            text = subject.instruction.to(policy.device).expand(*seen.shape[:2], -1)
        taken = {name: group[some].to(policy.device) for name, group in actions.items()}
        logits = policy.logits(window_batch(seen, taken, text))
        for name, group in logits.items():
            parts[name].append(group.float().cpu().flatten(0, 1))
    return {name: torch.cat(group)[None, :n_steps] for name, group in parts.items()}


def _windows(steps: Tensor, window: int) -> Tensor:
    """(N, ...) as windows (windows, T, ...), the last one filled up with its last step."""
    missing = -len(steps) % window
    return torch.cat([steps, steps[-1:].expand(missing, *steps.shape[1:])]).unflatten(0, (-1, window))


@dataclass(frozen=True)
class Score:
    """One version of one episode; means over its steps.

    Args:
        steps: N.
        kl: per group nats per action, from the predictions in play to those of this version.
        cross_entropy: per group nats per action token.
        loss: as in training.
        other_action: share of steps in which another id is the most likely at one token at least.
        squared_error: of the frames against those in play, per pixel and colour, in levels of 0 to 255.
        n_bytes: of the video file; None for none.
    """

    steps: int
    kl: dict[str, float]
    cross_entropy: dict[str, float]
    loss: float
    other_action: float
    squared_error: float
    n_bytes: int | None


def score(
    logits: Logits, in_play: Logits, ids: Mapping[str, Tensor], policy: Policy, shown: Shown, played: Shown
) -> Score:
    """Compare the predictions in one version with those in play.

    Args:
        logits: in this version, per group (1, N, n, V).
        in_play: the same as play shows the frames.
        ids: recorded actions, per group (N, n).
        policy: says how its loss weighs the groups.
        shown: frames of this version.
        played: frames in play.
    """
    n_steps = len(shown.frames)
    actions, mask = {name: group[None] for name, group in ids.items()}, torch.ones(1, n_steps, dtype=torch.bool)
    loss = bc_loss(logits, actions, mask, policy.z_loss, scales=policy.loss_scales)
    differs = [(logits[name].argmax(-1) != in_play[name].argmax(-1)).any(-1) for name in ids]  # each (1, N)
    errors = [np.square(a.astype(np.int32) - b).mean() for a, b in zip(shown.frames, played.frames, strict=True)]
    return Score(
        steps=n_steps,
        kl={name: nats.double().mean().item() for name, nats in kl(in_play, logits).items()},
        cross_entropy={name: value.item() for name, value in loss.cross_entropy.items()},
        loss=loss.total.item(),
        other_action=torch.stack(differs).any(0).double().mean().item(),
        squared_error=float(np.mean(errors)),
        n_bytes=shown.n_bytes,
    )


def measure(
    game: Game, subjects: Mapping[str, Subject], episodes: int, seed: int, rates: Sequence[int], progress: bool = True
) -> GapResult:
    """Play, show, predict and score; nothing is kept of an episode but its scores.

    Args:
        game: what the expert plays.
        subjects: the policies by name; the first one's own filter is no version of its own.
        episodes: how many.
        seed: of the first episode.
        rates: rate factors of the video files.
        progress: show a progress bar.
    """
    every = versions(next(iter(subjects.values())).policy.input_spec.resize, rates)
    scores: dict[str, dict[str, list[Score]]] = {name: {v.name: [] for v in every} for name in subjects}
    total = episodes * len(subjects) * len(every)
    with Progress(total=total, desc=game.name, disable=not progress, unit="version") as bar:
        for i in range(episodes):
            for name, version, one in _scores(subjects, expert_episode(game, seed + i), every):
                scores[name][version].append(one)
                bar.update()
    rows = {
        name: {version: Row.of(some, of_policy[GAME], game.fps) for version, some in of_policy.items()}
        for name, of_policy in scores.items()
    }
    steps = sum(one.steps for one in next(iter(scores.values()))[GAME])
    return GapResult(game.name, episodes, seed, steps, rows)


def _scores(
    subjects: Mapping[str, Subject], episode: Episode, every: Sequence[Version]
) -> Iterator[tuple[str, str, Score]]:
    """Policy, version and score; policies that take the same frames share them."""
    ids = {name: action_ids(episode, subject.policy.input_spec) for name, subject in subjects.items()}
    played: dict[tuple[int | tuple[int, int], str], Shown] = {}
    in_play: dict[str, Logits] = {}
    for version in every:  # the first is what play shows
        shown: dict[tuple[int | tuple[int, int], str], Shown] = {}
        for name, subject in subjects.items():
            spec = subject.policy.input_spec
            wanted = spec.frame_size, spec.resize
            if wanted not in shown:
                shown[wanted] = show(episode, version, spec)
            logits = predict(subject, shown[wanted].frames, ids[name])
            if version.name == GAME:
                played[wanted], in_play[name] = shown[wanted], logits
            one = score(logits, in_play[name], ids[name], subject.policy, shown[wanted], played[wanted])
            yield name, version.name, one


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class Row:
    """One version over all episodes; means over steps, intervals of 95 % by bootstrap over episodes.

    Args:
        kl: nats per action, all groups together.
        kl_interval: None for a single episode.
        kl_groups: per group.
        loss: as in training.
        loss_change: against the loss in play.
        loss_change_interval: None for a single episode.
        cross_entropy: per group nats per action token.
        perplexity: per group, exp of it.
        other_action: share of steps in which another id is the most likely at one token at least.
        psnr: of the frames against those in play, in dB; None where they are the same.
        bytes_per_minute: of the video files; None for none.
    """

    kl: float
    kl_interval: Interval | None
    kl_groups: dict[str, float]
    loss: float
    loss_change: float
    loss_change_interval: Interval | None
    cross_entropy: dict[str, float]
    perplexity: dict[str, float]
    other_action: float
    psnr: float | None
    bytes_per_minute: float | None

    @classmethod
    def of(cls, scores: Sequence[Score], in_play: Sequence[Score], fps: float) -> Row:
        """Pool the episodes of one version.

        Args:
            scores: one per episode.
            in_play: the same episodes as play shows them.
            fps: steps per second.
        """
        steps = np.array([one.steps for one in scores], np.float64)

        def mean(value: Callable[[Score], float]) -> float:
            return float(np.average([value(one) for one in scores], weights=steps))

        groups = list(scores[0].kl)
        totals = [sum(one.kl.values()) for one in scores]
        changes = [one.loss - before.loss for one, before in zip(scores, in_play, strict=True)]
        nats = {name: mean(lambda one, name=name: one.cross_entropy[name]) for name in groups}  # type: ignore[misc]
        error = mean(lambda one: one.squared_error)
        written = [one.n_bytes for one in scores if one.n_bytes is not None]
        return cls(
            kl=float(np.average(totals, weights=steps)),
            kl_interval=interval(totals, steps),
            kl_groups={name: mean(lambda one, name=name: one.kl[name]) for name in groups},  # type: ignore[misc]
            loss=mean(lambda one: one.loss),
            loss_change=float(np.average(changes, weights=steps)),
            loss_change_interval=interval(changes, steps),
            cross_entropy=nats,
            perplexity={name: math.exp(value) for name, value in nats.items()},
            other_action=mean(lambda one: one.other_action),
            psnr=10 * math.log10(255**2 / error) if error > 0 else None,
            bytes_per_minute=sum(written) / (steps.sum() / fps / 60) if written else None,
        )


def interval(means: Sequence[float], steps: np.ndarray) -> Interval | None:
    """95 % interval of a mean over all steps, by bootstrap over episodes; None for a single episode.

    Args:
        means: of every episode.
        steps: of every episode.
    """
    if len(means) < 2:
        return None
    return interval_over_episodes(np.asarray(means) * steps, steps)


@dataclass(frozen=True)
class GapResult:
    """What was measured.

    Args:
        game: its name.
        episodes: how many the expert played.
        seed: of the first.
        steps: of all of them together.
        rows: per policy and version.
    """

    game: str
    episodes: int
    seed: int
    steps: int
    rows: dict[str, dict[str, Row]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        policies = {
            name: {version: dataclasses.asdict(row) for version, row in rows.items()}
            for name, rows in self.rows.items()
        }
        return {
            "game": self.game, "episodes": self.episodes, "seed": self.seed, "steps": self.steps, "policies": policies
        }  # fmt: skip

    def table(self) -> str:
        """A Markdown table: a line per version, the columns of the policies side by side.

        Size and PSNR are of the frames of the first policy. The share is that of the KL in the KL of wrong pictures
        (ELSEWHERE): an uncertain policy has a small KL everywhere.
        """
        heads = ["version", "MB a minute", "PSNR, dB"]
        for name in self.rows:
            of = f"{name}: " if len(self.rows) > 1 else ""
            heads += [f"{of}KL, nats", f"{of}share", f"{of}change of loss", f"{of}other action"]
        lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
        first = next(iter(self.rows.values()))
        for version, row in first.items():
            size = "" if row.bytes_per_minute is None else f"{row.bytes_per_minute / 1e6:.2f}"
            cells = [version, size, "same" if row.psnr is None else f"{row.psnr:.1f}"]
            for rows in self.rows.values():
                one, wrong = rows[version], rows[ELSEWHERE].kl
                cells += [
                    f"{one.kl:.4f}{_span(one.kl_interval, '.4f')}",
                    f"{100 * one.kl / wrong:.2f} %" if wrong else "",
                    f"{one.loss_change:+.4f}{_span(one.loss_change_interval, '+.4f')}",
                    f"{100 * one.other_action:.1f} %",
                ]
            lines.append(_line(cells))
        return "\n".join(lines)

    def group_table(self) -> str:
        """A Markdown table per policy: KL and perplexity by action group."""
        tables = []
        for name, rows in self.rows.items():
            groups = list(next(iter(rows.values())).kl_groups)
            lines = [f"{name}: loss {rows[GAME].loss:.4f} in play; KL in nats and, in brackets, perplexity by group\n"]
            lines += [_line(["version", *groups]), _line(["---", *["---:"] * len(groups)])]
            for version, row in rows.items():
                cells = [f"{row.kl_groups[group]:.4f} ({row.perplexity[group]:.3f})" for group in groups]
                lines.append(_line([version, *cells]))
            tables.append("\n".join(lines))
        return "\n\n".join(tables)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _span(ends: Interval | None, form: str) -> str:
    return "" if ends is None else f" ({ends[0]:{form}} to {ends[1]:{form}})"


def plot(game: str, policies: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Write a bar chart of the KL of every version.

    Args:
        game: its name.
        policies: by policy and version what gap.json has under this name: ``kl`` and ``kl_interval``.
        path: of the picture.
    """
    shown = [version for version in next(iter(policies.values())) if version not in (GAME, ELSEWHERE)]
    places = _places(shown)
    height = 0.8 / len(policies)
    plotted = [rows[version] for rows in policies.values() for version in shown]
    largest = max((row["kl_interval"] or [row["kl"]])[-1] for row in plotted)
    with saved_figure(path, height=1.5 + 0.19 * len(policies) * places[-1]) as figure:
        axes = figure.add_subplot()
        for i, (name, rows) in enumerate(policies.items()):
            at = [p + (i - (len(policies) - 1) / 2) * height for p in places]
            axes.barh(at, [rows[version]["kl"] for version in shown], height, color=COLORS[i], label=name)
            for y, version in zip(at, shown, strict=True):
                _write_value(axes, y, rows[version]["kl"], rows[version]["kl_interval"], 0.01 * largest)
        axes.set_yticks(places, shown)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(places[-1] + 0.6, places[0] - 0.6)
        axes.set_xlim(0, max(1.1 * largest, SMALLEST_AXIS))
        axes.set_xlabel("KL divergence from the predictions in play (nats per action)")
        axes.set_title(f"{game}: the same frames through video files and other filters")
        marks = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for all intervals
        names = sorted(marks, key=lambda name: name == INTERVAL)
        figure.legend([marks[name] for name in names], names, loc="outside lower center", ncols=len(names))


def _write_value(axes: Axes, y: float, value: float, interval: Interval | None, aside: float) -> None:
    """A bar's interval, and beside it its value in digits."""
    if interval is not None and interval[0] < interval[1]:
        axes.plot(interval, [y, y], color=TEXT, linewidth=1, label=INTERVAL)
        aside += interval[1] - value
    axes.text(value + aside, y, f"{value:.4f}" if value else "0", va="center", fontsize=SMALL)


def _places(shown: Sequence[str]) -> list[float]:
    """Where the bars of versions lie, with a little room between formats."""
    kinds = [version.split()[0 if "crf" in version else -1] for version in shown]
    changes = np.cumsum([0, *(a != b for a, b in pairwise(kinds))])
    return [float(i + 0.6 * change) for i, change in enumerate(changes)]


# ---------------------------------------------------------------------- input


def _checked_rates(rates: Sequence[int]) -> list[int]:
    if not rates or any(not 0 <= rate <= LARGEST_CRF for rate in rates):
        raise UserError(f"crf lists rate factors from 0 (lossless) to {LARGEST_CRF}, such as [18, 23], got {rates}")
    return sorted(set(rates))


def _labels(policies: Sequence[str]) -> list[str]:
    """Short names that differ."""
    short = [Path(policy).name for policy in policies]
    if len(set(short)) == len(short):
        return short
    if len(set(policies)) < len(policies):
        raise UserError(f"compare is the policy itself, {policies[0]}; name another one or leave it out")
    return list(policies)


def _load(source: str, game: Game, device: str, text: str | None, revision: str | None = None) -> Subject:
    opened = open_policy(source, revision, device, text=text)
    check_playable(game, opened.policy.input_spec)
    return Subject(opened.policy, opened.embedding())
