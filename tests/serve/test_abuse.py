"""What a network sends: whatever one client does, the others play on as if they were alone, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from serving import IMPATIENT, SEED, UNREAD, alone, answers, frames, opinionated, play, receive_all, serving, until

from bczoo.core.errors import UserError
from bczoo.serve import connection as connection_module
from bczoo.serve import server as server_module
from bczoo.serve import wire
from bczoo.serve.client import Client
from bczoo.serve.connection import Limits, PendingBytes
from bczoo.serve.listen import resolve_tcp

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURE = np.zeros((8, 8, 3), np.uint8)
GOOD = wire.frame_message(PICTURE, 5)
KILLED = """
import os, select, socket, sys
one = socket.socket(socket.AF_UNIX)
one.connect(sys.argv[1])
one.sendall(sys.stdin.buffer.read())
select.select([one], [], [], 30)  # the answer to the first frame is there, and stays unread
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def policy():
    return opinionated()


def ending(served, data, half_close=False):
    """Send bytes; what the server says in its log when it closes, having answered nothing."""
    number = served.server.accepted
    with served.raw() as one:
        one.sendall(data)
        if half_close:
            one.shutdown(socket.SHUT_WR)
        assert receive_all(one) == b""  # any message would be taken for the action of a frame
    return why(served, number)


def why(served, number):
    """Why a client was closed, as the log says."""
    told = re.compile(rf"client {number} (never played: |left \()(.*?)($|\): \d+ frames)")
    return until(lambda: [match[2] for line in served.lines if (match := told.match(line))])[0]


@pytest.fixture
def all_are_reported(monkeypatch):
    """Of connections that never played, not only some."""
    monkeypatch.setattr(server_module, "REPORT_EVERY_S", 0.0)


def test_lengths_of_four_gigabytes_and_other_rubbish_are_logged_and_closed(policy, all_are_reported):
    pictures = frames(6)
    with serving(policy, limits=IMPATIENT) as served, served.client() as client:
        got = play(client, pictures[:2])
        assert "4294967295 bytes is announced, the largest allowed is 33554432" in ending(served, b"\xff" * 500)
        assert "1414745936 bytes is announced" in ending(served, b"POST / HTTP/1.1\r\n\r\n")
        assert ending(served, b"\x03\x00\x00\x00\xff\xff\xff") == "a message of 3 bytes is no Frame in protobuf"
        assert ending(served, bytes(4)) == "a message of 0 bytes holds nothing of a frame"
        assert got + play(client, pictures[2:]) == alone(policy, SEED, pictures)
    assert served.totals.counts.broken == 4


def test_a_client_in_python_is_told_where_to_look(policy):
    with serving(policy) as served, served.client() as client:
        play(client, [PICTURE])
        client.connection.sendall(b"\xff" * 4)
        with pytest.raises(UserError, match=r"the server has closed the connection; .* its output says why"):
            client.receive(30)
        assert "4294967295 bytes is announced" in why(served, 0)


def test_over_tcp_the_last_answer_arrives_although_much_was_not_read(policy):
    """Closing over unread bytes would reset the connection, and with it the answer."""
    with serving(policy) as served, socket.create_connection(resolve_tcp(served.tcp)[1]) as one:
        one.settimeout(30)
        one.sendall(GOOD + b"\xff" * 4 + bytes(100_000))
        one.sendall(bytes(100_000))
        assert [a.id for a in answers(receive_all(one))] == [5]
        one.sendall(bytes(1000))  # not reset: the server still takes what comes
        with Client(tcp=served.tcp) as client:
            assert play(client, frames(3)) == alone(policy, SEED + 1, frames(3))


def test_frames_before_rubbish_are_answered_before_it_is(policy):
    with serving(policy) as served, served.client() as client:
        for _ in range(5):
            with served.raw() as one:
                one.sendall(GOOD + b"\xff" * 10)
                (played,) = answers(receive_all(one))
                assert (played.id, played.error) == (5, "")
        assert play(client, frames(3)) == alone(policy, SEED + 5, frames(3))


def test_half_a_message_is_given_a_time_and_no_more(policy, all_are_reported):
    pictures = frames(6)
    with serving(policy, limits=IMPATIENT) as served, served.client() as client:
        got = play(client, pictures[:2])
        assert ending(served, GOOD[:2]) == "2 of 4 bytes of a length came within 0.5 s, the rest did not"
        assert ending(served, GOOD[:50]) == f"46 of {len(GOOD) - 4} bytes came within 0.5 s, the rest did not"
        assert ending(served, GOOD[:50], True) == f"the connection ended after 46 of {len(GOOD) - 4} bytes"
        # the pause before this was longer than the limit, which is for messages, not between them
        assert got + play(client, pictures[2:]) == alone(policy, SEED, pictures)


def test_a_message_in_small_pieces_is_a_message(policy):
    with serving(policy) as served, served.raw() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for byte in GOOD + GOOD:
            one.sendall(bytes([byte]))
        one.shutdown(socket.SHUT_WR)
        got = answers(receive_all(one))
    # who has only stopped sending still gets the answers
    assert got[-1].id == 5 and len(got) + sum(a.dropped for a in got) + served.totals.counts.dropped >= 2


def test_a_client_that_is_killed_during_a_frame_leaves_its_slot(policy):
    """Not by close, but by an end of its process; the kernel then closes for it, in the midst of the frame."""
    pictures = frames(6)
    big = wire.frame_message(frames(1, size=300)[0], 1)
    with serving(policy, clients=2) as served, served.client() as client:
        got = play(client, pictures[:3])
        for sent in (GOOD + big[:1000], GOOD + big[: len(big) - 1]):
            child = subprocess.run([sys.executable, "-c", KILLED, served.path], input=sent, timeout=60)
            assert child.returncode == -9
        until(lambda: len(served.server.connections) == 1 and len(served.server.free_slots) == 1)
        assert got + play(client, pictures[3:]) == alone(policy, SEED, pictures)
    assert served.totals.counts.broken == 2


def test_a_client_that_never_reads_is_dropped_and_ended(policy):
    pictures = frames(8)
    with serving(policy, limits=UNREAD) as served, served.client() as client, served.raw() as deaf:
        got = play(client, pictures[:4])
        until(lambda: len(served.server.connections) == 2)
        served.in_loop(served.narrow)
        deaf.setblocking(False)
        buffered = []

        def flood():
            with contextlib.suppress(BlockingIOError):
                for _ in range(50):
                    deaf.send(GOOD)
            for c in list(served.server.connections):
                buffered.append(c.writer.transport.get_write_buffer_size())
            return False  # until the server has closed the connection, and sending fails

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            until(flood)
        assert 100 < max(buffered) < 100 + 100  # bytes: the limit, and the answer that went over it
        until(lambda: len(served.server.free_slots) == 2)
        assert got + play(client, pictures[4:]) == alone(policy, SEED, pictures)
    left = next(line for line in served.lines if "did not read" in line)
    assert left.startswith("client 1 left (did not read its answers for 1 s): ")
    counts = served.totals.counts
    assert counts.frames == counts.answers + counts.dropped + counts.errors and counts.dropped > 0


def test_few_answers_that_are_never_read_do_not_keep_a_slot(policy):
    """Far fewer than the limit, and the client sends on: only time tells that it does not read."""
    pictures = frames(3)
    with serving(policy, clients=1, limits=Limits(unread_s=0.3)) as served, served.raw() as deaf:
        connection = until(lambda: next(iter(served.server.connections), None))
        served.in_loop(served.narrow)
        transport = connection.writer.transport
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # ended between two looks at the buffer
            while not transport.get_write_buffer_size():
                deaf.sendall(GOOD)
        assert why(served, 0) == "did not read its answers for 0.3 s"
        with served.client() as next_one:
            assert play(next_one, pictures) == alone(policy, SEED + 1, pictures)


class Reading:
    """A writer whose other end reads all but the newest answer a few times, and then nothing more."""

    def __init__(self, times):
        self.times, self.unsent, self.transport = times, 0, self

    def write(self, data):
        self.unsent += len(data)

    async def drain(self):
        if self.times:
            self.times -= 1
            self.unsent = 0
            self.connection.answer(wire.action(1))
        await asyncio.sleep(1000)

    def get_write_buffer_size(self):
        return self.unsent

    def is_closing(self):
        return False

    def set_write_buffer_limits(self, high):
        assert high == 0

    def get_extra_info(self, name):
        return None


def test_who_reads_slowly_but_on_keeps_its_slot():
    """Something is always unread, but no answer for long."""

    async def serve():
        writer = Reading(times=4)
        limits = Limits(unread_s=0.01)
        writer.connection = connection_module.Connection(0, None, writer, limits, PendingBytes(1), lambda: None)
        writer.connection.answer(wire.action(0))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return writer

    writer = asyncio.run(serve())
    assert writer.times == 0 and writer.connection.why == "did not read its answers for 0.01 s"


def test_bad_frames_that_are_never_read_about_are_bounded_too(policy):
    bad = bytes.fromhex("06000000 0802 1002 2063")
    with serving(policy, limits=UNREAD) as served, served.raw() as deaf:
        until(lambda: served.server.connections)
        served.in_loop(served.narrow)
        transport, buffered = next(iter(served.server.connections)).writer.transport, []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                deaf.sendall(bad * 20)
                buffered.append(transport.get_write_buffer_size())
        until(lambda: not served.server.connections)
    assert 100 < max(buffered) < 100 + 150
    assert served.totals.counts.errors == served.totals.counts.frames > 20


def test_answers_that_nobody_reads_do_not_keep_a_connection_open(policy, monkeypatch):
    """Fewer than the limit, left by a client that will send no more but does not go."""
    monkeypatch.setattr(connection_module, "LINGER_S", 0.1)
    with serving(policy) as served, served.raw() as deaf:
        until(lambda: served.server.connections)
        served.in_loop(served.narrow)
        transport = next(iter(served.server.connections)).writer.transport
        while not transport.get_write_buffer_size():
            deaf.sendall(GOOD)
        deaf.shutdown(socket.SHUT_WR)
        until(lambda: transport.get_extra_info("socket").fileno() == -1)


def test_clients_are_read_in_turn(policy, monkeypatch):
    """One that sends thousands of small messages at once does not keep the loop from the others."""
    with serving(policy) as served, served.raw() as a, served.raw() as b:
        until(lambda: len(served.server.connections) == 2)
        order, take_in = [], served.server._take_in
        monkeypatch.setattr(served.server, "_take_in", lambda c, *rest: (order.append(c.number), take_in(c, *rest))[1])
        small = bytes.fromhex("02000000 0801") * 1000  # frames of no height

        def while_the_loop_is_busy():
            a.sendall(small)
            b.sendall(small)

        served.in_loop(while_the_loop_is_busy)
        until(lambda: len(order) == 2000)
    assert set(order[:100]) == {0, 1}


def test_who_vanishes_without_a_word_is_found_out(policy):
    with serving(policy) as served, Client(tcp=served.tcp) as client:
        play(client, [PICTURE])
        connected = next(iter(served.server.connections)).writer.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_client_that_reads_late_plays_on(policy):
    with serving(policy, limits=Limits(unread_bytes=256)) as served, served.client() as late:
        connection = until(lambda: next(iter(served.server.connections), None))
        served.in_loop(served.narrow)
        step_many, steps = served.server.agent.step_many, []
        served.server.agent.step_many = lambda *a: (steps.append(1), step_many(*a))[1]
        sent = 0
        while not connection.blocked:
            late.send(PICTURE)
            sent += 1
        for _ in range(20):
            late.send(PICTURE)
        last = late.send(PICTURE)
        until(lambda: connection.counts.frames == sent + 21)
        read = dropped = 0
        while (answer := late.receive(30)).id != last:
            read += 1
            dropped += answer.dropped
        assert read + 1 + dropped + answer.dropped == sent + 21
        play(late, frames(3))
    assert len(steps) == served.totals.counts.answers  # nothing was played that could not be told


def test_memory_follows_what_came_and_not_what_was_announced(policy):
    announced = struct.pack("<I", 32 * 2**20) + b"x" * 1000
    with serving(policy, limits=Limits(message_s=30)) as served, contextlib.ExitStack() as open_sockets:
        tracemalloc.start()
        try:
            for _ in range(50):
                open_sockets.enter_context(served.raw()).sendall(announced)
            until(lambda: served.server.pending.held == 50_000)
            assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
        finally:
            tracemalloc.stop()
    assert served.server.pending.held == 0


def test_pending_share_a_limit_and_players_are_not_under_it(policy, all_are_reported):
    pictures = frames(6, size=100)
    with serving(policy, limits=Limits(pending_bytes=40_000)) as served, served.client() as client:
        got = play(client, [PICTURE])
        with served.raw() as a, served.raw() as b:
            a.sendall(wire.frame_message(pictures[0], 1)[:20_000])
            until(lambda: served.server.pending.held == 19_996)
            b.sendall(wire.frame_message(pictures[0], 1))
            assert receive_all(b) == b""
            assert why(served, 2) == "too many connections send their first message at once; try again"
            assert got + play(client, pictures) == alone(policy, SEED, [PICTURE, *pictures])
        until(lambda: served.server.pending.held == 0)
        with served.client() as c:
            play(c, pictures)


def test_connections_that_never_play_are_evicted(policy, all_are_reported):
    pictures = frames(4)
    with serving(policy, limits=Limits(connections=5)) as served, served.client() as client:
        got = play(client, pictures[:2])
        idle = [served.raw() for _ in range(10)]
        until(lambda: served.server.accepted == 11)
        assert receive_all(idle[0]) == b""
        assert why(served, 1) == "evicted for a new connection, 5 are allowed at once"
        assert len(served.server.connections) == 5
        with served.client() as late:
            play(late, pictures)
        assert got + play(client, pictures[2:]) == alone(policy, SEED, pictures)
        with served.raw() as lingering, served.raw() as evicting:
            lingering.sendall(b"\xff" * 4)
            assert lingering.recv(4096) == b""
            evicting.sendall(GOOD)
            several = [served.raw() for _ in range(6)]
            assert answers(receive_all(lingering)) == []
            assert answers(evicting.recv(4096))[0].id == 5
        for one in idle + several:
            one.close()


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_thousand_connects_leave_nothing_behind(policy):
    pictures = frames(20)
    threads = threading.active_count()
    with serving(policy, limits=Limits(connections=20)) as served, served.client() as client:
        got = play(client, pictures[:1])
        files, running = open_files(), threading.active_count()
        for n in range(1000):
            with served.raw() as one:
                if n % 4 == 1:
                    one.sendall(GOOD[:30])
                elif n % 4 == 2:
                    one.sendall(GOOD)
                elif n % 4 == 3:
                    one.sendall(b"\xff" * 10)
            if n % 50 == 0:
                got += play(client, [pictures[len(got)]]) if len(got) < 20 else []
        until(lambda: served.server.accepted == 1001 and len(served.server.connections) == 1)
        until(lambda: open_files() <= files)
        assert threading.active_count() <= running + 3  # one for each place resizes
        got += play(client, pictures[len(got) :])
        assert got == alone(policy, SEED, pictures)
        assert len(served.lines) < 600  # 250 players come and go, the others are told by their number
    assert threading.active_count() == threads
    assert served.totals.connections == 1001


def abuse(rng, one):
    """One connection's worth of it."""
    kind = rng.randrange(6)
    if kind == 0:
        one.sendall(rng.randbytes(rng.randrange(3000)))
    elif kind == 1:
        one.sendall(struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1, 2**25 + 1])) + rng.randbytes(20))
    elif kind == 2:
        one.sendall(GOOD[: rng.randrange(len(GOOD))])
    else:
        data = bytearray(GOOD * rng.randrange(1, 4))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data)) if kind < 5 else rng.randrange(20)
            data[place] = rng.randrange(256)
        one.sendall(data)
    if rng.random() < 0.3:
        one.shutdown(socket.SHUT_WR)
    if rng.random() < 0.3:
        one.settimeout(0.01)
        one.recv(100)


def test_fuzzed_connections_hurt_nobody(policy):
    """400 connections of rubbish with a fixed seed; after every batch a client plays as if it were alone."""
    rng = random.Random(20)
    limits = Limits(message_s=3, connections=64, message_bytes=2**25)
    with serving(policy, clients=8, limits=limits) as served, served.client() as steady:
        steady_pictures, got = frames(11, 3), []
        got += play(steady, steady_pictures[:1])
        for batch in range(10):
            held = []
            for _ in range(40):
                one = served.raw()
                with contextlib.suppress(OSError):
                    abuse(rng, one)
                if rng.random() < 0.5:
                    one.close()
                else:
                    held.append(one)
            got += play(steady, [steady_pictures[1 + batch]])
            for one in held:
                one.close()
            until(lambda: len(served.server.connections) == 1)
            seed = served.next_seed()
            with served.client() as fresh:
                assert play(fresh, frames(3, batch)) == alone(policy, seed, frames(3, batch))
        assert got == alone(policy, SEED, steady_pictures)
    counts = served.totals.counts
    assert counts.frames == counts.answers + counts.dropped + counts.errors
    assert min(counts.errors, counts.broken, counts.answers) > 20
    assert not any("Traceback" in line for line in served.lines)
