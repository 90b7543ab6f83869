"""Fixtures of the tests of exported folders."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import tiny
from exported import (
    lived_in,
)

from bczoo.data.recording import RecordingWriter


@pytest.fixture
def offline(monkeypatch):
    """Nothing here has a reason to look at the network; what tries is caught even if its error is swallowed."""
    tried = []

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            tried.append(address)
            raise OSError("the network is not for these tests")
        return super(socket.socket, self).connect(address)

    def look_up(host, *rest, **more):
        tried.append(host)
        raise OSError("the network is not for these tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    assert not tried


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain policy and its folder."""
    policy = lived_in(tiny.tiny_policy())
    return policy, policy.save_pretrained(tmp_path_factory.mktemp("plain") / "policy")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    for i in range(4):
        with RecordingWriter(root / f"rec_{i}", size=96) as writer:
            for t in range(40):
                frame = np.full((96, 96, 3), (40 * i + 4 * t) % 256, np.uint8)
                writer.add(frame, user={"keys": ["w"] if t % 3 else [], "mouse_dx": t % 7 - 3})
    return root


@pytest.fixture
def folder(plain, tmp_path, monkeypatch):
    """A good folder to spoil, two levels down, and a working directory beside it."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    return Path(shutil.copytree(plain[1], tmp_path / "deep" / "policy"))
