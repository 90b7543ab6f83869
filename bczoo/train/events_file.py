"""The numbers of a run as TensorBoard reads them, beside ``metrics.csv``.

Place in the pipeline: a logger that every ``bczoo fit`` has. Each start of a training has a folder of its own, so that
``tensorboard --logdir runs`` draws a resumed run, or a second one in the same folder, as another curve::

    <run>/tensorboard/<time of the start>/events.out.tfevents.<run>

Writers of TensorBoard and tensorboardX write in a thread of their own, which ends or hangs a training on a full disk.
This one takes their formats, and waits for room as :class:`bczoo.train.metrics_file.MetricsFile` does.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from bczoo.train.metrics_file import MetricsFile


def can_write_events() -> bool:
    """Whether the package with TensorBoard's formats is there."""
    return find_spec("tensorboardX") is not None


class EventsFile(Logger):
    """Writes scalars and pictures for TensorBoard, at the steps that ``metrics.csv`` has.

    Args:
        metrics: the file beside it, which also tells the user of a full disk.
    """

    def __init__(self, metrics: MetricsFile) -> None:
        super().__init__()
        self.metrics = metrics
        started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.path = metrics.folder / "tensorboard" / started / f"events.out.tfevents.{os.getpid()}"
        self._waiting = _record({"file_version": "brain.Event:2"})  # bytes that are not in the file
        self._size = 0  # of the file

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def version(self) -> str:
        return self.path.parent.name

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = [{"tag": name, "simple_value": float(value)} for name, value in metrics.items() if name != "epoch"]
        self._waiting += _record({"summary": {"value": values}, "step": self.metrics.step_of(step)})

    @rank_zero_only
    def log_image(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, a whole PNG file."""
        value = {"tag": name, "image": {"encoded_image_string": png}}
        self._waiting += _record({"summary": {"value": [value]}, "step": self.metrics.step_of(step)})

    @rank_zero_only
    def save(self) -> None:
        """Append what waits."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(self._waiting)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)  # half a record would spoil the next
            return
        self._size += len(self._waiting)
        self._waiting = b""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _record(event: dict[str, Any]) -> bytes:
    """An event as TensorBoard's files hold it: its length and the event, each followed by a checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = Event(wall_time=time.time(), **event).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
