"""Instructions in words while the game runs: said now, embedded on the side, followed when ready.

Place in the pipeline: :mod:`bczoo.serve.server` hands over what clients and its stdin say. A text encoder may take
seconds, and the first time it may even be downloaded, so it runs in a thread of its own: until the new instruction is
ready the old one holds, and nobody waits.

Shape legend: E text width.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bczoo.models.policy import Policy
from bczoo.serve.wire import LONGEST_TEXT

MOST_EMBEDDINGS = 256  # that are remembered
CLEAR = "-"  # line on stdin that takes the instruction back
RETRY_S = 1.0  # between looks at a terminal that belongs to another program for now


@dataclass(eq=False)
class Instruction:
    """What one speaker wants.

    Args:
        said: the latest words; empty after they were taken back, None if there never were any.
        ready: whether anything that was said has come into force.
        embedding: (E,), what holds now; None for no instruction.
        say: is called with why words cannot be followed, each reason once in a row; if left out, ``problem`` keeps it
            until somebody takes it.
    """

    say: Callable[[str], Any] | None = None

    said: str | None = None
    ready: bool = False
    embedding: Tensor | None = None
    problem: str | None = None
    reported: str | None = None

    def take_problem(self) -> str | None:
        problem, self.problem = self.problem, None
        return problem

    def hold(self, embedding: Tensor | None) -> None:
        self.embedding, self.ready = embedding, True

    def fail(self, problem: str) -> None:
        if problem == self.reported:
            return
        self.reported = problem
        if self.say:
            self.say(problem)
        else:
            self.problem = problem


class Embedder:
    """Embeds what is said with the policy's text encoder, one text at a time, the newest of each speaker.

    Args:
        policy: whose text encoder it is.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.known: dict[str, Tensor] = {}
        self.waiting: dict[Instruction, None] = {}
        self.wake = asyncio.Event()

    def say(self, instruction: Instruction, text: str) -> None:
        """Take words in. They hold at once if they were embedded before."""
        if text == instruction.said:
            return
        instruction.said = text
        self.waiting.pop(instruction, None)
        if not text:
            instruction.hold(None)
        elif text in self.known:
            instruction.hold(self.known[text])
        elif why := self.policy.why_no_text:
            instruction.fail(f"the instruction is not followed: {why}")
        else:
            self.waiting[instruction] = None
            self.wake.set()

    def forget(self, instruction: Instruction) -> None:
        """The speaker has left."""
        self.waiting.pop(instruction, None)

    async def run(self) -> None:
        """Embed what waits, for ever."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.waiting:
                instruction = next(iter(self.waiting))
                del self.waiting[instruction]
                await self._follow(instruction, instruction.said or "")

    async def _follow(self, instruction: Instruction, text: str) -> None:
        try:
            embedding = self.known[text] if text in self.known else await in_daemon_thread(self.policy.embed, text)
        except Exception as error:
            instruction.fail(f"the instruction is not followed: {text[:80]!r} cannot be embedded ({error})")
            return
        if len(self.known) >= MOST_EMBEDDINGS:
            del self.known[next(iter(self.known))]
        self.known[text] = embedding
        if instruction.said == text:  # otherwise something newer was said meanwhile
            instruction.hold(embedding)


async def in_daemon_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function beside the loop, in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def report(result: Any, error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(result)

    def run() -> None:
        result, failed = None, None
        try:
            result = function(*arguments)
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(report, result, failed)

    threading.Thread(target=run, daemon=True).start()
    return await done


def follow_lines(fd: int, hear: Callable[[str], Any]) -> None:
    """Start to read lines from a file descriptor, as the reference server does from stdin.

    Args:
        fd: the file descriptor. Read without Python's buffers, whose lock would hang the end of the process.
        hear: called, in another thread, with every line that is not empty.
    """
    if hasattr(signal, "SIGTTIN") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background of a shell, reading would stop the process
    threading.Thread(target=_read_lines, args=(fd, hear), daemon=True).start()


def _read_lines(fd: int, hear: Callable[[str], Any]) -> None:
    rest = b""
    while True:
        try:
            some = os.read(fd, 4096)
        except OSError:
            if not os.isatty(fd):
                return
            time.sleep(RETRY_S)
            continue
        *lines, rest = (rest + some).split(b"\n")
        rest = rest[: 4 * LONGEST_TEXT]  # a line without end must not fill the memory
        if not some and rest:
            lines.append(rest)
        for line in lines:
            if text := line.decode(errors="replace").strip()[:LONGEST_TEXT]:
                hear(text)
        if not some:
            return
