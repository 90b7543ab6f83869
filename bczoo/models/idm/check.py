"""How good guessed actions are where the true ones are known: the function behind ``bczoo data idm-check``.

Place in the pipeline: ``bczoo data label`` writes its guesses beside what recordings hold, also where that is a known
action; here both are compared, by the measures of :mod:`bczoo.models.idm.metrics`. For a true answer these recordings
must be ones that the model has not learned from.

Shape legend: n steps of a recording, A action tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, sweep, write_json
from bczoo.core.tables import markdown_table
from bczoo.data.errors import printable
from bczoo.data.listing import find_recordings
from bczoo.data.recording import PSEUDO, UNKNOWN, action_values, known_action, read_annotation
from bczoo.models.idm.metrics import InverseDynamicsMetrics

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the steps, the surest ones


@dataclass
class Agreement:
    """How well guesses agree with known actions.

    Args:
        root: the folder.
        recordings: that hold both.
        steps: that hold both.
        measures: of all of them, by name (:mod:`bczoo.models.idm.metrics`).
        coverage: the surest steps: their share, the confidence that they have, and their measures.
        misaligned: what to do where guesses fit other steps better; None if they fit.
    """

    root: str
    recordings: int = 0
    steps: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    coverage: list[dict[str, float]] = field(default_factory=list)
    misaligned: str | None = None

    def __str__(self) -> str:
        m = self.measures
        groups = [name.partition("/")[2] for name in m if name.startswith("event_f1_0/")]
        axes = [name.partition("/")[2] for name in m if name.startswith("r2/")]
        keys = [
            ["keys", "event F1 within 0", "1", "2", "macro, within 1"],
            *(
                [g, *(_shown(m[f"{kind}/{g}"]) for kind in ("event_f1_0", "event_f1", "event_f1_2", "event_f1_macro"))]
                for g in groups
            ),
        ]
        motion = [
            ["axis", "R^2", "mean absolute error", "right signs"],
            *([a, _shown(m[f"r2/{a}"]), f"{m[f'mae/{a}']:.2f}", _shown(m[f"sign/{a}"])] for a in axes),
        ]
        whole = [
            ["whole actions", "share right"],
            ["read off the video", _shown(m["joint"])],
            ["the true one before, copied", _shown(m["joint_copy"])],
        ]
        kept = [
            ["surest steps", "confidence from", "share right", *(f"event F1, {g}" for g in groups)],
            *(
                [f"{c['share']:.0%}", _shown(c["confidence"]), _shown(c["joint"])]
                + [_shown(c[f"event_f1/{g}"]) for g in groups]
                for c in self.coverage
            ),
        ]
        head = f"{self.root}: {self.recordings} recordings, {self.steps:,} steps with a guess and a known action"
        error = f"expected calibration error {m['calibration']:.3f}"
        tables = [markdown_table(t) for t in (keys, motion, whole, kept) if len(t) > 1]
        warning = [f"warning: {self.misaligned}"] if self.misaligned else []
        return "\n\n".join([head, *tables, error, *warning])


def _shown(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def idm_check(root: str, json: str | None = None, action_space: str | dict[str, Any] = "keyboard_mouse") -> Agreement:
    """Compare actions that a model has read off video with the true ones, where recordings hold both.

    Args:
        root: folder that `bczoo data label` wrote.
        json: file to write the measures to as JSON.
        action_space: name of the action space to map actions to, or its dict.
    """
    if json is not None:
        require_file_target(json, "--json", "idm_check.json")
    space = ActionSpace.of(action_space)
    everything, result = InverseDynamicsMetrics(space), Agreement(printable(root))
    pairs = [pair for row in _recordings(root) if (pair := read_pair(Path(root) / row, space))[2].any()]
    if not pairs:
        raise UserError(
            f"{root}: no step has both a guess and a known action; label recordings with known actions, which stay as "
            f"they are: bczoo data label IDM RECORDINGS --out {root}"
        )
    all_sure = np.concatenate([sure[mask] for _, _, mask, sure in pairs])
    result.recordings, result.steps = len(pairs), len(all_sure)
    for pair in pairs:
        _add(everything, space, pair, threshold=0.0)
    result.measures = {name: float(value) for name, value in everything.compute().items()}
    result.misaligned = everything.misaligned()
    for share in SHARES:
        metric, threshold = InverseDynamicsMetrics(space), float(np.quantile(all_sure, 1 - share))
        for pair in pairs:
            _add(metric, space, pair, threshold=threshold)
        measures = {name: float(value) for name, value in metric.compute().items()}
        result.coverage.append({"share": share, "confidence": threshold, **measures})
    print(result)
    if json is not None:
        sweep(Path(json).parent)
        write_json(json, dataclasses.asdict(result), indent=1)
    return result


def _recordings(root: str) -> list[str]:
    folder = Path(root)
    if not folder.is_dir() or not (rows := find_recordings(folder)):
        raise UserError(f"{root} holds no recordings; bczoo data label writes some")
    return [row.path for row in rows if not row.problem]


Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_pair(folder: Path, space: ActionSpace) -> Pair:
    """What a recording holds of every step: guessed ids (n, A), true ids (n, A), whether it has both, how sure (n,).

    The true action is the one that was done, by whomever: that is what the video shows.
    """
    frames = read_annotation(folder).frame_annotations
    groups = [g.name for g in space.groups]
    ids = np.zeros((2, len(frames), space.tokens), np.int64)
    both, sure = np.zeros(len(frames), bool), np.zeros(len(frames))
    for i, frame in enumerate(frames):
        kind, action = known_action(frame)
        if kind in (UNKNOWN, PSEUDO) or not frame.pseudo_action.is_known:
            continue
        both[i], sure[i] = True, frame.pseudo_confidence
        for row, one in zip(ids[:, i], (frame.pseudo_action, action), strict=True):
            encoded = space.encode(ignore_unknown=True, **action_values(one, groups))
            row[:] = [number for group in encoded.values() for number in group]
    return ids[0], ids[1], both, sure


def _add(metric: InverseDynamicsMetrics, space: ActionSpace, pair: Pair, threshold: float) -> None:
    """Add a recording, as one window, with the steps that are at least so sure."""
    *ids, both, sure = (torch.from_numpy(array)[None] for array in pair)
    guessed, true = ({name: of[..., part] for name, part in space.slices.items()} for of in ids)
    metric.update(guessed, true, both, sure, sure >= threshold)
