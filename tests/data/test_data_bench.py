"""What ``bczoo bench data`` tells of small recordings."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import SIZE

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data import bench
from bczoo.data.bench import DECODE, PIXELS, DataReport, data
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index


def test_parts_workers_and_the_ratio_are_told(root, capsys):
    report = data(str(root), size=SIZE, window=6, batch=2, workers=1, windows=8)
    told = capsys.readouterr().out
    assert report.parts[DECODE] > 0 and report.bare > 0 and report.augment > 0
    assert list(report.workers) == [0, 1] and all(report.workers.values())
    assert "8 windows of 6 steps, batches of 2, frames of 48 from 48x48.mp4 (8)" in told
    assert f"{100 * report.bare / report.seconds:.0f} % of bare decoding" in told


def test_the_longest_part_is_what_to_change():
    parts = {bench.OPEN: 0.001, DECODE: 0.002, PIXELS: 0.006, bench.REST: 0.001}
    lines = DataReport(200, parts, bare=0.004, augment=0.1, workers={0: 10.0, 2: 18.0}).lines()
    assert lines[-1].startswith("most time goes into colour and resize: store videos in the policy's size")
    assert "one core reads 100.0 windows or 20000 frames a second: 40 % of bare decoding (4.00 ms a window)" in lines
    assert "| 2       |      18.0 |     3600 |  1.80 |" in "\n".join(lines)


def test_stages_read_what_the_dataset_reads(root, monkeypatch):
    stages = bench._Windows(WindowDataset(open_index(root, ActionSpace.keyboard_mouse()), 6, SIZE))
    keys, shown = [(0, 3), (2, 26)], []
    monkeypatch.setattr(bench, "read_into", lambda out, path, numbers, **_: shown.append((len(out), list(numbers))))
    stages.pixels(keys)
    assert shown == [(6, [3, 4, 5, 6, 7, 8]), (6, [26, 27, 28, 29, 30, 31])]
    converted = []
    monkeypatch.setattr(bench, "VideoReformatter", lambda: _Counting(converted))
    stages.bare(keys)
    assert len(converted) == 12


class _Counting:
    def __init__(self, converted):
        self.converted = converted

    def reformat(self, frame, **_):
        self.converted.append(frame.pts)
        return self

    def to_ndarray(self):
        return np.empty(0)


def test_too_few_windows_are_told(root):
    with pytest.raises(UserError, match="too few for two batches of 8"):
        data(str(root), size=SIZE, window=200, batch=8, workers=0, windows=16)
    with pytest.raises(UserError, match="windows"):
        data(str(root), batch=4, windows=4)


def test_rates_of_a_busy_machine_and_workers_that_do_not_help_are_told():
    def said(workers):
        parts = {DECODE: 0.08, PIXELS: 0.02}
        return "\n".join(DataReport(steps=10, parts=parts, bare=0.07, augment=0.1, workers=workers).lines())

    assert "idle machine" in said({0: 5.0, 1: 6.0}) and "did not help" not in said({0: 5.0, 1: 6.0})
    assert "idle machine" not in said({0: 9.0, 1: 8.0, 2: 7.0}) and "did not help" in said({0: 9.0, 1: 8.0, 2: 7.0})
    assert "did not help" not in said({0: 9.0})
