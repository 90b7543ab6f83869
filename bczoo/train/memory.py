"""``bczoo bench memory``: how much memory a training step takes, reckoned without the device and without the memory.

Place in the pipeline: runs the training step of any configuration, as ``bczoo bench train`` does, on fake tensors
(torch's FakeTensorMode), which have shapes and no contents. Every operation takes place, and what it allocates is
counted until it is given back. Reckoned is one device that holds everything, with memory-efficient attention as on a
GPU. What a device's allocator and libraries take on top, and what compiled blocks save, is not known here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bczoo.core import arguments
from bczoo.core.devices import DTYPES, Precision
from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table
from bczoo.models.bc.masks import window_attention
from bczoo.models.model import Model
from bczoo.train.flops import batch_for, without_memory


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes.

    Args:
        batch: windows of the step.
        steps: of a window.
        weights: parameters and buffers.
        gradients: of what is learned.
        optimizer: what the optimiser keeps from step to step.
        activations: what comes on top of those three where the step takes most, the batch included.
        most: at once, in any step but the first.
        largest_batch: windows of the largest batch that fits, if that was asked for; 0 if not even one does.
    """

    batch: int
    steps: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    most: int
    largest_batch: int | None = None

    def __str__(self) -> str:
        rows = [
            ["what", "GB"],
            *([name, f"{getattr(self, name) / 1e9:.2f}"] for name in ("weights", "gradients", "optimizer")),
            ["activations", f"{self.activations / 1e9:.2f}"],
            ["most at once", f"{self.most / 1e9:.2f}"],
        ]
        return markdown_table(rows)


def memory(
    architecture: str,
    batch: int = 1,
    steps: int | None = None,
    dtype: Precision = "bfloat16",
    checkpointing: bool | None = None,
    gb: float | None = None,
) -> StepMemory:
    """Reckon the memory of a training step of a configuration, without a GPU, and the largest batch that fits.

    Args:
        architecture: a size such as 1.2b, or a YAML file with a model section.
        batch: windows of a step.
        steps: of a window; the configuration's own number if left out.
        dtype: numbers that are computed with; weights and optimiser stay float32.
        checkpointing: compute the blocks again in the backward pass; as the configuration says if left out.
        gb: memory of the device in GB (1e9 bytes), to find the largest batch that fits into it.
    """
    arguments.whole("batch", batch, 1)
    if gb is not None:
        arguments.number("gb", gb, 0)
    with torch.device("meta"):
        model = Model.from_config(architecture, pretrained=False)
    steps = steps or model.input_spec.window
    found = step_memory(model, batch, steps, dtype, checkpointing)
    print(f"{architecture}, {dtype}, batch {batch}, windows of {steps} steps\n\n{found}")
    if gb is None:
        return found
    largest = _largest(model, steps, dtype, checkpointing, 1e9 * gb)
    print(f"\nthe largest batch that {gb:g} GB hold: {largest} windows")
    return StepMemory(**{**vars(found), "largest_batch": largest})


def step_memory(
    model: Model, batch: int, steps: int, dtype: Precision = "bfloat16", checkpointing: bool | None = None
) -> StepMemory:
    """The memory of a training step.

    Args:
        model: any model, on any device.
        batch: windows.
        steps: of a window.
        dtype: numbers that are computed with.
        checkpointing: compute blocks again in the backward pass; as the model does if None.
    """
    twin = without_memory(model)
    if checkpointing is not None:
        set_checkpointing(twin, checkpointing)
    with _masks_apart(), FakeTensorMode(), _Live() as live:
        _materialise(twin)
        for tensor in [*twin.parameters(), *twin.buffers()]:
            live.add(tensor)
        weights = live.now
        data = batch_for(twin, batch, "cpu", steps)
        optimizer = twin.make_optimizer()
        most = 0
        for _ in range(2):  # the optimiser's state is made by the first one
            optimizer.zero_grad()
            live.most = live.now
            with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
                loss = twin.loss(data).total
            if loss.requires_grad:
                loss.backward()
            del loss
            optimizer.step()
            most = live.most
        kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        gradients = sum(_bytes(p.grad) for p in twin.parameters() if p.grad is not None)
        optimizer_bytes = sum(map(_bytes, kept))
    rest = most - weights - gradients - optimizer_bytes
    return StepMemory(batch, steps, weights, gradients, optimizer_bytes, max(rest, 0), most)


def set_checkpointing(model: Model, on: bool) -> None:
    """Have the blocks of a model computed again in the backward pass, or not."""
    switches = [m for m in model.modules() if hasattr(m, "checkpointing")]
    if not switches:
        raise UserError(f"{type(model).__name__} has no checkpointing; leave it out")
    for module in switches:
        module.checkpointing = on  # type: ignore[assignment]


def _largest(model: Model, steps: int, dtype: Precision, checkpointing: bool | None, room: float) -> int:
    """The largest batch whose step fits. Activations grow with the batch, so two points tell about where it lies."""

    def most(batch: int) -> int:
        return step_memory(model, batch, steps, dtype, checkpointing).most

    one, two = most(1), most(2)
    batch = max(int(1 + (room - one) / (two - one)), 0)
    while batch and most(batch) > room:
        batch -= 1
    while most(batch + 1) <= room:
        batch += 1
    return batch


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, ``now`` and the ``most`` at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's memory, unless it is another one's too."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def _materialise(model: nn.Module) -> None:
    """Bring a model from the device ``meta`` to the CPU of the fake mode; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    learned = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if learned else empty
                store[name] = made[id(tensor)]  # type: ignore[assignment]


@contextmanager
def _masks_apart() -> Iterator[None]:
    """Neither use a kept mask, which has contents, nor leave one behind that has none."""
    window_attention.cache_clear()
    try:
        yield
    finally:
        window_attention.cache_clear()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
