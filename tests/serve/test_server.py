"""The server plays every client as if it were alone, and answers every frame that is not superseded."""

from __future__ import annotations

import logging
import math
import threading

import numpy as np
import pytest
import torch
from serving import SEED, alone, frames, opinionated, play, serving, until, wired

from bczoo.core.errors import UserError
from bczoo.core.frames import resize
from bczoo.nn.text import TextEncoder
from bczoo.serve import server as server_module
from bczoo.serve.connection import Limits
from bczoo.serve.server import Server

pytestmark = pytest.mark.usefixtures("one_thread")


def test_these_tests_would_notice_another_picture_a_past_or_another_seed():
    policy, pictures, others = opinionated(), frames(10), frames(10, 1)
    right = alone(policy, SEED, pictures)

    def differing(got):
        return sum(a != b for a, b in zip(got, right, strict=True))

    assert differing(alone(policy, SEED, others)) > 5
    assert differing(alone(policy, SEED, [others[0], *pictures[1:]])) > 3
    assert differing(alone(policy, SEED + 1, pictures)) > 5


class Words(TextEncoder):
    """Says what it was asked for, and can be held up or fail."""

    def __init__(self) -> None:
        self.asked, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, texts):
        self.asked += texts
        assert self.go.wait(30)
        if "fail" in texts[0]:
            raise RuntimeError("no such word")
        generator = torch.Generator().manual_seed(sum(texts[0].encode()))
        return torch.randn(len(texts), 16, generator=generator) * 5


class Gate:
    """Lets the steps of an agent through one at a time."""

    def __init__(self, agent) -> None:
        self.step_many, self.calls = agent.step_many, []
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        agent.step_many = self

    def __call__(self, rows, pictures, texts):
        self.calls.append(list(rows))
        self.entered.release()
        assert self.open.acquire(timeout=30)
        return self.step_many(rows, pictures, texts)


def test_a_client_is_played_as_the_policy_plays_alone():
    policy, pictures = opinionated(), frames(12)
    with serving(policy) as served, served.client() as client:
        assert play(client, pictures) == alone(policy, SEED, pictures)


def test_interleaved_clients_get_what_each_would_get_alone():
    policy = opinionated()
    pictures = [frames(10, seed) for seed in range(3)]
    with serving(policy) as served:
        clients = [served.client() for _ in range(3)]
        got = [[], [], []]
        for n, client in enumerate(clients):  # who comes first is the first player
            got[n] += play(client, pictures[n][:1])
        for t in range(1, 10):
            for client, own in zip(clients, pictures, strict=True):
                client.send(own[t])
            for client, values in zip(clients, got, strict=True):
                values.append(client.receive(30).values)
        for client in clients:
            client.close()
    for n in range(3):
        assert got[n] == alone(policy, SEED + n, pictures[n])


def test_frames_that_wait_at_the_same_time_are_one_step():
    with serving() as served, served.client() as a, served.client() as b:
        play(a, frames(1))
        play(b, frames(1))
        served.server.hurry_s = 0
        gate = Gate(served.server.agent)
        a.send(frames(1)[0])
        assert gate.entered.acquire(timeout=30)
        for client in (a, b):
            client.send(frames(1)[0])
        until(lambda: sum(c.waiting is not None for c in list(served.server.connections)) == 2)
        gate.open.release(2)
        assert (a.receive(30).id, a.receive(30).id, b.receive(30).id) == (1, 2, 1)
        assert gate.calls == [[0], [0, 1]]
        gate.open.release(9)


def test_who_has_just_had_a_turn_lets_others_go_first():
    policy, pictures = opinionated(), frames(3)
    with serving(policy) as served, served.client() as hasty, served.client() as b:
        got = play(hasty, pictures[:1])
        play(b, pictures[:1])
        served.server.hurry_s = math.inf
        connections = list(served.server.connections)
        gate = Gate(served.server.agent)
        hasty.send(pictures[1])
        assert gate.entered.acquire(timeout=30)
        connections[1].stepped = -math.inf  # long ago
        hasty.send(pictures[2])
        b.send(pictures[1])
        until(lambda: all(c.waiting for c in connections))
        gate.open.release(9)
        got += [hasty.receive(30).values, hasty.receive(30).values]
        assert b.receive(30).error is None
    assert gate.calls == [[0], [1], [0]]  # and alone it is not held up
    assert got == alone(policy, SEED, pictures)


class SlowResize:
    """Holds up the resizing of frames of 100 x 100 pixels."""

    def __init__(self, monkeypatch) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(server_module, "resize", self)

    def __call__(self, picture, *options):
        if picture.shape[0] == 100:
            self.entered.release()
            assert self.open.acquire(timeout=30)
        return resize(picture, *options)


def test_nobody_waits_for_the_frames_of_others_to_be_resized(monkeypatch):
    policy, large, others = opinionated(), frames(3, size=100), frames(6, size=90)
    slow = SlowResize(monkeypatch)
    with serving(policy, clients=2) as served, served.client() as a, served.client() as b:
        for picture in large:
            a.send(picture)
        assert slow.entered.acquire(timeout=30)
        steps, step_many = [], served.server.agent.step_many
        served.server.agent.step_many = lambda *call: (steps.append(call), step_many(*call))[1]
        assert play(b, others) == alone(policy, SEED + 1, others)
        gate = Gate(served.server.agent)
        slow.open.release()
        assert gate.entered.acquire(timeout=30)
        slow.open.release(9)
        until(lambda: next(iter(served.server.connections)).counts.dropped == 1)  # the second, for the third
        gate.open.release(9)
        got = [a.receive(30), a.receive(30)]
    assert [(answer.id, answer.dropped) for answer in got] == [(0, 1), (2, 0)]
    assert [answer.values for answer in got] == alone(policy, SEED, [large[0], large[2]])
    size = policy.input_spec.frame_size
    assert {p.shape for _, pictures, _ in steps for p in pictures} == {(size, size, 3)}
    assert str(served.totals.counts) == "9 frames, 8 answers, 1 dropped, 0 errors, 0 broken"


def test_frames_that_are_resized_when_the_server_ends_are_counted(monkeypatch):
    slow = SlowResize(monkeypatch)
    with serving() as served, served.client() as client:
        client.send(frames(1, size=100)[0])
        assert slow.entered.acquire(timeout=30)
        served.in_loop(served.server.stop)
        until(lambda: not served.server.connections)
        slow.open.release(9)
    assert str(served.totals.counts) == "1 frames, 0 answers, 1 dropped, 0 errors, 0 broken"


def test_the_newest_frame_wins_and_those_before_it_are_counted():
    policy, pictures = opinionated(), frames(7)
    with serving(policy) as served, served.client() as client:
        gate = Gate(served.server.agent)
        client.send(pictures[0])
        assert gate.entered.acquire(timeout=30)
        for picture in pictures[1:6]:
            client.send(picture)
        until(lambda: next(iter(served.server.connections)).counts.frames == 6)
        gate.open.release(9)
        first, last = client.receive(30), client.receive(30)
        client.send(pictures[6])
        after = client.receive(30)
    assert [(a.id, a.dropped, a.error) for a in (first, last, after)] == [(0, 4, None), (5, 0, None), (6, 0, None)]
    played = [pictures[n] for n in (0, 5, 6)]
    assert [a.values for a in (first, last, after)] == alone(policy, SEED, played)
    assert str(served.totals.counts) == "7 frames, 3 answers, 4 dropped, 0 errors, 0 broken"


def test_frames_of_any_size_are_resized_as_in_training():
    policy = opinionated()
    pictures = [frames(1, n, size)[0][:, : size - n] for n, size in enumerate((64, 300, 5, 1 + 9, 65))]
    with serving(policy) as served, served.client() as client:
        assert play(client, pictures) == alone(policy, SEED, pictures)


def test_a_new_connection_is_a_new_game():
    """The same row, but nothing of what was seen, and draws of its own."""
    policy, pictures = opinionated(), frames(6)
    with serving(policy, clients=1) as served:
        for n in range(3):
            with served.client() as client:
                assert play(client, pictures) == alone(policy, SEED + n, pictures)
            until(lambda: not served.server.connections)
    assert (served.totals.connections, served.totals.players) == (3, 3)


def test_one_player_too_many_is_told_and_those_who_play_go_on():
    policy, pictures = opinionated(), frames(4)
    with serving(policy, clients=1) as served, served.client() as first:
        got = play(first, pictures[:2])
        with served.client() as second:
            second.send(pictures[0], id=9)
            answer = second.receive(30)
            assert answer.id == 9 and "all 1 slots are taken" in answer.error and "--clients" in answer.error
            with pytest.raises(UserError, match="the server has closed the connection"):
                second.receive(30)
        assert got + play(first, pictures[2:]) == alone(policy, SEED, pictures)
        first.close()
        until(lambda: served.server.free_slots)
        with served.client() as third:
            play(third, pictures)


def test_the_player_that_has_been_idle_longest_gives_way_to_a_new_one():
    policy, pictures = opinionated(), frames(4)
    with serving(policy, clients=2, limits=Limits(idle_s=1000)) as served, served.client() as a, served.client() as b:
        play(a, pictures[:1])
        got = play(b, pictures[:2])
        for connection, seconds in zip(list(served.server.connections), (1300, 1200), strict=True):
            connection.heard -= seconds
        with served.client() as c:
            assert play(c, pictures) == alone(policy, SEED + 2, pictures)
            with pytest.raises(UserError, match="the server has closed the connection"):
                a.receive(30)
            assert got + play(b, pictures[2:]) == alone(policy, SEED + 1, pictures)
            with served.client() as d:  # by now nobody is idle
                d.send(pictures[0])
                assert "all 2 slots are taken" in d.receive(30).error
    assert any(line.startswith("client 0 left (sent no frame for 1000 s") for line in served.lines)


def test_a_bad_frame_is_answered_and_the_game_goes_on():
    policy, pictures = opinionated(), frames(4)
    with serving(policy) as served, served.client() as client:
        got = play(client, pictures[:2])
        client.connection.sendall(bytes.fromhex("08000000 0802 1002 1a00 2063"))
        bad = client.receive(30)
        assert (bad.id, bad.values["keys"], bad.values["mouse_dx"]) == (99, [], 0)
        assert bad.error == "data has 0 bytes, but 2 x 2 pixels in RGB are 12 bytes"
        assert got + play(client, pictures[2:]) == alone(policy, SEED, pictures)
    assert str(served.totals.counts) == "5 frames, 4 answers, 0 dropped, 1 errors, 0 broken"


def test_a_failing_step_is_its_clients_trouble_alone(caplog):
    policy = opinionated()
    marked = np.full_like(frames(1)[0], 77)
    with serving(policy) as served, served.client() as a, served.client() as b:
        agent = served.server.agent
        step_many = agent.step_many

        def failing(rows, pictures, texts):
            if any(np.array_equal(p, marked) for p in pictures):
                raise RuntimeError("the marked frame")
            return step_many(rows, pictures, texts)

        agent.step_many = failing
        served.server.hurry_s = 0
        got = [play(a, frames(1, 1)), play(b, frames(1, 2))]
        gate = Gate(agent)
        a.send(frames(1, 1)[0])
        assert gate.entered.acquire(timeout=30)
        a.send(marked, id=50)
        b.send(frames(2, 2)[1])
        until(lambda: sum(c.waiting is not None for c in list(served.server.connections)) == 2)
        gate.open.release(99)
        a.receive(30)
        failed, other = a.receive(30), b.receive(30)
        assert (failed.id, failed.values["keys"], failed.error) == (
            50,
            [],
            "the policy failed: RuntimeError: the marked frame",
        )
        assert other.error is None
        assert got[1] + [other.values] == alone(policy, SEED + 1, frames(2, 2))
        assert [0, 1] in gate.calls and gate.calls[-2:] == [[0], [1]]
        play(a, frames(3))
        a.send(marked)
        assert a.receive(30).error
    traces = [line for line in served.lines if "Traceback" in line]
    assert len(traces) == 1 and "the marked frame" in traces[0]  # the second time it is only counted
    assert served.totals.counts.errors == 2 and not caplog.records


def test_a_policy_that_decides_what_cannot_be_sent_is_an_error_not_the_end():
    with serving() as served, served.client() as client:
        step_many = served.server.agent.step_many

        def absurd(*arguments):
            decisions = step_many(*arguments)
            decisions[0].values["mouse_dx"] = 2**40
            return decisions

        served.server.agent.step_many = absurd
        client.send(frames(1)[0])
        assert "the policy failed: ValueError" in client.receive(30).error
        served.server.agent.step_many = step_many
        play(client, frames(2))


def test_what_happened_is_told_at_the_end():
    with serving() as served:
        with served.client() as client:
            play(client, frames(5))
        until(lambda: not served.server.connections)
        assert served.lines[0] == f"client 0 plays, seed {SEED}"
        assert served.lines[1].startswith("client 0 left: 5 frames, 5 answers, 0 dropped, 0 errors, 0 broken; latency")
    stages = served.totals.latency
    assert list(stages) == ["resize", "encode", "backbone", "decode", "sample", "send", "wait", "total"]
    assert {row["n"] for row in stages.values()} == {5}  # the step that warms up is not among them
    parts = sum(row["mean"] for name, row in stages.items() if name != "total")
    assert parts <= stages["total"]["mean"] * 1.001


def test_frames_that_the_end_of_the_server_catches_are_counted():
    with serving() as served, served.client() as client:
        gate = Gate(served.server.agent)
        client.send(frames(1)[0])
        assert gate.entered.acquire(timeout=30)
        client.send(frames(1)[0])
        until(lambda: next(iter(served.server.connections)).waiting)
        served.in_loop(served.server.stop)
        until(lambda: not served.server.connections)
        gate.open.release(9)
    assert str(served.totals.counts) == "2 frames, 0 answers, 2 dropped, 0 errors, 0 broken"


def test_a_space_that_the_messages_cannot_carry_is_not_served():
    with pytest.raises(UserError, match=r"protocol carries keys, mouse_buttons.*'gamepad' also has"):
        Server(opinionated(action_space="gamepad").agent())


# instructions


def test_an_instruction_is_its_clients_own_from_its_frame_on():
    words = Words()
    policy, pictures = opinionated(text_encoder=words), frames(6)
    with serving(policy, text="stay") as served:
        with served.client() as first:
            first.send(pictures[0], text="go")
            first.receive(30)
            until(lambda: "go" in served.server.embedder.known)
        until(lambda: not served.server.connections)
        with served.client() as a, served.client() as b:  # "go" is known by now, so it holds at once
            got = [play(a, pictures[:3], "go"), play(b, pictures[:3])]
            got[0] += play(a, pictures[3:5], "")
            got[0] += play(a, pictures[5:], "go")
            got[1] += play(b, pictures[3:])
    said = ["go", "go", "go", None, None, "go"]
    assert got[0] == alone(policy, SEED + 1, pictures, said) != alone(policy, SEED + 1, pictures)
    assert got[1] == alone(policy, SEED + 2, pictures, ["stay"] * 6) != alone(policy, SEED + 2, pictures)
    assert words.asked.count("go") == 2  # for three clients of the server once, and for the game alone


def test_a_slow_text_encoder_stalls_nobody_and_the_old_instruction_holds():
    words = Words()
    policy, pictures = opinionated(text_encoder=words), frames(8)
    with serving(policy, text="stay") as served, served.client() as a, served.client() as b:
        words.go.clear()
        got = play(a, pictures[:3], "go")
        play(b, pictures)
        with served.client() as leaving:
            leaving.send(pictures[0], text="leave")
            leaving.receive(30)
            assert len(served.server.embedder.waiting) == 1
        until(lambda: not served.server.embedder.waiting)  # whoever leaves is not waited for
        a.send(pictures[3], text="run")  # "go" is not ready yet, and will not be followed when it is
        got.append(a.receive(30).values)
        assert words.asked == ["stay", "go"]
        words.go.set()
        until(lambda: "run" in served.server.embedder.known)
        until(lambda: next(iter(served.server.connections)).instruction.ready)
        assert words.asked == ["stay", "go", "run"]
        got += play(a, pictures[4:])
    said = ["stay"] * 4 + ["run"] * 4
    assert got == alone(policy, SEED, pictures, said)


def test_words_taken_back_while_they_are_embedded_are_not_followed():
    words = Words()
    policy, pictures = opinionated(text_encoder=words), frames(4)
    with serving(policy) as served, served.client() as client:
        words.go.clear()
        got = play(client, pictures[:1], "go")
        got += play(client, pictures[1:2], "")
        words.go.set()
        until(lambda: "go" in served.server.embedder.known)
        got += play(client, pictures[2:])
    assert got == alone(policy, SEED, pictures)


def test_a_line_is_the_instruction_of_all_that_have_none_of_their_own():
    policy, pictures = opinionated(text_encoder=Words()), frames(6)
    with serving(policy) as served, served.client() as a, served.client() as b:
        got = [play(a, pictures[:2]), play(b, pictures[:2], "")]
        served.in_loop(served.server.hear, "go")
        until(lambda: served.server.instruction.ready)
        got = [got[0] + play(a, pictures[2:4]), got[1] + play(b, pictures[2:4])]
        served.in_loop(served.server.hear, "-")
        got = [got[0] + play(a, pictures[4:]), got[1] + play(b, pictures[4:])]
    assert got[0] == alone(policy, SEED, pictures, [None, None, "go", "go", None, None])
    assert got[1] == alone(policy, SEED + 1, pictures)
    assert {"instruction: go", "no instruction"} <= set(served.lines)


@pytest.mark.parametrize(
    "policy, told",
    [
        ({"text_dim": None}, "takes no text"),
        ({}, "is not followed: this policy has no text_encoder"),
        ({"text_encoder": Words()}, "is not followed: 'fail' cannot be embedded (no such word)"),
    ],
    ids=["no-text", "no-encoder", "failing-encoder"],
)
def test_an_instruction_that_cannot_be_followed_is_told_once_and_the_game_goes_on(policy, told):
    policy, pictures = opinionated(**policy), frames(6)
    with serving(policy) as served, served.client() as client:
        client.send(pictures[0], text="fail")
        got = [client.receive(30)]
        until(lambda: got[0].error or next(iter(served.server.connections)).instruction.reported)
        for picture in pictures[1:]:
            client.send(picture, text="fail")
            got.append(client.receive(30))
        served.in_loop(served.server.hear, "fail")
        until(lambda: any(told in line for line in served.lines))
    errors = [a.error for a in got if a.error]
    assert len(errors) == 1 and told in errors[0]
    assert [a.values for a in got] == alone(policy, SEED, pictures)
    assert served.totals.counts.answers == 6 and served.totals.counts.errors == 0


def test_an_encoder_of_another_width_is_an_error_at_the_start():
    policy = opinionated(text_dim=8, text_encoder=Words())
    with pytest.raises(UserError, match=r"gives \(16,\), the policy needs \(8,\)"):
        Server(policy.agent(), text="go")


def test_a_policy_that_fails_before_anybody_plays_ends_the_server():
    agent = opinionated().agent()
    agent.step_many = None
    import asyncio

    with pytest.raises(TypeError):
        asyncio.run(Server(agent, say=logging.debug).run([]))


def test_limits_are_those_that_are_documented():
    assert Limits() == Limits(32 * 2**20, 10.0, 128 * 2**20, 64 * 1024, 10.0, 256, 30.0)


def test_decisions_pass_through_the_message_unchanged():
    policy = opinionated()
    decision = policy.agent().step(frames(1)[0])
    assert wired(decision)["mouse_dx"] == decision.mouse_dx
