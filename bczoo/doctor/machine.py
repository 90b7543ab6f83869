"""The machine: processor, memory, disks, display.

Place in the pipeline: ``bczoo doctor``; nothing but the standard library.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bczoo.doctor.finding import BROKEN, NOTE, OK, Finding

PROBE_BYTES = 32 << 20  # written to measure a disk
LEAST_FREE, LITTLE_FREE = 1 << 30, 10 << 30  # bytes of a disk
LITTLE_MEMORY = 4 << 30
SLOW_DISK = 20e6  # bytes a second
BF16 = ("amx_bf16", "avx512_bf16", "avx_ne_convert")  # processor flags of bfloat16 instructions


def processor() -> Finding:
    model, flags = _cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [flag for flag in BF16 if flag in flags]
    bf16 = f"bfloat16 in hardware ({', '.join(found)})" if found else "no bfloat16 instructions known"
    return Finding("processor", OK, f"{model}, {cores} cores for this process, {bf16}")


def memory() -> Finding:
    total, free = _memory()
    if total is None:
        return Finding("memory", OK, "not known on this system")
    text = f"{total / 2**30:.1f} GiB" + (f", {free / 2**30:.1f} GiB free" if free is not None else "")
    if free is not None and free < LITTLE_MEMORY:
        return Finding(
            "memory", NOTE, text, "close other programs, or take a small configuration and --data.num_workers 0"
        )
    return Finding("memory", OK, text)


def disks() -> list[Finding]:
    """The current folder, where runs and recordings go, and the one for temporary files."""
    here, temporary = Path.cwd(), Path(tempfile.gettempdir())
    found = [disk("this folder", here, "cd to a folder that you may write to")]
    if temporary.resolve() != here.resolve():
        found.append(disk("TMPDIR", temporary, "export TMPDIR=FOLDER on a disk with room"))
    return found


def disk(name: str, folder: Path, mend: str) -> Finding:
    """Free space and speed of a folder's disk.

    Args:
        name: of the finding.
        folder: where to write a file, which is removed.
        mend: what to do where that cannot be.
    """
    try:
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE:
            return Finding(name, BROKEN, f"{folder} has {free / 1e9:.2f} GB left", f"free space there, or {mend}")
        speed = _write_speed(folder)
    except OSError as error:
        return Finding(name, BROKEN, f"{folder} cannot be written to: {error.strerror}", mend)
    text = f"{folder}: {free / 1e9:.0f} GB free, writes {speed / 1e6:.0f} MB/s"
    if free < LITTLE_FREE:
        return Finding(name, NOTE, text, f"free space there, or {mend}")
    return Finding(name, NOTE if speed < SLOW_DISK else OK, text, mend if speed < SLOW_DISK else "")


def display() -> Finding:
    """Whether a window for a person at the keyboard can open."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return Finding("display", OK, "there; record --agent keyboard opens a window")
    return Finding(
        "display",
        NOTE,
        "none, so record --agent keyboard opens no window; play --watch true needs none",
        "log in with ssh -X, or xvfb-run bczoo ... for a virtual one",
    )


def _cpu() -> tuple[str, set[str]]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                return model, set(value.split())
    except OSError:
        pass
    return model, set()


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all and those that are free."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemTotal"].split()[0]) << 10, int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):
        return None, None


def _write_speed(folder: Path) -> float:
    """Bytes a second onto the device, of one file."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".bczoo-doctor-") as file:
        content = os.urandom(1 << 20)
        began = time.perf_counter()
        for _ in range(PROBE_BYTES >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return PROBE_BYTES / max(time.perf_counter() - began, 1e-6)
