"""Recordings: writing, reading, checking, and feeding them to training. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "RecordingDataModule": "module",
        "RecordingSource": "source",
        "RecordingWriter": "recording",
        "RecordingError": "recording",
        "Cache": "cache",
        "Index": "index",
        "open_index": "index",
        "WindowDataset": "dataset",
        "ClipAugment": "augment",
        "ReferenceAugmentations": "augment",
        "PublishedAugmentations": "augment",  # its former name
        "Report": "check",
    },
)

if TYPE_CHECKING:
    from bczoo.data.augment import ClipAugment as ClipAugment
    from bczoo.data.augment import PublishedAugmentations as PublishedAugmentations
    from bczoo.data.augment import ReferenceAugmentations as ReferenceAugmentations
    from bczoo.data.cache import Cache as Cache
    from bczoo.data.check import Report as Report
    from bczoo.data.dataset import WindowDataset as WindowDataset
    from bczoo.data.index import Index as Index
    from bczoo.data.index import open_index as open_index
    from bczoo.data.module import RecordingDataModule as RecordingDataModule
    from bczoo.data.recording import RecordingError as RecordingError
    from bczoo.data.recording import RecordingWriter as RecordingWriter
    from bczoo.data.source import RecordingSource as RecordingSource
