"""``bczoo causality``: whether a policy acts on what it sees, told of all recordings in a folder.

Place in the pipeline: :mod:`bczoo.causality.metrics` and :mod:`bczoo.metrics` score every window, as in validation;
here the scores are summed per recording, told with intervals (:func:`bczoo.metrics.bootstrap`), and drawn over a clip.

Shape legend: R recordings, B batch, T steps of a window, N steps of a clip, n tokens of a group, E text
width, H = W frame size in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from tqdm import tqdm

from bczoo.actions import ActionSpace
from bczoo.causality.counterfactual import Counterfactuals
from bczoo.causality.metrics import causality_name, evaluate, visual_share
from bczoo.causality.perturb import FREEZE_STEPS, Perturbation, longest_freeze, perturbations, swap
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.recording import USER
from bczoo.data.windows import Plan, split
from bczoo.errors import UserError
from bczoo.games.evaluate import usable_device
from bczoo.hub.source import locate
from bczoo.metrics import DRAWS, Measures, action_measures, bootstrap, change_points, masked_sum, summarise
from bczoo.model.policy import BCPolicy
from bczoo.spec import Batch, InputSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READING = (
    "Causality and action reliance are nats per action: 0 means that the picture (the past actions) does not matter.\n"
    "A policy may look and still be wrong, so read them beside perplexity and accuracy."
)
PREDICTIONS = {  # label in the table: metric of every group
    "perplexity": "perplexity",
    "relative cross-entropy": "relative_cross_entropy",
    "accuracy": "accuracy",
    "accuracy of repeating": "repeat_accuracy",
    "perplexity at changes": "change_perplexity",
    "accuracy at changes": "change_accuracy",
    "repeating at changes": "change_repeat_accuracy",
    "persistence": "persistence",
}
PICTURES = 8  # frames above the curves
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 9, "pad": 9}
COLOURS = ("#4878a8", "#e39b4b", "#6aa56e", "#b65d60", "#8871a0", "#8c8c8c")


def causality_report(
    policy: str,
    data: str,
    perturb: list[str] | str = "swap,freeze,blank,noise",
    counterfactual: str | None = None,
    replaced: int = 1,
    freeze_steps: int = FREEZE_STEPS,
    part: Literal["all", "val"] = "all",
    val_fraction: float = 0.1,
    limit: int | None = None,
    text: str | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    clip: str | None = None,
    clip_start: float = 0.0,
    clip_seconds: float = 10.0,
    out: str = "runs/causality",
    device: str = "cpu",
    revision: str | None = None,
) -> CausalityResult:
    """Measure whether a policy acts on what it sees, and draw at which moments it does.

    Every decision is compared with the one that the policy takes when it is shown another picture, and when it is told
    of other past actions. Prints a table with 95 % intervals, writes causality.json and causality.png.

    Args:
        policy: a published folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        data: folder of recordings, best of some that the policy was not trained on; see part.
        perturb: what is shown instead of the recorded picture, with commas between: swap (a picture from elsewhere),
            freeze (that of some steps ago), blank (the clip's mean colour), noise, counterfactual (your own). The
            first is drawn, and compared with the past actions.
        counterfactual: folder of edited frames <recording>/<frame>.png; adds this perturbation, scored at these frames.
        replaced: how many steps up to the decision show the other picture.
        freeze_steps: how many steps ago freeze shows the frame of.
        part: all recordings; or val, those that a training on this very folder keeps for validation.
        val_fraction: data.val_fraction of that training.
        limit: measure only so many recordings, drawn by name; all if left out.
        text: instruction to the policy at steps that have none; the one it was fine-tuned under if left out.
        batch_size: windows per batch.
        num_workers: processes that read windows.
        clip: name of the recording that is drawn; the first one that is long enough if left out.
        clip_start: where the drawn clip begins, in seconds.
        clip_seconds: how long it is.
        out: folder of the results.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit on the Hub.
    """
    kinds = _kinds(perturb, counterfactual, replaced, freeze_steps)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UserError(f"batch_size and limit are numbers from 1 on, got {batch_size} and {limit}")
    found = locate(policy, revision)
    loaded = found.load(device=usable_device(device))
    spec = loaded.input_spec
    instruction = text or found.record.get("instruction")
    index = open_index(data, spec.action_space, spec.fps, spec.text_dim, processes=num_workers)
    index.report()
    recordings = _choose(index, part, val_fraction, limit)
    drawn = Clip.of(index, recordings, spec, clip, clip_start, clip_seconds)
    edited = None if counterfactual is None else Counterfactuals(counterfactual, index)
    windows = WindowDataset(index, spec.window, spec.frame_size, resize=spec.resize)
    loader = WindowLoader(
        windows, Plan(index, recordings, spec.window, batch_size, shuffle=False, spread=True), num_workers
    )
    sums = measure(
        loaded, loader, perturbations(kinds, freeze_steps, edited), replaced, drawn, _embedded(loaded, instruction)
    )
    settings = {
        "policy": policy,
        "data": data,
        "part": part,
        **({"val_fraction": val_fraction} if part == "val" else {}),
        "perturb": kinds,
        "counterfactual": counterfactual,
        "replaced": replaced,
        "freeze_steps": longest_freeze(freeze_steps, spec.window),
        "text": instruction,
        "window": spec.window,
        "batch_size": batch_size,
        "bootstrap_draws": DRAWS,
    }
    result = CausalityResult.of(settings, spec.action_space, [str(index.names[r]) for r in recordings], sums, drawn)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    (folder / "causality.json").write_text(written + "\n", encoding="utf-8")
    draw(result, folder / "causality.png")
    print(f"\n{policy} on {data}\n\n{result.table()}\n\n{READING}")
    if edited is not None:
        name = causality_name("counterfactual", kinds)
        print(f"{result.steps[name]} of {len(edited.paths)} counterfactual frames belong to a step that counts.")
    if part == "all" and _trained_on(found.record, data):
        print("The policy was trained on recordings of this folder; --part val takes only those held out.")
    print(f"\n{folder / 'causality.json'}, {folder / 'causality.png'}")
    return result


def _kinds(perturb: Sequence[str] | str, counterfactual: str | None, replaced: int, freeze_steps: int) -> list[str]:
    """Names of the perturbations, each once; raises for what cannot be done before anything is loaded."""
    listed = perturb.split(",") if isinstance(perturb, str) else list(perturb)
    kinds = list(dict.fromkeys(name for name in (kind.strip() for kind in listed) if name))
    if counterfactual is not None and "counterfactual" not in kinds:
        kinds.append("counterfactual")
    if not kinds:
        raise UserError("perturb names no perturbation; --perturb swap is the one to begin with")
    perturbations(kinds, freeze_steps, swap if counterfactual is not None else None)
    if replaced < 1 or freeze_steps < 1:
        raise UserError(f"replaced and freeze_steps are numbers of steps from 1 on, got {replaced}, {freeze_steps}")
    return kinds


def _embedded(policy: BCPolicy, instruction: str | None) -> Tensor | None:
    """An instruction as the policy takes it, (E,)."""
    if instruction is None:
        return None
    if policy.text_encoder is None or not policy.input_spec.text_dim:
        raise UserError(f"the policy has no text encoder, so it cannot be told the instruction {instruction!r}")
    return policy.text_encoder([instruction])[0].float()


def _choose(index: Index, part: str, val_fraction: float, limit: int | None) -> np.ndarray:
    """Numbers of the recordings to measure, in order."""
    if part == "val" and not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is a share of the recordings between 0 and 1, got {val_fraction}")
    recordings = split(index, val_fraction)[1] if part == "val" else index.usable
    if not len(recordings):
        raise UserError("the only recording is not kept for validation; --part all measures it")
    return np.sort(recordings[np.argsort(index.hashes[recordings], kind="stable")][:limit])


def _trained_on(record: Mapping[str, Any], data: str) -> bool:
    """Whether a training record names this folder as the one that was trained on."""
    described = record.get("data")
    roots = described.get("root") if isinstance(described, dict) else None
    return isinstance(roots, list) and Path(data).resolve() in [Path(str(root)).resolve() for root in roots]


# ---------------------------------------------------------------------- measuring


class RecordingSums:
    """Sums of measures over the counted steps of each recording.

    Args:
        recordings: (R,) their numbers in the index, ascending.

    Attributes:
        sums: by name (R, ...), float64 on the CPU.
        counts: by name (R,), how many steps these are.
    """

    def __init__(self, recordings: np.ndarray) -> None:
        self.recordings = torch.from_numpy(recordings)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, measures: Measures, recording: Tensor) -> None:
        """Add a batch.

        Args:
            measures: by name values (B, T, ...) and at which steps (B, T) they count.
            recording: (B,) numbers of the recordings.
        """
        rows = torch.searchsorted(self.recordings, recording.cpu())
        for name, (values, where) in measures.items():
            total, count = (x.cpu().double() for x in masked_sum(values, where))
            if name not in self.sums:
                self.sums[name] = total.new_zeros(len(self.recordings), *total.shape[1:])
                self.counts[name] = count.new_zeros(len(self.recordings))
            self.sums[name].index_add_(0, rows, total)
            self.counts[name].index_add_(0, rows, count)

    @property
    def means(self) -> dict[str, Tensor]:
        """By name, over the steps of all recordings."""
        return {name: total.sum(0) / self.counts[name].sum() for name, total in self.sums.items()}

    @property
    def means_of_each(self) -> dict[str, Tensor]:
        """By name (R, ...), over the steps of each recording."""
        counts = {name: count.reshape(-1, *[1] * (self.sums[name].ndim - 1)) for name, count in self.counts.items()}
        return {name: total / counts[name] for name, total in self.sums.items()}


@torch.no_grad()
def measure(
    policy: BCPolicy,
    loader: WindowLoader,
    kinds: Mapping[str, Perturbation],
    replaced: int = 1,
    clip: Clip | None = None,
    instruction: Tensor | None = None,
    progress: bool = True,
) -> RecordingSums:
    """Score all windows.

    Args:
        policy: in evaluation mode.
        loader: of the windows; closed at the end.
        kinds: perturbations by name.
        replaced: m, how many steps up to t show their replacement when t decides.
        clip: takes down the scores of its steps.
        instruction: embedding (E,) of what the policy is told at steps that have no instruction.
        progress: show a progress bar.
    """
    sums = RecordingSums(loader.plan.recordings)
    for batch in tqdm(loader, desc="causality", unit="batch", disable=not progress):
        batch = move_data_to_device(batch, policy.device)
        if instruction is not None:
            told = (batch["text"] != 0).any(-1, keepdim=True)
            batch["text"] = torch.where(told, batch["text"], instruction.to(policy.device))
        scores = evaluate(policy, batch, kinds, replaced)
        measures = scores.measures | action_measures(scores.logits, batch["actions"], batch["user"] & batch["valid"])
        sums.add(measures, batch["recording"])
        if clip is not None:
            clip.add(batch, measures)
    loader.close()
    return sums


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
            acted = [one for one, r in names.items() if (index.steps(r)[1][here] == USER).any()]
            name = max(acted or names, key=lambda one: min(int(index.n_frames[names[one]]) - 1, first + wanted))
        steps = int(index.n_frames[names[name]]) - 1
        n = min(wanted, steps - first)
        if first < 0 or n < 1:
            raise UserError(
                f"the clip from {start:g} s, {seconds:g} s long, lies outside of {name!r}, which has "
                f"{steps / spec.fps:g} s"
            )
        if not (index.steps(names[name])[1][first + 1 : first + 1 + n] == USER).any():
            raise UserError(
                f"no step counts in the clip of {name!r} from {start:g} s on, because no action there is a person's; "
                "choose another one with clip and clip_start"
            )
        frames = torch.zeros(n, 3, spec.frame_size, spec.frame_size, dtype=torch.uint8)
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


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class Estimate:
    """A metric over the steps of all recordings.

    Args:
        value: None where no step counted.
        low: lower end of its 95 % interval; None where too few recordings have the metric.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CausalityResult:
    """What was measured.

    Args:
        settings: of the command.
        space: the policy's action space.
        metrics: by name, as in validation: ``causality`` (of the first perturbation), ``causality/keys``,
            ``causality_freeze``, ``action_reliance``, ``visual_share``, ``perplexity/keys`` and so on.
        steps: by measure, how many steps it counts.
        recordings: by name the metrics of each recording, and its counted ``steps``.
        clip: the clip to draw.
    """

    settings: dict[str, Any]
    space: ActionSpace
    metrics: dict[str, Estimate]
    steps: dict[str, int]
    recordings: dict[str, dict[str, float]]
    clip: Clip

    @classmethod
    def of(
        cls, settings: dict[str, Any], space: ActionSpace, names: Sequence[str], sums: RecordingSums, clip: Clip
    ) -> CausalityResult:
        """Pool recordings.

        Args:
            settings: of the command.
            space: the policy's action space.
            names: (R,) of the recordings.
            sums: of them.
            clip: the clip to draw.
        """
        counted = sums.counts.get(f"cross_entropy/{space.groups[0].name}")
        if counted is None or not counted.sum():
            raise UserError(
                f"{settings['data']}: no step counts; of {len(names)} recordings no frame with an action by a person "
                "could be read"
            )
        ends = bootstrap(sums.sums, sums.counts, _statistic)
        metrics = {
            name: Estimate(_known(value), *map(_known, ends[name])) for name, value in _statistic(sums.means).items()
        }
        each = _statistic(sums.means_of_each)
        recordings: dict[str, dict[str, float]] = {}
        for row, name in enumerate(names):
            known = {metric: _known(values[row]) for metric, values in each.items()}
            recordings[name] = {"steps": int(counted[row])} | {k: v for k, v in known.items() if v is not None}
        steps = {name.partition("/")[0]: int(count.sum()) for name, count in sums.counts.items()}
        return cls(settings, space, metrics, steps, recordings, clip)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not known is null, or left out of a recording."""
        return {
            "settings": self.settings,
            "metrics": {name: vars(one) for name, one in self.metrics.items()},
            "steps": self.steps,
            "recordings": self.recordings,
            "clip": {"recording": self.clip.name, "first_frame": self.clip.first, "frames": len(self.clip.frames)},
        }

    def table(self) -> str:
        """A Markdown table: a row per metric, the whole action with its interval and every group beside it."""
        perturb = self.settings["perturb"]
        rows = [["", "whole action", *(group.name for group in self.space.groups)]]
        rows += [self._row(f"causality, {kind}", causality_name(kind, perturb)) for kind in perturb]
        rows += [self._row("action reliance", "action_reliance"), self._row("visual share", "visual_share")]
        rows += [self._row(label, name) for label, name in PREDICTIONS.items()]
        steps, changes = self.steps["cross_entropy"], self.steps["change_cross_entropy"]
        n = len(self.recordings)
        several = "95 % intervals over recordings" if n > 1 else "no intervals over a single one"
        counted = f"{n} recording{'s' * (n > 1)}, {steps} steps, {changes} changes of the action; {several}."
        return f"{_aligned(rows)}\n\n{counted}"

    def _row(self, label: str, name: str) -> list[str]:
        whole = self.metrics.get(name, Estimate(None))
        interval = "" if whole.low is None else f" ({whole.low:.3f} to {whole.high:.3f})"
        groups = [self.metrics.get(f"{name}/{group.name}", Estimate(None)).value for group in self.space.groups]
        return [label, _number(whole.value) + interval, *map(_number, groups)]


def _statistic(means: dict[str, Tensor]) -> dict[str, Tensor]:
    return summarise(means) | visual_share(means)


def _known(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 1000 else f"{value:.3g}"  # + 0.0: no minus before zero


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = (
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


# ---------------------------------------------------------------------- picture


def draw(result: CausalityResult, path: Path) -> None:
    """Write the clip as a picture: frames above the scores of every step.

    Args:
        result: what was measured.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    clip, kind = result.clip, result.settings["perturb"][0]
    width, side = 900, (900 - 76) // PICTURES  # pixels; frames are square
    height = 30 + side + 56 + 190 + 44 + 110 + 46
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def axes(top: int, tall: int) -> Axes:
        """Axes over the clip's time, ``top`` pixels from the top edge and ``tall`` pixels high."""
        area = figure.add_axes((64 / width, 1 - (top + tall) / height, side * PICTURES / width, tall / height))
        area.set_xlim((clip.first - 0.5) / clip.fps, (clip.first + len(clip.frames) - 0.5) / clip.fps)
        return area

    named = f"{result.settings['policy']} on {clip.name}"[-120:]
    figure.text(64 / width, 1 - 18 / height, named, fontsize=10, va="center")
    _draw_frames(axes(30, side), clip, result.space)
    upper, lower = axes(30 + side + 56, 190), axes(30 + side + 56 + 190 + 44, 110)
    for area in (upper, lower):
        _draw_windows(area, clip)
        area.spines[["top", "right"]].set_visible(False)
        area.tick_params(labelsize=8)
        area.set_ylabel("nats per action", fontsize=8)
    _draw_causality(upper, clip, [group.name for group in result.space.groups])
    upper.set_title(f"Causality ({kind}): how much the decision hangs on the picture of this moment", **TITLE)
    _draw_companions(lower, clip)
    lower.set_title("Beside it: how much it hangs on past actions, and how far it is from the recorded one", **TITLE)
    signs = "triangles: the recorded action changes; grey lines: a window begins, without a past"
    lower.set_xlabel(f"seconds of the recording   ({signs})", fontsize=8)
    figure.savefig(path)


def _shown(clip: Clip) -> list[int]:
    """Steps whose frames are drawn, at even times."""
    count = min(PICTURES, len(clip.frames))
    return [int((i + 0.5) * len(clip.frames) / count) for i in range(count)]


def _draw_frames(axes: Axes, clip: Clip, space: ActionSpace) -> None:
    """Frames over their own moments, with the recorded action below."""
    left, right = axes.get_xlim()
    half = 0.48 * (right - left) / PICTURES
    for step in _shown(clip):
        middle = min(max(float(clip.seconds[step]), left + half), right - half)
        picture = clip.frames[step].permute(1, 2, 0).numpy()
        axes.imshow(picture, extent=(middle - half, middle + half, 0.02, 0.98), aspect="auto")
        axes.text(middle, -0.03, _in_words(clip, step, space), ha="center", va="top", fontsize=7, color="0.25")
    axes.set_xlim(left, right)
    axes.set_ylim(0, 1)
    axes.axis("off")


def _in_words(clip: Clip, step: int, space: ActionSpace) -> str:
    """The recorded action of a step, a line for every group that does something."""
    if not clip.ids or clip.surprise[step].isnan():
        return "(not counted)"
    values = space.decode({name: ids[step].tolist() for name, ids in clip.ids.items()})
    lines = []
    for group in space.groups:
        value = values[group.name]
        if isinstance(value, list) and value:
            lines.append(f"{group.name} {' '.join(value)}")
        elif not isinstance(value, list) and clip.ids[group.name][step].tolist() != group.neutral:
            lines.append(f"{group.name} {value:+.2g}" if isinstance(value, float) else f"{group.name} {value:+d}")
    return "\n".join(lines) or "-"


def _draw_windows(axes: Axes, clip: Clip) -> None:
    """A grey line where a window begins."""
    for start in range(-clip.first % clip.window, len(clip.frames), clip.window):
        axes.axvline((clip.first + start - 0.5) / clip.fps, color="0.85", linewidth=0.8, zorder=0)


def _draw_causality(axes: Axes, clip: Clip, groups: Sequence[str]) -> None:
    """Causality of every step, the groups on top of each other; grey where a step is not scored."""
    seconds, bottom = clip.seconds.numpy(), np.zeros(len(clip.frames))
    for i, group in enumerate(groups):
        nats = np.nan_to_num(clip.scores[f"causality/{group}"].numpy()).clip(min=0)
        axes.bar(seconds, nats, 1 / clip.fps, bottom, color=COLOURS[i % len(COLOURS)], label=group, linewidth=0)
        bottom += nats
    highest = bottom.max() or 1.0
    axes.set_ylim(0, 1.2 * highest)
    unscored = clip.scores["causality"].isnan().numpy()
    if unscored.any():
        axes.bar(seconds[unscored], 1.05 * highest, 1 / clip.fps, color="0.93", label="not scored", linewidth=0)
    axes.legend(loc="upper right", ncols=len(groups) + 1, fontsize=8, frameon=False, borderaxespad=0.1)
    over = axes.get_xaxis_transform()
    axes.plot(seconds[_shown(clip)], [1.03] * len(_shown(clip)), "v", color="0.6", ms=4, transform=over, clip_on=False)
    changes = seconds[clip.changes.numpy()]
    axes.plot(changes, [-0.035] * len(changes), "^", color="0.15", ms=3.5, transform=over, clip_on=False)
    axes.tick_params(axis="x", labelbottom=False)


def _draw_companions(axes: Axes, clip: Clip) -> None:
    """Action reliance and surprise of every step."""
    seconds = clip.seconds.numpy()
    reliance, surprise = clip.scores["action_reliance"].numpy(), clip.surprise.numpy()
    axes.plot(seconds, reliance, color=COLOURS[4], linewidth=1.2, label="action reliance")
    axes.plot(seconds, surprise, color="0.35", linewidth=1, linestyle=(0, (3, 1.5)), label="-ln p(recorded action)")
    axes.set_ylim(0, 1.25 * np.nanmax([*reliance, *surprise, 1e-3]))
    axes.legend(loc="upper right", ncols=2, fontsize=8, frameon=False, borderaxespad=0.1)
