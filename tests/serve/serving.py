"""A server in this process, on a thread of its own, and what tests need around it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tiny
import torch

from bczoo.serve import wire
from bczoo.serve.client import Client
from bczoo.serve.connection import Limits
from bczoo.serve.listen import address_option, listen_on_tcp, listen_on_unix
from bczoo.serve.server import Server

SEED = 7


class Served:
    """A running server: ``server``, its socket's ``path``, and the ``lines`` that it said."""

    def __init__(self, policy, path, clients, text, limits, **options):
        self.path, self.lines, self.totals = str(path), [], None
        self.server = Server(policy.agent(clients, **options), SEED, text, limits, self.lines.append)

    def client(self) -> Client:
        return Client(self.path)

    def raw(self) -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(30)
        one.connect(self.path)
        return one

    def in_loop(self, function, *arguments):
        """Call in the server's thread and wait for the result."""

        async def call():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self.server.loop).result(30)

    def narrow(self):
        """Let the kernel buffer next to nothing for the clients that are there."""
        for connection in self.server.connections:
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    def next_seed(self) -> int:
        return SEED + self.in_loop(lambda: self.server.players)


@contextlib.contextmanager
def serving(policy=None, clients=3, text=None, limits=None, **options):
    """Serve a tiny policy over a Unix socket and TCP; the server is stopped and must have ended in order."""
    policy = policy or opinionated()
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        unix = opened.enter_context(listen_on_unix(str(Path(folder) / "s")))
        tcp = opened.enter_context(listen_on_tcp("127.0.0.1:0"))
        served = Served(policy, Path(folder) / "s", clients, text, limits, **options)
        served.tcp = address_option(tcp).removeprefix("--tcp ")
        failed = []

        def run():
            try:
                served.totals = asyncio.run(served.server.run([unix, tcp]))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: served.server.agent.times is not None or failed)  # the step that warms up is over
        try:
            yield served
        finally:
            if not failed:
                served.server.loop.call_soon_threadsafe(served.server.stop)
            thread.join(30)
            assert not thread.is_alive() and not failed, failed


def until(true, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)
    return value


def frames(n, seed=0, size=tiny.SIZE):
    """Pictures of sixteen colours each, which differ for a policy as noise would not."""
    colours = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)
    return [c.repeat(-(-size // 4), 0).repeat(-(-size // 4), 1)[:size, :size] for c in colours]


def opinionated(**options):
    """A tiny policy to which pictures, texts and the past matter, as they hardly do as it is initialised."""
    policy = tiny.tiny_policy(**options)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not name.startswith("encoder.backbone"):
                parameter.mul_(2)
            if name.startswith("decoder.heads"):
                parameter.mul_(4)
            if name.startswith("encoder.project"):
                parameter.mul_(10)
    return policy


def wired(decision) -> dict:
    """A decision as it arrives: through the message and back."""
    values = decision.values
    return {
        "keys": sorted(set(values["keys"])),
        "mouse_buttons": sorted(set(values["mouse_buttons"])),
        "mouse_dx": values["mouse_dx"],
        "mouse_dy": values["mouse_dy"],
    }


def alone(policy, seed, pictures, texts=None, **options):
    """What the policy does in a game of its own."""
    agent = policy.agent(**options)
    agent.reset(0, seed)
    return [wired(agent.step(p, t)) for p, t in zip(pictures, texts or [None] * len(pictures), strict=True)]


def play(client, pictures, text=None):
    """Play frames one after the other; the values of the answers."""
    out = []
    for n, picture in enumerate(pictures):
        id = client.send(picture, text=text if n == 0 else None)
        answer = client.receive(30)
        assert answer is not None and answer.id == id and answer.error is None, answer
        out.append(answer.values)
    return out


def receive_all(one: socket.socket) -> bytes:
    """All that a server sends until it closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while some := one.recv(65536):
            got += some
    return got


def answers(data: bytes) -> list:
    """The messages in bytes."""
    out = []
    while data:
        length = wire.payload_length(data[:4])
        out.append(wire.inference.Action.FromString(data[4 : 4 + length]))
        data = data[4 + length :]
    return out


IMPATIENT = Limits(message_s=0.5)
UNREAD = Limits(unread_s=1.0, unread_bytes=100)
