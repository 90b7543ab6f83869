"""``bczoo serve``: a policy plays games that run elsewhere and send their frames.

Place in the pipeline: loads a policy from anywhere (:mod:`bczoo.play.open`), opens the sockets
(:mod:`bczoo.serve.listen`) and runs a :class:`~bczoo.serve.server.Server` until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket as sockets
import sys
from collections.abc import Callable

from bczoo.core.devices import Precision
from bczoo.core.errors import UserError
from bczoo.core.frames import named_size
from bczoo.play.latency import latency_table
from bczoo.play.open import open_policy
from bczoo.serve.instructions import follow_lines
from bczoo.serve.listen import REFERENCE_PATH, address_option, listen_on_tcp, listen_on_unix
from bczoo.serve.server import Server, Totals

ECHO_S = 1.0  # wrappers such as timeout and process groups may deliver the same signal twice


def say(line: str) -> None:
    """Print a line at once; a reader of stdout that has gone must not end the games."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def serve(
    policy: str,
    socket: str | None = None,
    tcp: str | None = None,
    public: bool = False,
    clients: int = 4,
    text: str | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    dtype: Precision | None = None,
    revision: str | None = None,
) -> Totals:
    """Let a policy play games that connect to a socket, until Ctrl-C.

    A line on stdin becomes the instruction of all clients that send none of their own; a line with only - takes it
    back.

    Args:
        policy: an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        socket: path of a Unix socket, which only you can open; /tmp/uds.recap if --tcp is left out too.
        tcp: host:port such as 127.0.0.1:8089 to listen on; port 0 takes a free one.
        public: let --tcp listen where other machines can reach it. The protocol has no authentication.
        clients: how many can play at a time. Each has a memory of its own, which is taken at the start.
        text: instruction to the policy; the one it was fine-tuned under if left out.
        temperature: of the policy's sampling.
        top_p: sample only from the most likely choices that together reach this mass.
        greedy: take the most likely action instead of sampling.
        seed: of the random numbers of the first client; the next ones count up from it.
        threads: processor threads; if left out, one for a small policy and torch's choice for others.
        device: where the policy runs, cpu or cuda.
        dtype: numbers that the policy computes with; those of its weights if left out.
        revision: branch, tag or commit on the Hub.
    """
    if clients < 1:
        raise UserError(f"clients must be at least 1, got {clients}")
    opened = open_policy(policy, revision, device, dtype, text, temperature, top_p, say)
    loaded = opened.for_play(threads)
    agent = loaded.agent(clients, temperature=temperature, top_p=top_p, greedy=greedy)
    server = Server(agent, seed, opened.text, say=say)
    if text:
        say(f"instruction: {text}")
    if socket is None and tcp is None:
        socket = REFERENCE_PATH
    spec = loaded.input_spec
    expected = (
        f"Frames of any size (resized to {named_size(spec.frame_size)}), {spec.fps:g} a second; "
        f"up to {clients} clients, whose past takes {agent.session.memory_bytes / 1e6:.1f} MB. Ctrl-C ends."
    )
    totals = asyncio.run(_serve(server, socket, tcp, public, expected))
    say(f"\n{totals.connections} connections, {totals.players} played: {totals.counts}")
    if totals.latency:
        say(latency_table(totals.latency))
    return totals


async def _serve(server: Server, socket: str | None, tcp: str | None, public: bool, expected: str) -> Totals:
    with contextlib.ExitStack() as open_sockets:
        stopping_on_signals(server.stop)
        listening: list[sockets.socket] = []
        if socket is not None:
            listening.append(open_sockets.enter_context(listen_on_unix(socket)))
        if tcp is not None:
            listening.append(open_sockets.enter_context(listen_on_tcp(tcp, public)))
        hear_stdin(server.hear)
        say(f"listening: {', '.join(address_option(one) for one in listening)}\n{expected}")
        return await server.run(listening)


def stopping_on_signals(stop: Callable[[], None]) -> None:
    """Let Ctrl-C and SIGTERM end the server in order; one that comes a second later ends the process as usual."""
    loop = asyncio.get_running_loop()

    def as_usual() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def first() -> None:
        loop.call_later(ECHO_S, as_usual)
        stop()

    with contextlib.suppress(NotImplementedError):  # on Windows Ctrl-C cancels the loop's task instead
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, first)


def hear_stdin(hear: Callable[[str], None]) -> None:
    """Hand every line on stdin to the loop."""
    loop = asyncio.get_running_loop()

    def pass_on(line: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(hear, line)

    with contextlib.suppress(AttributeError, ValueError, OSError):  # no stdin, or a closed one
        follow_lines(sys.stdin.fileno(), pass_on)
