"""The client and ``client-test``: what they report is what happened."""

from __future__ import annotations

import re
import socket
import threading

import numpy as np
import pytest
from serving import SEED, alone, frames, opinionated, play, serving

from bczoo.core.errors import UserError
from bczoo.data.recording import RecordingWriter
from bczoo.serve import wire
from bczoo.serve.client import Client, client_test, replay
from bczoo.serve.listen import listen_on_unix

pytestmark = pytest.mark.usefixtures("one_thread")


class Scripted:
    """A server that reads frames and answers as it is told: a list of bytes to send after every frame."""

    def __init__(self, path, script, stays=False):
        self.path, self.script, self.stays = path, script, stays

    def __enter__(self):
        self.listening = listen_on_unix(self.path)
        listening = self.listening.__enter__()

        def run():
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as stream:
                for data in self.script:
                    stream.read(wire.payload_length(stream.read(4)))
                    connection.sendall(data)
                if self.stays:
                    stream.read(1)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join(30)
        self.listening.__exit__(None, None, None)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "s"


def answer(id, error=None, dropped=0):
    return wire.action_message(wire.action(id, {"keys": ["w"]}), error, dropped)


def test_a_recording_is_replayed_and_every_frame_answered(path, capsys):
    with RecordingWriter("recording", size=64) as writer:
        for picture in frames(5, size=64):
            writer.add(picture, user={"keys": ["w"]})
    with serving() as served:
        result = client_test(socket=served.path, recording="recording", frames=12, fps=0)
        noise = client_test(tcp=served.tcp, frames=4, fps=200, size=32)
    for one, sent in ((result, 12), (noise, 4)):
        assert (one.sent, one.answered + one.dropped, one.errors, one.lost, one.status) == (sent, sent, 0, 0, 0)
    assert result.answered == 12 and result.missed is None and result.latency["answer"]["n"] == 12
    told = capsys.readouterr().out
    assert "12 frames of 64 x 64 as fast as answered: 12 answered, 0 dropped, 0 errors, 0 lost" in told
    assert re.search(r"\| answer \|( [\d.]+ \|){4} 12 \|", told)
    assert "deadlines missed: answers later than 5 ms after their frame" in told


def test_the_frames_of_a_recording_are_sent_in_turn_again_and_again():
    policy, pictures = opinionated(), frames(3)
    with serving(policy) as served, served.client() as client:
        replay(client, pictures, 5)
        last = play(client, pictures[:1])
    assert last == alone(policy, SEED, [*pictures, *pictures[:2], pictures[0]])[-1:]


def test_dropped_lost_and_failed_frames_are_told_apart(path):
    script = [
        answer(0),
        b"",
        answer(2, dropped=1),
        answer(3, "it went wrong"),
        b"",
        answer(5),  # 4 is neither answered nor reported as dropped
    ]
    with Scripted(path, script, stays=True), Client(path) as client:
        result = replay(client, frames(2), 6, fps=50, patience_s=0.1)
    assert (result.sent, result.answered, result.dropped, result.errors, result.lost) == (6, 3, 1, 1, 1)
    assert result.reported == ["it went wrong"] and result.status == 1


def test_a_lost_frame_alone_fails(path):
    with Scripted(path, [answer(0), b"", answer(2)]), Client(path) as client:
        result = replay(client, frames(2), 3, fps=50)
    assert (result.errors, result.lost, result.status) == (0, 1, 1)


def test_late_answers_miss_their_deadline(path):
    with Scripted(path, [b"", b"", b"", answer(0) + answer(1) + answer(2) + answer(3)]), Client(path) as client:
        result = replay(client, frames(2), 4, fps=50)
    assert result.missed >= 1 and result.answered == 4  # the first for sure, however late the others were sent


def test_a_server_that_says_nothing_or_leaves_is_told(path):
    with Scripted(path, [b""], stays=True), Client(path) as client:
        silent = replay(client, frames(2), 9, patience_s=0.1)
    assert (silent.sent, silent.lost, silent.broken, silent.status) == (1, 1, False, 1)
    with Scripted(path, [answer(0)]), Client(path) as client:
        left = replay(client, frames(2), 9)
    assert (left.answered, left.errors, left.broken, left.status) == (1, 0, True, 1)
    assert re.search("closed the connection|broke|could not be sent", left.reported[0])


def test_half_an_answer_waits_for_its_other_half(path):
    whole = answer(7) + answer(8)
    with Scripted(path, [whole[:6], whole[6:]]), Client(path) as client:
        client.send(frames(1)[0])
        assert client.receive(0.05) is None
        client.send(frames(1)[0])
        assert [client.receive(30).id, client.receive(30).id] == [7, 8]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"\x03\x00\x00\x00\xff\xff\xff"])
def test_another_kind_of_server_is_told_to_be_one(path, data):
    with (
        Scripted(path, [data]),
        Client(path) as client,
        pytest.raises(UserError, match="no server of this protocol"),
    ):
        client.send(frames(1)[0])
        client.receive(30)


def test_errors_of_the_one_at_the_keyboard(path):
    with pytest.raises(UserError, match=r"no server answers at nowhere .*bczoo serve"):
        Client("nowhere")
    with pytest.raises(UserError, match="not both"):
        Client("s", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"frames must be at least 1.*got 0, 20 and 192"):
        client_test(frames=0)
    with pytest.raises(UserError, match="there is no recording nowhere"):
        client_test(recording="nowhere")
    with pytest.raises(UserError, match="holds no video"):
        client_test(recording=".")
    with Scripted(path, []), Client(path) as client, pytest.raises(ValueError, match="uint8 array"):
        client.send(np.zeros((2, 2, 3), np.float32))


def test_ids_count_up_and_can_be_chosen():
    with serving() as served, served.client() as client:
        ids = [client.send(frames(1)[0], id) for id in (None, None, 40, None, -(2**31))]
        assert ids == [0, 1, 40, 41, -(2**31)]
        with pytest.raises(ValueError):
            client.send(frames(1)[0], 2**31)
        assert isinstance(client.connection, socket.socket)
