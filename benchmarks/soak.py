"""Does the server last? Many frames through several clients, while another one misbehaves all along.

    python benchmarks/soak.py                               # 100,000 frames of checkpoints/doom
    OMP_NUM_THREADS=1 python benchmarks/soak.py --frames 1000000 --clients 8

Starts ``bczoo serve`` as a process of its own and plays over a Unix socket, every client as fast as it is answered. The
bad client sends random bytes, frames that do not fit, half messages and lengths of 4 GB, never reads its answers,
connects and leaves at once, over and over. Prints what became of the frames, their latency as the clients saw it, and
the server's resident memory and open files as they went on.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bczoo.play.latency import StageTimes
from bczoo.serve.client import Client
from bczoo.serve.wire import frame_message

SAMPLED = (0.01, 0.25, 0.5, 0.75, 1.0)  # shares of the frames at which the server is looked at
HELD = 100  # connections that the bad client keeps open
UNREAD_S = 12.0  # longer than the server lets a client not read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", default="checkpoints/doom")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--size", type=int, default=192, help="pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, log = f"{folder}/soak.sock", Path(folder) / "log"
        # one place more than there are players: the bad client plays too
        command = [sys.executable, "-m", "bczoo", "serve", options.policy, "--socket", path]
        with log.open("w") as out:
            server = subprocess.Popen(
                [*command, "--clients", str(options.clients + 1)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            soak(server, path, options)
        finally:
            server.send_signal(signal.SIGINT)
            status = server.wait(60)
            lines = log.read_text().splitlines()
            print(f"\nthe server ended with status {status}, having said {len(lines)} lines, at last:")
            print("\n".join(lines[-12:]))


def soak(server: subprocess.Popen[bytes], path: str, options: argparse.Namespace) -> None:
    wait_for(path, server)
    play = Play(path, options.frames, options.size)
    bad = Bad(path)
    threads = [threading.Thread(target=play.run, args=(n,), daemon=True) for n in range(options.clients)]
    threads += [threading.Thread(target=bad.send_rubbish, daemon=True), threading.Thread(target=bad.flood, daemon=True)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    print("| frames | resident memory, MB | open files | threads |\n|---:|---:|---:|---:|")
    for share in SAMPLED:
        while play.answered + play.errors < share * options.frames and any(t.is_alive() for t in threads[:-2]):
            time.sleep(0.05)
        print(f"| {play.answered + play.errors} | {look_at(server.pid)} |", flush=True)
    for thread in threads[:-2]:
        thread.join()
    seconds = time.perf_counter() - started
    bad.stop = True
    time.sleep(1)
    print(
        f"\n{play.sent} frames of {options.size} x {options.size} through {options.clients} clients in {seconds:.0f} s "
        f"({play.sent / seconds:.0f} a second): {play.answered} answered, {play.dropped} dropped, "
        f"{play.errors} errors, {play.broken} connections lost"
    )
    print(
        f"the bad client: {bad.attacks} attacks, {bad.flooded} frames sent without reading, {bad.thrown_out} times out"
    )
    print(play.times.table())


class Play:
    """Clients as they should be."""

    def __init__(self, path: str, frames: int, size: int) -> None:
        self.path, self.frames = path, frames
        self.pictures = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8)
        self.lock, self.times = threading.Lock(), StageTimes()
        self.sent = self.answered = self.dropped = self.errors = self.broken = 0

    def run(self, number: int) -> None:
        with Client(self.path) as client:
            while True:
                with self.lock:
                    if self.sent == self.frames:
                        return
                    self.sent += 1
                started = time.perf_counter()
                try:
                    id = client.send(self.pictures[(number + client._next_id) % len(self.pictures)])
                    answer = client.receive(30)
                except OSError:
                    answer = None
                with self.lock:
                    self.times.add("answer", time.perf_counter() - started)
                    if answer is None:
                        self.broken += 1
                        return
                    self.errors += answer.error is not None or answer.id != id
                    self.answered += answer.error is None and answer.id == id
                    self.dropped += answer.dropped


class Bad:
    """A client as it should not be, over and over."""

    def __init__(self, path: str) -> None:
        self.path, self.stop = path, False
        self.attacks = self.flooded = self.thrown_out = 0
        self.rng = random.Random(0)
        self.good = frame_message(np.zeros((64, 64, 3), np.uint8), 1)

    def send_rubbish(self) -> None:
        kinds = [
            lambda: self.rng.randbytes(self.rng.randrange(1, 5000)),
            lambda: struct.pack("<I", 0xFFFFFFFF) + b"x" * 100,
            lambda: self.good[: self.rng.randrange(1, len(self.good))],
            lambda: struct.pack("<I", 30 * 2**20) + b"x" * 1000,
            lambda: self.good[:4] + self.rng.randbytes(len(self.good) - 4),
            lambda: frame_message(np.zeros((64, 64, 3), np.uint8), 1, "x" * 20_000),
            lambda: struct.pack("<I", 6) + b"\x08\x05\x10\x05\x20\x07",
            lambda: b"",
        ]
        held: collections.deque[socket.socket] = collections.deque()
        while not self.stop:
            for kind in kinds:
                self.attacks += 1
                one = socket.socket(socket.AF_UNIX)
                held.append(one)
                if len(held) > HELD:
                    held.popleft().close()
                try:
                    one.settimeout(0.2)
                    one.connect(self.path)
                    one.sendall(kind())
                    if self.rng.random() < 0.3:
                        one.close()
                    elif self.rng.random() < 0.3:
                        one.recv(4096)
                except OSError:
                    pass
                time.sleep(0.02)

    def flood(self) -> None:
        """Play without ever reading, until the server ends it."""
        while not self.stop:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(UNREAD_S)
                try:
                    s.connect(self.path)
                    while not self.stop:
                        s.sendall(self.good)
                        self.flooded += 1
                        time.sleep(0.002)
                except OSError:
                    self.thrown_out += 1


def wait_for(path: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        if server.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                return
        except OSError:
            time.sleep(0.1)


def look_at(pid: int) -> str:
    """Resident memory, open files and threads of a process, on Linux."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) / 1e3
    return f"{memory:.1f} | {len(os.listdir(f'/proc/{pid}/fd'))} | {status['Threads'].strip()}"


if __name__ == "__main__":
    main()
