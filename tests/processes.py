"""What tests of processes share: starting them, who still runs, and waiting until something has happened."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

FORKED = "forkserver"  # from a process that has imported everything and started no threads, which saves seconds


class ForkingLauncher(_MultiProcessingLauncher):
    """Lightning's launcher of spawned processes, which here are forked from one that has imported everything."""

    def launch(self, *args: Any, **kwargs: Any) -> Any:
        forked = partial(_start_forked, torch.multiprocessing.start_processes)
        # a fork server takes 256 file descriptors at most, and what is sent along holds more tensors than that
        before = torch.multiprocessing.get_sharing_strategy()
        torch.multiprocessing.set_sharing_strategy("file_system")
        try:
            with patch.object(torch.multiprocessing, "start_processes", forked):
                return super().launch(*args, **kwargs)
        finally:
            torch.multiprocessing.set_sharing_strategy(before)


class ForkedDDP(DDPStrategy):
    def _configure_launcher(self) -> None:
        self._launcher = ForkingLauncher(self, start_method="spawn")


def _start_forked(start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return start(*args, **kwargs | {"start_method": FORKED})


def several(processes: int) -> dict[str, Any]:
    """Arguments of a trainer that has so many processes."""
    return {"devices": processes, "strategy": ForkedDDP()} if processes > 1 else {}


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(rank, *arguments)`` in two processes, and wait for both."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method=FORKED)


def session(leader: int) -> list[str]:
    """Processes of a session that have not ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, of = (process / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(of) == leader and state != "Z":
                found.append(process.name)
    return found


def wait_for(condition, what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s until {what}"
        time.sleep(0.05)
