"""The loader that trainers iterate over: planned batches, and a position that checkpoints keep.

Place in the pipeline: between `windows.py` (which batches) and the trainer. It is no ``DataLoader`` on
purpose, so that trainers neither replace its sampler in distributed runs nor wrap it for prediction; it feeds
one inside.

Lightning saves ``state_dict`` with its checkpoints, gives it back to a resumed run before the first batch,
sets the epoch through ``sampler.set_epoch``, and creates the iterator before that. So an iterator here decides where to
start only when its first batch is asked for.

torchdata's ``StatefulDataLoader`` (0.11) was tried in its place. It resumes as exactly, but only with the number of
workers that the state was saved with: between none and some it fails. Its state is the position of every worker, where
(epoch, batch) is enough here, because a plan is a function of the epoch; and the sampler that the trainer leaves alone,
the warning about changed data and stopped workers would be needed as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from bczoo.core.spec import Batch
from bczoo.data.ahead import Ahead
from bczoo.data.dataset import WindowDataset, as_batch
from bczoo.data.windows import Key, Plan


class _Batches:
    """What the inner loader takes batches of keys from."""

    def __init__(self, plan: Plan, reads_videos: bool) -> None:
        self.plan = plan
        self.brings = reads_videos and bool(plan.index.packs)
        self.epoch = 0
        self.first_batch = 0

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self.plan.batches(self.epoch, self.first_batch)
        if not self.brings:
            yield from batches
            return
        with Ahead(self.plan, self.epoch) as ahead:
            for keys in batches:
                ahead.reach(keys)
                yield keys

    def __len__(self) -> int:
        return len(self.plan)


class WindowLoader:
    """Iterates over the batches of an epoch; resumes within one.

    Args:
        dataset: reads the windows.
        plan: which windows.
        num_workers: processes that read; 0 reads in this one.
        pin_memory: copy batches to page-locked memory, for faster transfer to a GPU.
    """

    batch_sampler = None  # Lightning asks for it where there is a sampler

    def __init__(self, dataset: WindowDataset, plan: Plan, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.windows = dataset
        self.plan = plan
        self._n_batches = len(plan)
        self._batches = _Batches(plan, dataset.reads_videos)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            collate_fn=as_batch,
            generator=torch.Generator(),  # or its random numbers would shift the global generator, and so dropout
        )
        self._position = 0  # batches of this epoch that were handed out
        self._resume: tuple[int, int] | None = None  # (epoch, batch) to go on from

    @property
    def sampler(self) -> WindowLoader:
        """Lightning looks for ``set_epoch`` here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of iterators that have not begun."""
        self._batches.epoch = epoch

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._batches.epoch
        resume, self._resume = self._resume, None
        self._position = resume[1] if resume is not None and resume[0] == epoch else 0
        self._batches.first_batch = self._position
        for batch in self._loader:
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, and what the plan depends on."""
        return {"epoch": self._batches.epoch, "batch": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position."""
        identity = self._identity()
        if changed := [f"{k} {state.get(k)} -> {v}" for k, v in identity.items() if state.get(k) != v]:
            warnings.warn(
                f"the data is not what it was when the checkpoint was saved ({', '.join(changed)}); "
                f"training goes on at batch {state['batch']} of epoch {state['epoch']} of the new order",
                stacklevel=2,
            )
        self._resume = (state["epoch"], state["batch"])
        self._batches.epoch, self._position = self._resume

    def _identity(self) -> dict[str, int]:
        plan = self.plan
        packed = {"open_recordings": plan.open_recordings} if plan.index.packs else {}
        return packed | {
            "recordings": len(plan.recordings),
            "frames": int(plan.index.n_frames[plan.recordings].sum()),
            "window": plan.window,
            "batch_size": plan.batch_size,
            "world_size": plan.world_size,
            "seed": plan.seed,
        }

    def close(self) -> None:
        """Stop the worker processes."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:  # there is no public way to stop persistent workers
            iterator._shutdown_workers()  # type: ignore[attr-defined]
