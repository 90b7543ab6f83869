"""Training with weights, gradients and optimiser state spread over the processes (FSDP2).

Place in the pipeline: ``--trainer.strategy sharded`` in place of ``ddp``. Lightning's ModelParallelStrategy starts the
processes and saves; the model shards itself in ``configure_model`` by :func:`shard`: each of its blocks is gathered
when it runs and given back behind it, what is left is gathered for the whole step. Losses and weights follow those of
DDP step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from bczoo.hub.state import plain
from bczoo.models.model import Model

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
        sharded_checkpoints: every process writes its own part, and a checkpoint is a folder. By default the parts are
            put together in one file, which is what every other strategy and command reads.
    """

    def __init__(self, sharded_checkpoints: bool = False, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()


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
