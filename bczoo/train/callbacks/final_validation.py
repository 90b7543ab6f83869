"""Every training validates what comes out of it.

Place in the pipeline: a callback that every ``bczoo fit`` has. Lightning validates every so many steps or epochs, and
may end a training in between; then neither the record of the run nor the choice of its best checkpoint would know the
last weights.
"""

from __future__ import annotations

from typing import Any

import lightning as L


class ValidateAtEnd(L.Callback):
    """Has the last step of a training followed by a validation, if there is something to validate on."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not is_last_step(trainer) or validation_due(trainer):
            return
        if trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1
        trainer.should_stop = True  # training would end here anyway; and what is stopped is validated


def is_last_step(trainer: L.Trainer) -> bool:
    """Whether training ends behind the batch that was just learned from."""
    loop = trainer.fit_loop.epoch_loop
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    return bool(by_steps or (last_epoch and loop._num_ready_batches_reached()))


def validation_due(trainer: L.Trainer) -> bool:
    """Whether a validation follows on the batch that was just learned from, as Lightning decides it."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # type: ignore[arg-type]
