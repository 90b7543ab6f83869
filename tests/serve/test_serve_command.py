"""``bczoo serve`` as a process: it starts, hears its stdin, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
from serving import frames, opinionated, play, until

import bczoo.serve.commands as commands
from bczoo.core.devices import play_threads
from bczoo.core.errors import UserError
from bczoo.serve.client import Client
from bczoo.serve.instructions import follow_lines
from bczoo.serve.wire import LONGEST_TEXT


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opinionated().save_pretrained("policy")
    return tmp_path


def test_it_plays_until_ctrl_c_and_leaves_nothing(here):
    words = ["serve", "policy", "--socket", "s", "--tcp", "127.0.0.1:0", "--clients", "2"]
    with open("told", "w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "bczoo", *words], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        )
    try:

        def told():
            with open("told") as f:
                return f.read()

        until(lambda: "listening: --socket s, --tcp 127.0.0.1:" in told() or server.poll() is not None, 120)
        address = told().split("--tcp ")[1].split()[0]
        with Client("s") as client, Client(tcp=address) as other:
            play(client, frames(2))
            play(other, frames(2))
            server.stdin.write(b"go\n\n-\n")
            server.stdin.flush()
            until(lambda: "no instruction" in told())
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    assert not os.path.lexists("s")
    lines = told().splitlines()
    expected = r"Frames of any size \(resized to 64 x 64\), 20 a second; up to 2 clients, whose past takes [\d.]+ MB"
    assert re.match(expected, lines[1])
    assert lines.index("instruction: go") < lines.index("no instruction")
    assert any("the instruction is not followed: this policy has no text_encoder" in line for line in lines)
    assert "2 connections, 2 played: 4 frames, 4 answers, 0 dropped, 0 errors, 0 broken" in lines
    assert any(line.startswith("| total |") for line in lines)
    assert "Traceback" not in told()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_one_signal_stops_its_echo_does_nothing_and_a_later_one_what_it_always_does(number, monkeypatch):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)

    async def main():
        stopped = asyncio.Event()
        commands.stopping_on_signals(stopped.set)
        assert signal.getsignal(number) != usual
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 30)
        os.kill(os.getpid(), number)  # would end the process
        monkeypatch.setattr(commands, "ECHO_S", 0.0)
        async with asyncio.timeout(30):
            while signal.getsignal(number) != usual:
                await asyncio.sleep(0.01)
        return signal.getsignal(number)

    loop = asyncio.new_event_loop()  # a runner of its own would handle Ctrl-C itself
    try:
        assert loop.run_until_complete(main()) == usual
    finally:
        loop.close()
        signal.signal(number, before)


def test_lines_are_heard_as_they_come_however_they_are_cut():
    heard, (read, write) = [], os.pipe()
    follow_lines(read, heard.append)
    for some in (b"go", b" left\nst", b"op\n\n  \n", b"\xff\n", b"x" * 100_000, b"\nlast"):
        os.write(write, some)
    os.close(write)
    until(lambda: heard[-1:] == ["last"])
    os.close(read)
    assert heard == ["go left", "stop", "\ufffd", "x" * LONGEST_TEXT, "last"]


def test_a_reader_of_its_lines_that_leaves_does_not_end_it(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        commands.say("is anybody there?")
        with contextlib.suppress(OSError):
            nobody.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_what_cannot_be_is_told_before_anything_is_opened(here, monkeypatch):
    monkeypatch.setattr(commands, "hear_stdin", lambda hear: None)
    with pytest.raises(UserError, match="clients must be at least 1, got 0"):
        commands.serve("policy", clients=0)
    with pytest.raises(UserError, match="no text_encoder"):
        commands.serve("policy", socket="s", text="go")
    with pytest.raises(UserError, match="no authentication"):
        commands.serve("policy", socket="s", tcp="0.0.0.0:0")
    with pytest.raises(UserError, match="temperature must be above 0"):
        commands.serve("policy", socket="s", temperature=0)
    assert not os.path.lexists("s")


def test_without_an_address_it_is_the_reference_one(here, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "_serve", lambda *a: seen.append((a[1], a[2], a[0].agent.num_envs, a[0].seed)))
    monkeypatch.setattr(commands.asyncio, "run", lambda _: commands.Totals(0, 0, "", {}))
    commands.serve("policy", clients=3, seed=5)
    commands.serve("policy", tcp="127.0.0.1:0")
    commands.serve("policy", tcp="127.0.0.1:0", socket="s")
    assert seen == [("/tmp/uds.recap", None, 3, 5), (None, "127.0.0.1:0", 4, 0), ("s", "127.0.0.1:0", 4, 0)]


def test_a_small_policy_plays_with_one_thread(one_thread):
    import torch

    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(2500, 2500, device="meta")
    torch.set_num_threads(2)
    assert play_threads(large) == 2
    assert play_threads(large, 3) == 3
    assert play_threads(small, 2) == 2
    assert play_threads(small) == torch.get_num_threads() == 1
    with pytest.raises(UserError, match="threads must be at least 1"):
        play_threads(small, 0)
