"""Recordings: writing, reading, checking, and feeding them to training. Names are imported on first use."""

from __future__ import annotations

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
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
    },
)
