"""Progress: a bar on a terminal, few plain lines elsewhere."""

import io

import pytest

from bczoo.core import progress
from bczoo.core.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(clock):
    out = io.StringIO()
    with Progress(total=100, desc="recording", unit="ep", file=out) as bar:
        for i in range(100):
            bar.update()
            bar.set_postfix(steps=i)
            clock[0] += 1
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and "\r" not in out.getvalue()
    assert lines[0].startswith("recording: 31 of 100 ep") and lines[-1].startswith("recording: 100 of 100 ep")
    assert lines[-1].endswith("steps=99")


def test_short_stages_that_leave_nothing_write_nothing(clock):
    out = io.StringIO()
    with Progress(total=3, desc="a", leave=False, file=out) as bar:
        bar.update(3)
    assert out.getvalue() == ""


def test_a_new_description_has_one_colon(clock):
    out = io.StringIO()
    with Progress(total=3, file=out) as bar:
        bar.set_description("Epoch 2")
        bar.update(3)
    assert out.getvalue().startswith("Epoch 2: 3 of 3")


def test_a_terminal_gets_a_bar():
    out = Terminal()
    with Progress(total=2, desc="playing", file=out) as bar:
        bar.update(2)
    assert "\r" in out.getvalue() and "100%|" in out.getvalue()
