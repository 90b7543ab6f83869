"""Devices and number types by name, as the commands take them, and the processor threads of play.

Place in the pipeline: every command that runs a policy asks here before it loads one.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Literal

import torch

from bczoo.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]

SMALL_POLICY = 5_000_000  # parameters, up to which more than one thread makes a step slower


def usable_device(name: str) -> torch.device:
    """The device of a name, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # which the device meta cannot
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the device {name!r} cannot be used here; choose cpu, or cuda on a machine with a GPU"
        ) from error
    return device


def bfloat16_cost(size: int = 512, rounds: int = 7) -> float:
    """How long a matrix product in bfloat16 takes on this processor, in matrix products in float32.

    Processors without instructions for bfloat16 are slower in it than in float32.
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    factors = {dtype: torch.ones(size, size, dtype=dtype) for dtype in seconds}
    for _ in range(rounds):
        for dtype, taken in seconds.items():
            started = time.perf_counter()
            factors[dtype] @ factors[dtype]
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[torch.bfloat16]) / statistics.median(seconds[torch.float32])


def training_precision(accelerator: str, processes: int = 1, before: str | None = None) -> tuple[str, str]:
    """The numbers to train in where nobody named them, as Lightning calls them, and why.

    Args:
        accelerator: Lightning's name of the kind of device; ``auto`` takes a GPU if there is one.
        processes: how many train together; on processors they might measure differently, so nothing is measured.
        before: what the run that goes on was trained in, which stays if the device is still a processor.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} computes in bfloat16"
        return "32-true", f"{name} does not compute in bfloat16"
    if accelerator == "mps" or (accelerator in ("auto", "gpu") and torch.backends.mps.is_available()):
        return "32-true", "bfloat16 was not tried on this GPU"
    if before in ("32-true", "bf16-mixed"):
        return before, "the run began so"
    if processes > 1:
        return "32-true", "several processes on processors"
    cost = bfloat16_cost()
    if cost <= 1:
        return "bf16-mixed", f"on this processor a product takes {cost:.2f} times as long in bfloat16 as in float32"
    return "32-true", f"on this processor a product takes {cost:.1f} times as long in bfloat16"


def play_threads(policy: torch.nn.Module, threads: int | None = None) -> int:
    """Set the processor threads of torch for play, and tell how many they are.

    Args:
        policy: what plays. A small one is fastest with one thread: its steps are too short to share out.
        threads: how many; if left out, one for a small policy and torch's choice for others.
    """
    if threads is None and sum(p.numel() for p in policy.parameters()) < SMALL_POLICY:
        threads = 1
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def processor() -> str:
    """The processor of this machine by its name, such as ``AMD EPYC``; its kind where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """A device by the name of its hardware, which stands beside every measured number."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
