"""Ctrl-C in the middle of a recording, at a moment that is the same in every run."""

from __future__ import annotations

import contextlib

import pytest
from tiny_game import CatchExpert


@contextlib.contextmanager
def interrupted(monkeypatch, after: int = 80):
    """Ctrl-C comes when the experts of all games have been asked so many times; it has to reach the caller."""
    asked = []

    def act(self, frame, info, ask=CatchExpert.act):
        asked.append(1)
        if len(asked) == after:
            raise KeyboardInterrupt
        return ask(self, frame, info)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CatchExpert, "act", act)
        yield
