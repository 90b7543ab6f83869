"""One client's connection: messages in, answers out, and the limits on what it may do.

Place in the pipeline: :class:`bczoo.serve.server.Server` makes one for every client that connects, reads its messages
and writes its answers through it.

Shape legend: H, W height and width of a frame in pixels; frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bczoo.play.latency import Durations
from bczoo.serve import wire
from bczoo.serve.instructions import Instruction

READ_BYTES = 256 * 1024  # taken from a socket at once
LINGER_S = 2.0  # for a client that is turned away to read why
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}  # a machine that vanished is gone in 2 minutes


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server.

    Args:
        message_bytes: largest message.
        message_s: longest time from the first byte of a message to its last, in seconds. Between messages there is
            no limit, because games pause.
        pending_bytes: for the unfinished messages of all connections together that have not played yet.
        unread_bytes: of answers that a client has not read; while there are more, its frames are dropped.
        unread_s: longest time in seconds that an answer, however short, may wait in the server for its client to read.
            What the system buffers on the way to it does not count.
        connections: at once. One more evicts the oldest that has never played.
        idle_s: longest time in seconds that a player may send no frame and keep its slot when somebody else wants it.
    """

    message_bytes: int = wire.LARGEST_MESSAGE
    message_s: float = 10.0
    pending_bytes: int = 4 * wire.LARGEST_MESSAGE
    unread_bytes: int = 64 * 1024
    unread_s: float = 10.0
    connections: int = 256
    idle_s: float = 30.0


@dataclass
class Counts:
    """What became of frames. Every frame is one of ``answers``, ``dropped`` and ``errors`` in the end.

    Args:
        frames: that came in, whole messages.
        answers: frames that the policy acted on.
        dropped: frames that were superseded, or whose client did not read or was gone.
        errors: frames that were answered with an error.
        broken: messages that ended their connection.
    """

    frames: int = 0
    answers: int = 0
    dropped: int = 0
    errors: int = 0
    broken: int = 0

    def add(self, other: Counts) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, f.name)} {f.name}" for f in fields(self))


@dataclass
class Waiting:
    """A frame on its way through the server; ``arrived`` in seconds of ``time.perf_counter``."""

    id: int
    pixels: np.ndarray  # (H, W, 3), resized to the policy's size
    arrived: float


@dataclass
class PendingBytes:
    """Bytes of unfinished messages from all connections that have not played yet.

    Args:
        largest: how many there may be.
        held: how many there are.
    """

    largest: int
    held: int = 0


class Connection:
    """One client, from its connection to its end.

    Args:
        number: of the connection, from 0.
        reader: of its bytes.
        writer: of its bytes.
        limits: what it may ask.
        pending: shared by all connections.
        resume: called when the client reads its answers again.

    Attributes:
        slot: of the agent; None until there is a frame that can be played.
        seed: of the slot, until it has begun.
        heard: when the latest frame came, in seconds of ``time.perf_counter``.
        resizing: a frame is being resized.
        waiting: the newest frame that can be played.
        stepped: when the latest step with a frame of it began, in seconds of ``time.perf_counter``.
        in_step: a frame is being played.
        idle: set while no frame waits or is played.
        blocked: too many answers are unread.
        finished: nothing more will be said to it.
        gone: it is forgotten.
        dropped: frames since the last answer.
        failed: a step of this client has failed, and it was said.
        total: times from the arrival of a frame to its answer; None until it plays.
        why: it ended, if not by itself.
    """

    def __init__(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits,
        pending: PendingBytes,
        resume: Callable[[], Any],
    ) -> None:
        self.number, self.reader, self.writer, self.limits = number, reader, writer, limits
        self.pending, self.resume = pending, resume
        self.task = asyncio.current_task()
        self.slot: int | None = None
        self.seed: int | None = None
        self.waiting: Waiting | None = None
        self.heard = self.stepped = -math.inf
        self.resizing = self.in_step = self.blocked = self.finished = self.gone = self.failed = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.dropped = 0
        self.counts, self.instruction = Counts(), Instruction()
        self.total: Durations | None = None
        self.why = ""
        self._held = 0  # bytes of an unfinished message
        self._patience: asyncio.Task[None] | None = None
        self._written = 0  # bytes of answers
        writer.transport.set_write_buffer_limits(high=0)  # drain() is to wait until all is sent
        _keep_alive(writer.get_extra_info("socket"))

    # reading

    async def message(self) -> bytearray | None:
        """The next payload; None when the client stops sending.

        Raises:
            FramingError: what comes is no message, or not in time.
        """
        if not (first := await self.reader.read(1)):
            return None
        got, length = bytearray(first), -1
        try:
            async with asyncio.timeout(self.limits.message_s):
                await self._read_on(got, wire.LENGTH.size)
                length = wire.payload_length(bytes(got), self.limits.message_bytes)
                got.clear()
                await self._read_on(got, length)
        except TimeoutError as error:
            raise wire.FramingError(
                f"{_part(got, length)} came within {self.limits.message_s:g} s, the rest did not"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise wire.FramingError(f"the connection ended after {_part(got, length)}") from error
        finally:
            self._hold(0)
        return got

    async def _read_on(self, got: bytearray, length: int) -> None:
        """Read until there are ``length`` bytes. Memory follows what came, never what was announced."""
        while len(got) < length:
            some = await self.reader.read(min(length - len(got), READ_BYTES))
            if not some:
                raise EOFError
            got += some
            self._hold(len(got))

    def _hold(self, count: int) -> None:
        """Account for the bytes of an unfinished message, unless it is a player's."""
        if self.slot is not None:
            count = 0
        if count > self._held and self.pending.held + count - self._held > self.pending.largest:
            raise wire.FramingError("too many connections send their first message at once; try again")
        self.pending.held += count - self._held
        self._held = count

    # answering

    def answer(self, action: Any, error: str | None = None) -> bool:
        """Write an answer, unless the client leaves too many unread or is gone; returns whether it was written.

        Args:
            action: of ``wire.action``.
            error: what went wrong.
        """
        transport = self.writer.transport
        if self.blocked or self.finished or transport.is_closing():
            self.dropped += 1
            return False
        message = wire.action_message(action, error, self.dropped)
        self.writer.write(message)
        self._written += len(message)
        self.dropped = 0
        self.blocked = transport.get_write_buffer_size() > self.limits.unread_bytes
        if transport.get_write_buffer_size() and (self._patience is None or self._patience.done()):
            self._patience = asyncio.create_task(self._until_read())
        return True

    def answer_error(self, id: int, error: str) -> None:
        """Answer a frame with an error."""
        self.counts.errors += 1
        self.answer(wire.action(id), error)

    async def _until_read(self) -> None:
        """Wait until the client has read its answers; end the connection if one of them waits too long."""
        transport, sent = self.writer.transport, False
        while not sent:
            written = self._written
            try:
                async with asyncio.timeout(self.limits.unread_s):
                    await self.writer.drain()
                sent = True
            except TimeoutError:
                if self._written - transport.get_write_buffer_size() < written:
                    self.blocked = True  # nothing more is written, and nothing is left for it to read
                    self.end(f"did not read its answers for {self.limits.unread_s:g} s")
                    return
            except OSError:  # it is gone, which its reader sees too
                return
        self.blocked = False
        self.resume()

    # ending

    async def turn_away(self, why: str, id: int | None = None) -> None:
        """Close after the answers to earlier frames, and give the client time to read them.

        Closing over bytes of its own that were not read could throw the answers away. Every message to a client
        answers a frame, and reference clients read nothing but its id and action: without a frame nothing is said.

        Args:
            why: for the log, and the error of the last answer.
            id: of the frame that the last answer is to; None if there is none.
        """
        self.why = why
        await self.idle.wait()
        if id is not None:
            self.answer(wire.action(id), why)
        self.finished = True
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self.reader.read(READ_BYTES):
                    pass

    def end(self, why: str) -> None:
        """Stop what its task does, from another task."""
        self.why = why
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Let go of all that it holds."""
        self._hold(0)
        if self._patience is not None:
            self._patience.cancel()
        self.writer.close()
        if self.blocked:
            self.writer.transport.abort()
        elif self.writer.transport.get_write_buffer_size():  # closing waits until it has read
            asyncio.get_running_loop().call_later(LINGER_S, self.writer.transport.abort)


def _part(got: bytearray, length: int) -> str:
    return f"{len(got)} of {wire.LENGTH.size} bytes of a length" if length < 0 else f"{len(got)} of {length} bytes"


def _keep_alive(connected: Any) -> None:
    """Let the system find out when the machine of a TCP client vanishes."""
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it may be gone already
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
