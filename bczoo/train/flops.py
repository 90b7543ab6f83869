"""How many floating point operations a model needs for a window, and how many a device can do in a second.

Place in the pipeline: :class:`bczoo.Throughput` and ``bczoo bench train`` divide one by the other: the model FLOP/s
utilisation (PaLM, arXiv 2204.02311, appendix B). Counted is what the model asks for, not what an implementation does:
blocks that are computed again in the backward pass count once, and attention counts as if no pair were masked out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bczoo.core.devices import device_name
from bczoo.core.spec import Batch, InputSpec, window_batch
from bczoo.models.model import Model

# dense bfloat16 operations a second by the device's name, as its maker states them (without sparsity)
PEAK = {
    "H200": 989e12,
    "H100 SXM": 989e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,  # float16
    "T4": 65e12,  # float16
}


def random_batch(spec: InputSpec, batch: int, device: str | torch.device = "cpu", steps: int | None = None) -> Batch:
    """A batch of noise, as a model of this kind is trained on; every step counts.

    Args:
        spec: what the model asks of its input.
        batch: windows B.
        device: where the batch is.
        steps: of a window; the spec's own number if left out.
    """
    steps = steps or spec.window
    shape = (batch, steps, 3, *spec.shape)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    groups = spec.action_space.groups if spec.action_space else ()
    actions = {g.name: torch.randint(0, g.choices, (batch, steps, g.tokens), device=device) for g in groups}
    text = None if spec.text_dim is None else torch.randn(batch, steps, spec.text_dim, device=device)
    return window_batch(frames, actions, text)


def batch_for(model: Any, batch: int, device: str | torch.device = "cpu", steps: int | None = None) -> Batch:
    """A batch of noise of what a model reads in training: ids in the place of frames where it asks for them.

    Args:
        model: any :class:`bczoo.Model`.
        batch: windows B.
        device: where the batch is.
        steps: of a window; the model's own number if left out.
    """
    made = random_batch(model.input_spec, batch, device, steps)
    if "tokens" in model.fields:
        shape = (*made.pop("frames").shape[:2], model.tokenizer.tokens)
        made["tokens"] = torch.randint(0, model.tokenizer.codebook_size, shape, device=device)
    return made


def flops_per_window(model: Model, steps: int | None = None) -> int:
    """Operations of a training step on one window: forward, and backward through what is learned.

    Computed on tensors without memory, in seconds for any size.

    Args:
        model: any model.
        steps: of the window; the model's own number if left out.
    """
    twin: Any = without_memory(model)
    for module in twin.modules():
        if getattr(module, "checkpointing", False):
            module.checkpointing = False
    batch = batch_for(model, 1, "meta", steps)
    with FlopCounterMode(display=False) as counter:
        loss = twin.loss(batch).total
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a device can do in bfloat16; None where that is not known."""
    if device.type != "cuda":
        return None
    name = device_name(device)
    return next((peak for part, peak in PEAK.items() if part in name), None)


def without_memory(model: Model) -> Model:
    """A twin of a model on the device ``meta``, which learns the same parameters."""
    with torch.device("meta"):
        twin = Model.from_config(model.spec, pretrained=False)
    twin = twin.to("meta").train()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in learned)
    return twin
