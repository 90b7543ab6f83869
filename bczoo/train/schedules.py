"""Learning rate schedules that know how long the run is.

Place in the pipeline: named in YAML as the policy's ``lr_scheduler``. The paper's policies train at a constant
rate; short runs end better with a decay.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up to the optimiser's learning rate, then a cosine down to zero at the end of the run.

    Args:
        optimizer: the optimiser (given by the policy).
        total_steps: optimiser steps of the run (given by the policy).
        warmup: share of the run that warms up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.2) -> None:
        self.total_steps, self.warmup_steps = total_steps, max(1, round(warmup * total_steps))
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class WarmupConstant(LambdaLR):
    """Linear warm-up to the optimiser's learning rate, which then stays (paper 2411.04434, section 3.4).

    Args:
        optimizer: the optimiser (given by the model).
        total_steps: optimiser steps of the run (given by the model).
        warmup: share of the run that warms up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.01) -> None:
        self.warmup_steps = max(1, round(warmup * total_steps))
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step."""
        return min(1.0, (step + 1) / self.warmup_steps)
