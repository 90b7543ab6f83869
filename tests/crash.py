"""A callback for tests: stops a training as a power cut would."""

import lightning as L


class PowerCut(Exception):
    """What ends the run."""


class CrashAt(L.Callback):
    """Raises before optimiser step ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise PowerCut


class CrashAtTheEnd(L.Callback):
    """Raises when training is over."""

    def on_fit_end(self, trainer, pl_module):
        raise PowerCut
