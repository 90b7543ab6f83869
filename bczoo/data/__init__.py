"""Recordings: writing, reading, checking, and feeding them to training. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "RecordingDataModule": "module",
    "RecordingSource": "source",
    "RecordingWriter": "recording",
    "RecordingError": "recording",
    "Index": "index",
    "open_index": "index",
    "WindowDataset": "dataset",
    "ClipAugment": "augment",
    "ReferenceAugmentations": "augment",
    "PublishedAugmentations": "augment",  # its former name
    "Report": "check",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
