"""What tests of processes look at: who still runs, and waiting until something has happened."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


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
