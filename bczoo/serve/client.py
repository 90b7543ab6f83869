"""A client of the server in Python, and ``bczoo client-test``, which measures a server with it.

Place in the pipeline: the other end of :mod:`bczoo.serve.server`, or of any server that speaks the reference protocol.

>>> with Client(socket="/tmp/uds.recap") as client:
...     client.send(frame, id=1, text="go to the red door")
...     answer = client.receive()
...     answer.values  # {"keys": ["w"], "mouse_buttons": [], "mouse_dx": 3, "mouse_dy": -1}

Shape legend: H, W height and width of a frame in pixels; frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import math
import socket as sockets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from bczoo.core.errors import UserError
from bczoo.data.schema import inference
from bczoo.data.video import choose_video, iterate_frames
from bczoo.play.latency import StageTimes, latency_table
from bczoo.serve import wire
from bczoo.serve.listen import REFERENCE_PATH, resolve_tcp

REPLAYED_BYTES = 256 * 2**20  # most frames of a recording that are held; then it starts again
NOISE_FRAMES = 20
ERRORS_REPORTED = 3


class Answer(NamedTuple):
    """What the server says to a frame.

    Attributes:
        id: of the frame.
        values: keys, mouse_buttons, mouse_dx and mouse_dy, as an action space has them.
        error: what went wrong; None if nothing did.
        dropped: frames that were superseded since the answer before.
    """

    id: int
    values: dict[str, Any]
    error: str | None
    dropped: int


class ServerGoneError(UserError):
    """The server has closed the connection.

    The protocol has no message for why; bczoo's server prints it.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; if it is bczoo serve, its output says why")


class Client:
    """A connection to a server.

    Args:
        socket: path of a Unix socket; the reference one if ``tcp`` is left out too.
        tcp: ``host:port`` instead.
        timeout_s: longest time to connect or to send one frame, in seconds.

    Raises:
        UserError: no server is there.
    """

    def __init__(self, socket: str | None = None, tcp: str | None = None, timeout_s: float = 10.0) -> None:
        if socket is not None and tcp is not None:
            raise UserError("a client connects to one server: give --socket or --tcp, not both")
        family, place = (sockets.AF_UNIX, socket or REFERENCE_PATH) if tcp is None else resolve_tcp(tcp)
        self.timeout_s = timeout_s
        self.connection = sockets.socket(family, sockets.SOCK_STREAM)
        self._got = bytearray()
        self._next_id = 0
        try:
            self.connection.settimeout(timeout_s)
            self.connection.connect(place)
        except OSError as error:
            self.connection.close()
            raise UserError(f"no server answers at {tcp or place} ({error}); start one with: bczoo serve") from error
        if tcp is not None:
            self.connection.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)

    def send(self, frame: np.ndarray, id: int | None = None, text: str | None = None) -> int:
        """Send a frame.

        Args:
            frame: (H, W, 3) uint8, RGB, of any size.
            id: comes back with its answer; counted up from 0 if left out.
            text: instruction from this frame on; an empty one clears it, None leaves it.

        Returns:
            The id.
        """
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"a frame is a uint8 array (height, width, 3) in RGB, got {getattr(frame, 'shape', frame)}"
            )
        id = self._next_id if id is None else id
        self._next_id = id + 1
        try:
            self.connection.settimeout(self.timeout_s)
            self.connection.sendall(wire.frame_message(frame, id, text))
        except OSError as error:
            raise ServerGoneError(f"frame {id} could not be sent ({error})") from error
        return id

    def receive(self, timeout_s: float | None = None) -> Answer | None:
        """The next answer.

        Args:
            timeout_s: how long to wait for it, in seconds; for ever if left out.

        Returns:
            The answer; None if there was none in time. What came of it is kept for the next call.

        Raises:
            ServerGoneError: the server has closed the connection.
        """
        until = math.inf if timeout_s is None else time.perf_counter() + timeout_s
        while (payload := self._take_payload()) is None:
            left = until - time.perf_counter()
            try:
                # 0 would mean not to wait at all, even for what is there
                self.connection.settimeout(None if left == math.inf else max(left, 1e-6))
                some = self.connection.recv(65536)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise ServerGoneError(f"the connection to the server broke ({error})") from error
            if not some:
                raise ServerGoneError("the server has closed the connection")
            self._got += some
        return _parse_answer(payload)

    def _take_payload(self) -> bytes | None:
        start = wire.LENGTH.size
        if len(self._got) < start:
            return None
        end = start + self._length()
        if len(self._got) < end:
            return None
        payload = bytes(self._got[start:end])
        del self._got[:end]
        return payload

    def _length(self) -> int:
        try:
            return wire.payload_length(bytes(self._got[: wire.LENGTH.size]))
        except wire.FramingError as error:
            raise UserError(f"what answers is no server of this protocol: {error}") from error

    def close(self) -> None:
        """Disconnect; the server forgets this game."""
        self.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parse_answer(payload: bytes) -> Answer:
    try:
        action = inference.Action.FromString(payload)
    except DecodeError as error:
        raise UserError("what answers is no server of this protocol: its answer is no Action in protobuf") from error
    mouse = action.mouse_action
    values = {
        "keys": list(action.keys),
        "mouse_buttons": list(mouse.buttons_down),
        "mouse_dx": mouse.mouse_delta_px.x,
        "mouse_dy": mouse.mouse_delta_px.y,
    }
    return Answer(action.id, values, action.error or None, action.dropped)


@dataclass
class ClientTest:
    """What ``client-test`` saw.

    Args:
        sent: frames.
        answered: frames that the server acted on.
        dropped: frames that the server said it had dropped for newer ones.
        errors: frames that were answered with an error.
        missed: answers that came later than one frame after theirs; None if frames had no rate.
        latency: of answers, from before a frame was sent until its answer was there, in milliseconds.
        reported: the first errors.
        broken: whether the connection ended too early.
    """

    sent: int = 0
    answered: int = 0
    dropped: int = 0
    errors: int = 0
    missed: int | None = None
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    broken: bool = False

    @property
    def lost(self) -> int:
        """Frames that were neither answered, with an action or an error, nor reported as dropped."""
        return max(self.sent - self.answered - self.dropped - self.errors, 0)

    @property
    def status(self) -> int:
        return int(self.errors > 0 or self.lost > 0 or self.broken)

    def report(self, error: str) -> None:
        """Keep an error for the report, if it is new and one of the first."""
        if error not in self.reported and len(self.reported) < ERRORS_REPORTED:
            self.reported.append(error)


def client_test(
    socket: str | None = None,
    tcp: str | None = None,
    recording: str | None = None,
    frames: int = 200,
    fps: float = 20.0,
    text: str | None = None,
    size: int = 192,
    patience_s: float = 5.0,
) -> ClientTest:
    """Replay a recording against a server and report its latency; fails if any frame is lost or answered by an error.

    Args:
        socket: path of the server's Unix socket; /tmp/uds.recap if --tcp is left out too.
        tcp: host:port of the server instead.
        recording: folder of a recording, whose video is sent; noise if left out.
        frames: how many to send; a shorter video starts again.
        fps: frames a second; with 0 the next one is sent when the last was answered.
        text: instruction, sent with the first frame.
        size: height and width of noise in pixels; of a recording's videos, the one nearest to this is sent.
        patience_s: how long to wait for a last answer, in seconds.
    """
    if frames < 1 or not math.isfinite(fps) or fps < 0 or not 1 <= size <= wire.LARGEST_SIDE:
        raise UserError(
            f"frames must be at least 1, fps at least 0 and size 1 to {wire.LARGEST_SIDE}; "
            f"got {frames}, {fps:g} and {size}"
        )
    pictures = _noise(size) if recording is None else _video_frames(Path(recording), size, frames)
    with Client(socket, tcp) as client:
        result = replay(client, pictures, frames, fps, text, patience_s)
    height, width = pictures[0].shape[:2]
    at = f"{fps:g} a second" if fps else "as fast as answered"
    print(
        f"{result.sent} frames of {width} x {height} {at}: {result.answered} answered, {result.dropped} dropped, "
        f"{result.errors} errors, {result.lost} lost"
    )
    for error in result.reported:
        print(f"error: {error}")
    if result.latency:
        print(latency_table(result.latency))
    if result.missed is not None:
        print(f"{result.missed} deadlines missed: answers later than {1e3 / fps:.0f} ms after their frame")
    return result


def replay(
    client: Client,
    pictures: list[np.ndarray],
    frames: int,
    fps: float = 0.0,
    text: str | None = None,
    patience_s: float = 5.0,
) -> ClientTest:
    """Send frames and take answers.

    Args:
        client: connected to the server.
        pictures: (H, W, 3) each; sent in turn, again and again.
        frames: how many to send.
        fps: frames a second; with 0 the next one is sent when the last was answered.
        text: instruction, sent with the first frame.
        patience_s: how long to wait for a last answer, in seconds.
    """
    result, times = ClientTest(missed=0 if fps else None), StageTimes()
    sent_at: dict[int, float] = {}
    begun = time.perf_counter()
    try:
        for n in range(frames):
            sent_at[n] = time.perf_counter()
            client.send(pictures[n % len(pictures)], n, text if n == 0 else None)
            result.sent += 1
            until = begun + (n + 1) / fps if fps and n + 1 < frames else time.perf_counter() + patience_s
            while (fps and n + 1 < frames) or sent_at:
                answer = client.receive(max(until - time.perf_counter(), 0))
                if answer is None:
                    break
                _account(answer, sent_at, fps, result, times)
            if not fps and sent_at:
                break  # no answer within the patience
    except ServerGoneError as error:
        result.broken = True
        result.report(str(error))
    result.latency = times.summary()
    return result


def _account(answer: Answer, sent_at: dict[int, float], fps: float, result: ClientTest, times: StageTimes) -> None:
    result.dropped += answer.dropped
    if answer.error is not None:
        result.report(answer.error)
    if answer.id not in sent_at:
        return
    seconds = time.perf_counter() - sent_at[answer.id]
    for id in [id for id in sent_at if id <= answer.id]:  # those before it were superseded
        del sent_at[id]
    if answer.error is not None:
        result.errors += 1
        return
    result.answered += 1
    times.add("answer", seconds)
    if result.missed is not None:
        result.missed += seconds > 1 / fps


def _noise(size: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (NOISE_FRAMES, size, size, 3), np.uint8))


def _video_frames(recording: Path, size: int, frames: int) -> list[np.ndarray]:
    """Frames of a recording's video, as many as are needed and fit."""
    if not recording.is_dir():
        raise UserError(f"there is no recording {recording}; a recording is a folder with a video in it")
    name = choose_video(sorted(p.name for p in recording.iterdir()), size)
    if name is None:
        raise UserError(f"{recording} holds no video; a recording has one such as 192x192.mp4 or video.mp4")
    return list(_within(iterate_frames(recording / name), frames))


def _within(video: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    held = 0
    for _, picture in zip(range(frames), video, strict=False):
        held += picture.nbytes
        yield picture
        if held >= REPLAYED_BYTES:
            return
