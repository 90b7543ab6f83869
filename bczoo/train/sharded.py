"""Training with weights, gradients and optimiser state spread over the processes (FSDP2).

Place in the pipeline: ``--trainer.strategy sharded`` in place of ``ddp``. Lightning's ModelParallelStrategy starts the
processes; the model shards itself in ``configure_model`` by :func:`shard`: each of its blocks is gathered
when it runs and given back behind it, what is left is gathered for the whole step. Losses and weights follow those of
DDP step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from bczoo.hub.checkpoint_folder import is_folder_checkpoint, load_into, read_rest, write_folder
from bczoo.hub.state import plain
from bczoo.models.model import Model
from bczoo.train.callbacks.checkpoint_io import AtomicCheckpointIO

# methods of a model that trainer and callbacks call from outside; within them its weights have to be whole
ENTRIES = (
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "encode",
    "logits",
    "logits_from",
    "counterfactual_logits",
    "other_past_logits",
)


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes.

    Args:
        sharded_checkpoints: every process writes its own part, and a checkpoint is a folder
            (:mod:`bczoo.hub.checkpoint_folder`) on a file system that all processes see. By default the parts are put
            together in the memory of the first process and written as one file. Every strategy and command reads both.
    """

    def __init__(self, sharded_checkpoints: bool = False, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints, **options)
        self._writers: Any = None  # that agree while training goes on

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def on_validation_start(self) -> None:
        """Have all processes validate with the buffers that are saved, those of the first one, as DDP does."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            torch.distributed.broadcast(buffer, 0)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self._save_distributed_checkpoint:
            # past ModelParallelStrategy, which removes an older folder before the file is written
            super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        self._writers = self._writers or torch.distributed.new_group(backend="gloo")
        rest = dict(checkpoint)
        weights = rest.pop("state_dict")  # buffers are not sharded, and those of the first process count
        own = {name: t for name, t in weights.items() if self.is_global_zero or isinstance(t, DTensor)}
        tensors = {"state_dict": own}
        tensors |= {f"optimizer_{i}": state for i, state in enumerate(rest.pop("optimizer_states", []))}
        writer = self.checkpoint_io
        writer = writer if isinstance(writer, AtomicCheckpointIO) else AtomicCheckpointIO()
        write = partial(write_folder, path, group=self._writers)
        writer.write((tensors, rest), lambda content: write(*content))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not is_folder_checkpoint(path):
            return super().load_checkpoint(checkpoint_path, weights_only)
        module, model = self.lightning_module, self.model
        assert module is not None and model is not None
        weights: dict[str, Any] = {"state_dict": get_model_state_dict(model)}
        load_into(weights, path)
        model.load_state_dict(weights["state_dict"], strict=module.strict_loading)
        for i, optimizer in enumerate(self.optimizers):
            state: dict[str, Any] = {f"optimizer_{i}": get_optimizer_state_dict(model, optimizer)}
            load_into(state, path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state[f"optimizer_{i}"], options=options)
        return read_rest(path)


StrategyRegistry.register("sharded", Sharded, description="FSDP2 over all processes (bczoo.Sharded)")


def shard(model: L.LightningModule, blocks: Iterable[nn.Module], strategy: ModelParallelStrategy) -> None:
    """Spread a model over the processes of a strategy, each of its blocks by itself; once.

    All processes begin with the weights of the first one, as under DDP.
    """
    if isinstance(model, FSDPModule):
        return
    model.to(strategy.root_device)
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.detach(), 0)
    mesh = strategy.device_mesh["data_parallel"]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    type(model).template = True  # type: ignore[attr-defined]  # torch has derived a class, which is no family
    for name in ENTRIES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def whole(model: Any) -> Any:
    """A model as one process can use it: itself, or a copy with all weights where it is sharded; all processes call it.

    Returns:
        the copy in the first process, None in the others; the model itself if it is not sharded.
    """
    if not isinstance(model, FSDPModule):
        return model
    sharded: Any = model
    state: dict[str, Any] = get_model_state_dict(
        sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not state:  # only the first process has them
        return None
    twin = Model.from_config(sharded.spec, pretrained=False)
    twin.load_state_dict(plain(state, getattr(sharded, "lora_scale", None)))
    return twin.train(sharded.training)
