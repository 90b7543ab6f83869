"""``bczoo causality``: whether a policy acts on what it sees, over all recordings of a folder.

Place in the pipeline: :mod:`bczoo.causality.metrics` and :mod:`bczoo.train.metrics` score every window, as in
validation; here the scores are summed per recording, reported with intervals (:mod:`bczoo.core.statistics`), and
plotted over a clip.

Shape legend: R recordings, B batch, T steps of a window, N steps of a clip, n tokens of a group, E text
width, H = W frame size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from bczoo.causality.clip import Clip, plot
from bczoo.causality.counterfactual import Counterfactuals
from bczoo.causality.donors import Donors
from bczoo.causality.metrics import causality_name, evaluate, visual_share
from bczoo.causality.perturb import FREEZE_STEPS, Perturbation, checked_kinds, longest_freeze, perturbations
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.progress import Progress
from bczoo.core.spec import loss_mask, targets
from bczoo.core.statistics import RESAMPLES_OF_METRICS, bootstrap
from bczoo.core.tables import markdown_table
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.windows import Key, Plan, split
from bczoo.hub.measurements import keep, measured_step, results_folder
from bczoo.models.policy import Policy
from bczoo.nn.text import where_untold
from bczoo.play.open import open_policy
from bczoo.train.metrics import Measures, action_measures, masked_sum, summarise

READING = (
    "Causality and action reliance are nats per action: 0 means that the picture (the past actions) does not matter.\n"
    "A policy may look and still be wrong, so read them beside perplexity and accuracy."
)
NOT_KNOWN = (
    "n/a: no step tells. A visual share needs causality or reliance that is more than nothing, a relative "
    "cross-entropy actions that are not always the same."
)
NO_CHANGES = "No action differs from the one before in these recordings, so nothing is known of changes."
WINDOWS = 256  # that are measured if nothing else is said
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
    windows: int | None = WINDOWS,
    text: str | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    clip: str | None = None,
    clip_start: float = 0.0,
    clip_seconds: float = 10.0,
    out: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    add_to_record: bool | None = None,
) -> CausalityResult:
    """Measure whether a policy acts on what it sees, and plot at which moments it does.

    Every decision is compared with the one that the policy takes when it is shown another picture, and when it is given
    other past actions. Prints a table with 95 % intervals, writes causality.json and causality.png.

    Args:
        policy: an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        data: folder of recordings, best of some that the policy was not trained on; see part.
        perturb: what is shown instead of the recorded picture, with commas between: swap (a picture from elsewhere),
            freeze (that of some steps ago), blank (the clip's mean colour), noise, counterfactual (your own). The
            first is plotted, and compared with the past actions.
        counterfactual: folder of edited frames <recording>/<frame>.png; adds this perturbation, scored at these frames.
        replaced: how many steps up to the decision show the other picture.
        freeze_steps: how many steps ago freeze shows the frame of.
        part: all recordings; or val, those that a training on this very folder keeps for validation.
        val_fraction: data.val_fraction of that training.
        limit: measure only so many recordings, sampled by name; all if left out.
        windows: measure only so many windows, sampled over all of these recordings; null for every window. The
            intervals are over recordings, so that more windows of the same recordings narrow them little.
        text: instruction to the policy at steps that have none; the one it was fine-tuned under if left out.
        batch_size: windows per batch.
        num_workers: processes that read windows.
        clip: name of the recording that is plotted; the first one that is long enough if left out.
        clip_start: where the plotted clip begins, in seconds.
        clip_seconds: how long it is.
        out: folder of the results; if left out, causality in the folder of a run, runs/causality for other policies.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit on the Hub.
        add_to_record: keep the scores in the record of the policy, for its card; if left out, those of a run are kept,
            and those of an exported folder, whose card is written anew for them, are not.
    """
    kinds = _kinds(perturb, counterfactual, replaced, freeze_steps)
    for name, number in (("batch_size", batch_size), ("limit", limit), ("windows", windows)):
        if number is not None and number < 1:
            raise UserError(f"{name} is a number from 1 on, got {number}")
    out = out or results_folder(policy, "causality")
    require_folder_target(out, "--out")
    opened = open_policy(policy, revision, device, text=text)
    loaded, instruction = opened.policy, opened.embedding()
    spec = loaded.input_spec
    index = open_index(data, spec.action_space, spec.fps, spec.text_dim, processes=num_workers)
    index.report()
    recordings = _choose(index, part, val_fraction, limit)
    excerpt = Clip.of(index, recordings, spec, clip, clip_start, clip_seconds)
    edited = None if counterfactual is None else Counterfactuals(counterfactual, index)
    plan = Plan(index, recordings, spec.window, batch_size, shuffle=False, spread=True)
    loader = WindowLoader(WindowDataset(index, spec.window, spec.frame_size, resize=spec.resize), plan, num_workers)
    there = plan.n_windows()
    measured = there if windows is None else min(there, -(-windows // batch_size) * batch_size)
    rest = "" if measured == there else f" of {there:,} (--windows null measures all, --windows N another sample)"
    print(f"measuring {measured:,} windows of {spec.window} steps{rest}, of {len(recordings):,} recordings", flush=True)
    sums = measure(
        loaded, loader, perturbations(kinds, freeze_steps, edited), replaced, excerpt, instruction, windows=windows
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
        "text": opened.text,
        "window": spec.window,
        "windows": measured,
        "batch_size": batch_size,
        "bootstrap_draws": RESAMPLES_OF_METRICS,
    }
    result = CausalityResult.of(settings, spec.actions, [str(index.names[r]) for r in recordings], sums, excerpt)
    folder = Path(out)
    write_json(folder / "causality.json", result.to_dict(), indent=1, allow_nan=False)
    plot(excerpt, folder / "causality.png", f"{policy} on {excerpt.name}", kinds[0], spec.actions)
    print(f"\n{policy} on {data}\n\n{result.table()}\n\n{READING}")
    if edited is not None:
        name = causality_name("counterfactual", kinds)
        print(f"{result.steps[name]} of {len(edited.paths)} counterfactual frames belong to a step that counts.")
    if part == "all" and _trained_on(opened.record, data):
        print("The policy was trained on recordings of this folder; --part val takes only those held out.")
    print(f"\n{folder / 'causality.json'}, {folder / 'causality.png'}")
    if (step := measured_step(opened.found)) is not None:
        entry = result.for_record(step)
        if line := keep(opened.found, "causality", data, entry, measured, add_to_record):
            print(line)
    return result


def _kinds(perturb: Sequence[str] | str, counterfactual: str | None, replaced: int, freeze_steps: int) -> list[str]:
    """Names of the perturbations, each once; raises for what cannot be done before anything is loaded."""
    listed = perturb.split(",") if isinstance(perturb, str) else list(perturb)
    kinds = list(dict.fromkeys(name for name in (kind.strip() for kind in listed) if name))
    kinds = checked_kinds(kinds, counterfactual, replaced, freeze_steps)
    if not kinds:
        raise UserError("perturb names no perturbation; --perturb swap is the one to begin with")
    return kinds


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
    """Sums of measures over the steps of each recording that count.

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
    policy: Policy,
    loader: WindowLoader,
    kinds: Mapping[str, Perturbation],
    replaced: int = 1,
    clip: Clip | None = None,
    instruction: Tensor | None = None,
    progress: bool = True,
    windows: int | None = None,
) -> RecordingSums:
    """Score all windows.

    Args:
        policy: in evaluation mode.
        loader: of the windows; closed at the end.
        kinds: perturbations by name.
        replaced: m, how many steps up to t show their replacement when t decides.
        clip: takes down the scores of its steps.
        instruction: embedding (E,) of the instruction at steps that have none.
        progress: show a progress bar.
        windows: score only so many, in whole batches, and those of the clip; all if left out.
    """
    sums = RecordingSums(loader.plan.recordings)
    donors = Donors.read(policy, loader)
    counted = len(loader) if windows is None else min(len(loader), -(-windows // loader.plan.batch_size))
    more = [] if clip is None else _windows_of(clip, loader.plan, counted)
    batches = chain(islice(loader, counted), (loader.windows[key] for key in more))
    for number, batch in enumerate(
        Progress(batches, desc="causality", unit="batch", total=counted + len(more), disable=not progress)
    ):
        batch = move_data_to_device(batch, policy.device)
        if instruction is not None:
            batch["text"] = where_untold(batch["text"], instruction)
        scores = evaluate(policy, batch, kinds, replaced, donors=donors)
        measures = scores.measures | action_measures(scores.logits, targets(batch), loss_mask(batch))
        if number < counted:
            sums.add(measures, batch["recording"])
        if clip is not None:
            clip.add(batch, measures)
    loader.close()
    return sums


def _windows_of(clip: Clip, plan: Plan, first_batch: int) -> list[Key]:
    """The windows that a clip lies in, of those in the batches from ``first_batch`` on."""
    end = clip.first + len(clip.frames)
    keys = (key for batch in plan.batches(0, first_batch) for key in batch)
    return [(r, s) for r, s in keys if r == clip.recording and s < end and s + plan.window > clip.first]


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class Estimate:
    """A metric over the steps of all recordings.

    Args:
        value: None where no step counts.
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
        recordings: by name the metrics of each recording, and its ``steps`` that count.
        clip: the clip to plot.
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
            clip: the clip to plot.
        """
        known_steps = sums.counts.get(f"cross_entropy/{space.groups[0].name}")
        if known_steps is None or not known_steps.sum():
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
            recordings[name] = {"steps": int(known_steps[row])} | {k: v for k, v in known.items() if v is not None}
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

    def for_record(self, step: int) -> dict[str, Any]:
        """What is kept with the policy.

        Args:
            step: optimiser steps of its weights.
        """
        kinds = self.settings["perturb"]
        names = [*(causality_name(kind, kinds) for kind in kinds), "action_reliance", "visual_share"]
        return {
            "step": step,
            "part": self.settings["part"],
            "recordings": sum(one["steps"] > 0 for one in self.recordings.values()),
            "windows": self.settings["windows"],
            "metrics": {name: vars(self.metrics[name]) for name in names if name in self.metrics},
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
        caption = f"{n} recording{'s' * (n > 1)}, {steps} steps, {changes} changes of the action; {several}."
        if any("n/a" in cell for row in rows for cell in row):
            caption += f"\n{NOT_KNOWN}" + (f"\n{NO_CHANGES}" if not changes else "")
        return f"{markdown_table(rows)}\n\n{caption}"

    def _row(self, label: str, name: str) -> list[str]:
        whole = self.metrics.get(name, Estimate(None))
        interval = "" if whole.low is None else f" ({whole.low:.3f} to {whole.high:.3f})"
        known = {group.name: self.metrics.get(f"{name}/{group.name}") for group in self.space.groups}
        cells = ["" if one is None else _number(one.value) for one in known.values()]
        return [label, "" if name not in self.metrics else _number(whole.value) + interval, *cells]


def _statistic(means: dict[str, Tensor]) -> dict[str, Tensor]:
    return summarise(means) | visual_share(means)


def _known(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 1000 else f"{value:.3g}"  # + 0.0: no minus before zero
