"""How sure an inverse dynamics model really is: one number that its logits are divided by.

Place in the pipeline: ``bczoo data label --calibrate`` calls :func:`calibrate` with recordings whose actions are known
and that the model has not learned from. Networks that fit their training data are surer than they are right; a single
temperature, chosen by the likelihood of held-out labels, mends most of that (1706.04599) and changes no answer.

Shape legend: C temperatures, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bczoo.core.errors import UserError
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.windows import list_windows
from bczoo.models.idm.metrics import confidence
from bczoo.models.idm.model import InverseDynamics

TEMPERATURES = np.geomspace(0.25, 8, 61).round(3)
MOST_STEPS = 20_000  # that are looked at
QUANTILE = 0.2  # of the held-out confidences, below which guesses are not advised to be learned from


@dataclass(frozen=True)
class Calibration:
    """What guesses are made with.

    Args:
        temperature: logits are divided by it; 1 leaves them as they are.
        threshold: confidence that is advised to learn from, exceeded by 80 % of held-out steps; 0 advises nothing.
        steps: held-out steps that this was found on.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    steps: int = 0


@torch.inference_mode()
def calibrate(idm: InverseDynamics, data: str, batch_size: int) -> Calibration:
    """The temperature under which held-out labels are most likely, and the confidence that most of their steps reach.

    Only the middle of each window counts, as in labelling.

    Args:
        idm: in evaluation mode.
        data: folder of recordings with known actions.
        batch_size: windows at once.
    """
    spec = idm.input_spec
    index = open_index(data, spec.action_space, spec.fps, None)
    recording, start = list_windows(index, index.usable, spec.window, drop_system=False)
    some = np.linspace(0, len(start) - 1, min(len(start), max(MOST_STEPS // spec.window, 1))).astype(int)
    keys = [(int(recording[i]), int(start[i])) for i in some]
    dataset = WindowDataset(index, spec.window, spec.frame_size, resize=spec.resize)
    middle = torch.zeros(spec.window, dtype=torch.bool)
    middle[spec.window // 4 : spec.window // 4 + spec.window // 2] = True
    nats = np.zeros(len(TEMPERATURES))
    sure = []  # (C, N) each
    for first in range(0, len(keys), batch_size):
        batch = dataset.__getitems__(keys[first : first + batch_size])
        counted = idm.counted(batch) & middle
        logits = idm.logits(batch["frames"].to(idm.device), batch["valid"].to(idm.device))
        logits = {name: group.float().cpu()[counted] for name, group in logits.items()}  # (N, n, V)
        right = {name: ids[counted].flatten() for name, ids in batch["actions"].items()}
        for i, temperature in enumerate(TEMPERATURES):
            for name, group in logits.items():
                nats[i] += float(F.cross_entropy(group.flatten(0, 1) / temperature, right[name], reduction="sum"))
        sure.append(torch.stack([confidence(logits, t) for t in TEMPERATURES.tolist()]).numpy())
    all_sure = np.concatenate(sure, axis=1) if sure else np.zeros((len(TEMPERATURES), 0))
    if not all_sure.shape[1]:
        raise UserError(f"--calibrate {data}: no step there has a known action; name recordings that hold some")
    best = int(nats.argmin())
    threshold = float(np.quantile(all_sure[best], QUANTILE))
    return Calibration(float(TEMPERATURES[best]), threshold, all_sure.shape[1])
