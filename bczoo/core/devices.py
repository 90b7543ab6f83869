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
