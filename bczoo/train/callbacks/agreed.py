"""Questions of yes or no that all processes of a training answer together.

Place in the pipeline: callbacks ask here whether to stop (:mod:`bczoo.train.callbacks.finite`,
:mod:`bczoo.train.callbacks.checkpoint`). A process that stopped alone would leave the others waiting for it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor


class Agreed:
    """Flags by step: yes if it is yes in any process, known to all at the same step.

    On a GPU nothing waits for the device: an answer is fetched one step late, when it has long been computed.
    """

    def __init__(self) -> None:
        self._asked: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def ask(self, trainer: L.Trainer, flag: Tensor, note: Any = None) -> None:
        """Ask; all processes do at the same step.

        Args:
            trainer: the trainer.
            flag: () of this process, on its device.
            note: comes back with the answer.
        """
        flag = flag.detach().float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if flag.device.type != "cuda":
            self._asked.append((flag, None, note))
            return
        host = torch.empty((), pin_memory=True)
        host.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._asked.append((host, event, note))

    def answers(self, all: bool = False) -> list[Any]:
        """Notes of the questions that were answered with yes, oldest first; each answer is reported once.

        Args:
            all: wait for the last one too.
        """
        yes = []
        while self._asked and (all or len(self._asked) > 1 or self._asked[0][1] is None):
            flag, event, note = self._asked.popleft()
            if event is not None:
                event.synchronize()
            if flag.item():
                yes.append(note)
        return yes

    def clear(self) -> None:
        """Forget what was asked."""
        self._asked.clear()
