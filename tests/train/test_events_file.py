"""What TensorBoard reads of a run."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

pytest.importorskip("tensorboardX")
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from bczoo.train.events_file import EventsFile
from bczoo.train.metrics_file import MetricsFile


def events_of(path):
    """The events of a file, whose checksums have to be right."""
    data, at, out = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        assert struct.unpack("<I", data[at + 8 : at + 12])[0] == masked_crc32c(data[at : at + 8])
        event = data[at + 12 : at + 12 + length]
        assert struct.unpack("<I", data[at + 12 + length : at + 16 + length])[0] == masked_crc32c(event)
        out.append(Event.FromString(event))
        at += length + 16
    return out


def scalars(path):
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events_of(path)[1:]]


def test_it_has_what_metrics_csv_has_at_the_same_steps(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.trainer = SimpleNamespace(global_step=7)
    events = EventsFile(metrics)
    events.log_metrics({"train/loss": 0.5, "epoch": 3}, step=6)
    events.finalize("success")
    assert events.path.parent.parent == tmp_path / "tensorboard"
    assert events_of(events.path)[0].file_version == "brain.Event:2"
    assert scalars(events.path) == [(7, {"train/loss": 0.5})]


def test_on_a_full_disk_rows_wait_and_nothing_is_half_written(tmp_path, monkeypatch):
    events = EventsFile(MetricsFile(tmp_path))
    events.log_metrics({"a": 1.0}, step=1)
    events.save()
    whole = events.path.read_bytes()
    events.log_metrics({"a": 2.0}, step=2)
    opened = type(events.path).open

    class Full:
        def __init__(self, *args):
            self.file = opened(*args)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:5])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(events.path), "open", Full)
        events.save()
    assert events.path.read_bytes() == whole
    events.save()
    assert scalars(events.path) == [(1, {"a": 1.0}), (2, {"a": 2.0})]
