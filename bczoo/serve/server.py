"""The server: frames of many games come in over sockets, one policy answers them all.

Place in the pipeline: :mod:`bczoo.serve.listen` opens the sockets, :mod:`bczoo.serve.connection` reads and writes, an
:class:`~bczoo.play.agent.Agent` plays, one slot of it for every client. One asyncio loop does all that waits; one
thread beside it steps the agent, so that the loop goes on reading while the policy computes; others resize frames, so
that nobody waits for the large frames of somebody else:

    connection --- read ---> resize ---> newest frame --+
    connection --- read ---> resize ---> newest frame --+--> one step for all that have a frame --> answers
    connection --- read ---> resize ---> newest frame --+

A client has one place for a frame that waits, and a newer frame takes it: what was there is dropped and counted. So a
slow policy plays the present, never a backlog, and memory does not grow. Whatever a client sends is its own trouble:
limits on size, time and unread answers end its connection, nobody else's. Who sends faster than the policy plays lets
the others go first.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.core.frames import resize
from bczoo.play.agent import Agent
from bczoo.play.latency import Durations, StageTimes
from bczoo.serve import wire
from bczoo.serve.connection import READ_BYTES, Connection, Counts, Limits, PendingBytes, Waiting
from bczoo.serve.instructions import CLEAR, Embedder, Instruction

HURRY = 0.5  # of a frame's time: who has had a turn since then lets others go first
REPORT_EVERY_S = 5.0  # of connections that never played


@dataclass(frozen=True)
class Totals:
    """What a server did in its life.

    Args:
        connections: how many there were.
        players: of them those that sent a frame that could be played.
        counts: of the frames of all of them.
        latency: by stage, in milliseconds; ``total`` from the arrival of a frame's last byte until its answer was
            written, ``wait`` from there until the step began, with the time to resize it.
    """

    connections: int
    players: int
    counts: Counts
    latency: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Turn:
    """One client's part in a step."""

    connection: Connection
    slot: int
    seed: int | None  # start the slot anew with this seed
    frame: Waiting
    embedding: Tensor | None


class Server:
    """Plays with one agent for all that connect.

    Args:
        agent: plays; it has one slot for every client at a time.
        seed: the random numbers of the n-th player, from 0, are those of an agent whose slot was reset
            with ``seed + n``.
        text: instruction of all clients that give none of their own.
        limits: what a client may ask.
        say: is called with a line for everything that happens.
    """

    def __init__(
        self,
        agent: Agent,
        seed: int = 0,
        text: str | None = None,
        limits: Limits | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        check_servable(agent)
        self.agent, self.seed, self.limits, self.say = agent, seed, limits or Limits(), say
        self.free_slots = set(range(agent.num_envs))
        self.connections: dict[Connection, None] = {}  # the oldest first
        self.accepted, self.players = 0, 0
        self.pending = PendingBytes(self.limits.pending_bytes)
        self.counts, self.times = Counts(), StageTimes()
        self.hurry_s = HURRY / agent.policy.input_spec.fps
        self.instruction = Instruction(say)
        self.embedder = Embedder(agent.policy)
        if text:
            self.embedder.known[text] = agent.policy.embed(text)
            self.embedder.say(self.instruction, text)
        self.wake, self.stopped = asyncio.Event(), asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        # one for every slot, because in a queue a client would wait for the frames of others
        self._resizers = ThreadPoolExecutor(agent.num_envs, "bczoo-resize")
        self._unplayed, self._reported_at = 0, -math.inf

    async def run(self, listening: Sequence[socket.socket]) -> Totals:
        """Serve until :meth:`stop`.

        Args:
            listening: sockets that clients connect to.
        """
        self.loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "bczoo-play") as thread, self._resizers:
            work: list[asyncio.Task[Any]] = []
            servers: list[asyncio.Server] = []
            try:
                await self.loop.run_in_executor(thread, self._warm_up)
                for one in listening:  # each a copy, because whoever opened it closes it
                    servers.append(await asyncio.start_server(self._connected, sock=one.dup(), limit=READ_BYTES // 2))
                work = [
                    asyncio.create_task(one) for one in (self._play(thread), self.embedder.run(), self.stopped.wait())
                ]
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # the first two end by an error only
            finally:
                for server in servers:
                    server.close()
                ending = [*work, *(c.task for c in self.connections if c.task is not None)]
                for task in ending:
                    task.cancel()
                await asyncio.gather(*ending, return_exceptions=True)
        self._report_unplayed()
        return Totals(self.accepted, self.players, self.counts, self.times.summary())

    def stop(self) -> None:
        """End :meth:`run`; to be called in the loop's thread."""
        self.stopped.set()

    def hear(self, line: str) -> None:
        """Take a line as the instruction of all that give none of their own; ``-`` takes it back."""
        text = "" if line == CLEAR else line
        self.say(f"instruction: {text}" if text else "no instruction")
        self.embedder.say(self.instruction, text)

    # connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self.accepted, reader, writer, self.limits, self.pending, self.wake.set)
        self.accepted += 1
        self._evict_pending()
        self.connections[connection] = None
        try:
            await self._serve(connection)
        except asyncio.CancelledError:  # by _evict_pending or the end of the server; asyncio would call it an error
            pass
        except OSError as error:
            connection.why = str(error)
        except Exception as error:  # of ours; the others play on
            connection.why = f"{type(error).__name__}: {error}"
            self.say(traceback.format_exc())
        finally:
            self._left(connection)

    def _evict_pending(self) -> None:
        if len(self.connections) < self.limits.connections:
            return
        oldest = next((c for c in self.connections if c.slot is None), None)
        if oldest is not None:
            self._evict(oldest, f"evicted for a new connection, {self.limits.connections} are allowed at once")

    def _evict(self, connection: Connection, why: str) -> None:
        connection.end(why)
        self._left(connection)

    def _left(self, connection: Connection) -> None:
        """Forget a client."""
        if connection.gone:
            return
        connection.gone = True
        connection.counts.dropped += (connection.waiting is not None) + connection.resizing + connection.in_step
        connection.waiting = None
        self.connections.pop(connection, None)
        self.embedder.forget(connection.instruction)
        if connection.slot is not None:
            self.free_slots.add(connection.slot)
        connection.close()
        self.counts.add(connection.counts)
        self._report_end(connection)

    def _report_end(self, connection: Connection) -> None:
        if connection.total is None:
            self._unplayed += 1
            if (connection.counts.frames or connection.why) and self._may_report():
                self._report_unplayed()
                self.say(f"client {connection.number} never played: {connection.why or connection.counts}")
            return
        ms = connection.total.summary()
        latency = " ".join(f"{p} {ms[p]:.1f}" for p in ("p50", "p95", "p99")) if ms["n"] else "none"
        why = f" ({connection.why})" if connection.why else ""
        self.say(f"client {connection.number} left{why}: {connection.counts}; latency in ms: {latency}")

    def _may_report(self) -> bool:
        now = time.monotonic()
        if now - self._reported_at < REPORT_EVERY_S:
            return False
        self._reported_at = now
        return True

    def _report_unplayed(self) -> None:
        if self._unplayed > 1:
            self.say(f"{self._unplayed - 1} other connections came and went without a frame that could be played")
        self._unplayed = 0

    # reading

    async def _serve(self, connection: Connection) -> None:
        try:
            while (payload := await connection.message()) is not None:
                await self._take_in(connection, payload, time.perf_counter())
                await asyncio.sleep(0)  # a flood of small messages must not keep the loop from the others
            await connection.idle.wait()  # who has only stopped sending still gets its answer
        except wire.FramingError as error:
            connection.counts.broken += 1
            await connection.turn_away(str(error))
        except NoSlotError as error:
            connection.counts.errors += 1
            await connection.turn_away(str(error), error.id)

    async def _take_in(self, connection: Connection, payload: bytes | bytearray, arrived: float) -> None:
        try:
            frame = wire.parse_frame(payload)
        except wire.FrameError as error:
            connection.counts.frames += 1
            connection.answer_error(error.id, str(error))
            return
        connection.counts.frames += 1
        if connection.slot is None:
            self._assign_slot(connection, frame.id)
        connection.heard = arrived
        pixels = await self._resized(connection, frame.pixels)
        if frame.text is not None:
            self.embedder.say(connection.instruction, frame.text)
        if connection.waiting is not None:
            connection.counts.dropped += 1
            connection.dropped += 1
        connection.waiting = Waiting(frame.id, pixels, arrived)
        connection.idle.clear()
        self.wake.set()

    async def _resized(self, connection: Connection, pixels: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) in the policy's size; the client's next message is not read before."""
        spec = self.agent.policy.input_spec
        if pixels.shape[:2] == spec.shape:
            return pixels
        assert self.loop is not None
        connection.resizing = True  # stays so if the client is forgotten meanwhile, and the frame counts as dropped
        pixels = await self.loop.run_in_executor(self._resizers, resize, pixels, spec.frame_size, spec.resize)
        connection.resizing = False
        return pixels

    def _assign_slot(self, connection: Connection, id: int) -> None:
        """Give a client a slot of the agent, on its first frame."""
        if not self.free_slots:
            self._evict_idle()
        if not self.free_slots:
            raise NoSlotError(
                id,
                f"all {self.agent.num_envs} slots are taken; wait for one, or start the server with more --clients",
            )
        connection.slot = min(self.free_slots)
        connection.seed = self.seed + self.players
        connection.total = Durations()
        self.free_slots.remove(connection.slot)
        self.say(f"client {connection.number} plays, seed {connection.seed}")
        self.players += 1

    def _evict_idle(self) -> None:
        """Evict the player that has been idle longest, if that is too long."""
        idlest = min((c for c in self.connections if c.slot is not None), key=lambda c: c.heard)
        if time.perf_counter() - idlest.heard > self.limits.idle_s:
            self._evict(idlest, f"sent no frame for {self.limits.idle_s:g} s and was evicted for a new player")

    # playing

    async def _play(self, thread: ThreadPoolExecutor) -> None:
        """Step whoever has a frame, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self.wake.wait()
            self.wake.clear()
            while turns := self._turns():
                begun = time.perf_counter()
                results = await loop.run_in_executor(thread, self._step, turns)
                for turn, result in zip(turns, results, strict=True):
                    self._finish(turn, result, begun)

    def _turns(self) -> list[Turn]:
        """One turn for every client that has a frame and reads its answers, by ascending slot.

        Those that have just had one are left out while others wait.
        """
        turns, now = [], time.perf_counter()
        ready = [c for c in self.connections if c.waiting and not c.blocked]
        patient = [c for c in ready if now - c.stepped >= self.hurry_s]
        for connection in sorted(patient or ready, key=_slot):
            assert connection.waiting is not None
            speaker = connection.instruction if connection.instruction.ready else self.instruction
            turn = Turn(connection, _slot(connection), connection.seed, connection.waiting, speaker.embedding)
            connection.waiting, connection.seed, connection.in_step, connection.stepped = None, None, True, now
            turns.append(turn)
        return turns

    def _step(self, turns: Sequence[Turn]) -> list[Any]:
        """In the playing thread: every turn's ``inference.Action``, or the exception that there is instead."""
        try:
            for turn in turns:
                if turn.seed is not None:
                    self.agent.reset(turn.slot, turn.seed)
            decisions = self.agent.step_many(
                [t.slot for t in turns], [t.frame.pixels for t in turns], [t.embedding for t in turns]
            )
            return [wire.action(t.frame.id, d.values) for t, d in zip(turns, decisions, strict=True)]
        except Exception as error:
            if len(turns) == 1:
                return [error]
            return [self._step([turn])[0] for turn in turns]  # one client's frame must not fail the others

    def _finish(self, turn: Turn, result: Any, begun: float) -> None:
        connection = turn.connection
        if connection.gone:
            return
        connection.in_step = False
        if isinstance(result, Exception):
            self._report_failure(turn, result)
        else:
            done = time.perf_counter()
            if connection.answer(result, connection.instruction.take_problem()):
                connection.counts.answers += 1
                self._time(turn, begun, done)
            else:
                connection.counts.dropped += 1
        if connection.waiting is None:
            connection.idle.set()

    def _time(self, turn: Turn, begun: float, done: float) -> None:
        """Note how long a frame took that has just been answered."""
        arrived, now = turn.frame.arrived, time.perf_counter()
        assert turn.connection.total is not None
        turn.connection.total.add(now - arrived)
        for stage, seconds in (("wait", begun - arrived), ("send", now - done), ("total", now - arrived)):
            self.times.add(stage, seconds)

    def _report_failure(self, turn: Turn, error: Exception) -> None:
        connection, id = turn.connection, turn.frame.id
        if not connection.failed:  # a policy that always fails must not fill the disk
            connection.failed = True
            trace = "".join(traceback.format_exception(error))
            self.say(f"client {connection.number}: frame {id} failed, later ones are only counted\n{trace}")
        connection.answer_error(id, f"the policy failed: {type(error).__name__}: {error}")

    def _warm_up(self) -> None:
        """A first step takes longer than others; no game shall wait for it."""
        shape = self.agent.policy.input_spec.shape
        self.agent.step_many([0], [np.zeros((*shape, 3), np.uint8)], [None])
        self.agent.times = self.times


class NoSlotError(Exception):
    """All slots of the agent are taken.

    Args:
        id: of the frame that cannot be played.
        reason: sent to the client.
    """

    def __init__(self, id: int, reason: str) -> None:
        super().__init__(reason)
        self.id = id


def check_servable(agent: Agent) -> None:
    """Raise if the policy does what the messages cannot carry."""
    if more := sorted({g.name for g in agent.space.groups} - set(wire.GROUPS)):
        raise UserError(
            f"the protocol carries {', '.join(wire.GROUPS)}; the policy's action space {agent.space.name!r} also has "
            f"{', '.join(more)}, so it cannot be served"
        )


def _slot(connection: Connection) -> int:
    assert connection.slot is not None
    return connection.slot
