"""A page on this computer that shows a game while it is played: the picture, what is pressed, how likely it was.

Place in the pipeline: whoever plays calls :meth:`Watch.show` with every frame and the
:class:`~bczoo.core.actions.Decision` that answers it. Only the newest is kept. A thread per viewer turns it into JPEG
and JSON when the viewer can take it, so that a slow viewer, or none, costs the game nothing but a copy of the frame.

``GET /`` is the page (``watch.html``); ``GET /stream`` is what it reads, one JSON object a line, distinguished by its
``kind``: ``hello`` (title and action space), ``step``, ``waiting`` (once a second without a new frame) and ``end``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import resources
from ipaddress import ip_address
from typing import Any

import numpy as np
from PIL import Image

from bczoo.core.actions import ActionSpace, BinnedGroup, Decision
from bczoo.core.errors import UserError
from bczoo.games.render import BARS, likeliest

MOST_VIEWERS = 8
MOST_CONNECTIONS = 32  # pages that load and viewers together
LONGEST_SIDE = 960  # px; larger pictures are sent smaller, for encoding them takes time from the game
JPEG_QUALITY = 88
HEARTBEAT_S = 1.0  # a viewer hears this often that there is no new frame
PATIENCE_S = 10.0  # for a connection that neither reads nor writes
GOODBYE_S = 1.0  # how long viewers have to hear of the end
SEND_BUFFER = 1 << 18  # bytes: what waits here for a slow viewer is old when it arrives
RATE_STEPS = 40  # steps over which their rate is measured

log = logging.getLogger(__name__)


class Watch:
    """Serves the page while its ``with`` block lasts.

    Args:
        space: action space of the decisions that will be shown.
        title: what is played, by whom.
        host: a loopback address; nobody else can look.
        port: of the page; 0 takes any that is free.
        fps: most pictures a second that a viewer gets.
    """

    def __init__(
        self, space: ActionSpace, title: str, host: str = "127.0.0.1", port: int = 8765, fps: float = 20.0
    ) -> None:
        if not _is_loopback(host):
            raise UserError(f"the game can be watched on this computer only: host must be 127.0.0.1 or ::1, got {host}")
        if not 0 <= port <= 65535:
            raise UserError(f"the port of the page must be in 0..65535, got {port}")
        if not fps > 0:
            raise UserError(f"the page needs fps above 0, got {fps}")
        self.space, self.title, self.host, self.port, self.fps = space, title, host, port, fps
        self._news = threading.Condition()
        self._shown: _Shown | None = None
        self._ended = False
        self._times: deque[float] = deque(maxlen=RATE_STEPS)
        self._encoding = threading.Lock()
        self._encoded: tuple[int, bytes] = (0, b"")  # step and its message
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where a browser finds the page; known once it is served."""
        if self._server is None:
            raise RuntimeError("the page has no address before Watch.start()")
        return f"http://{_in_url(self.host)}:{self._server.server_port}/"

    def start(self) -> None:
        """Serve the page from a thread of its own, until :meth:`stop`."""
        try:
            self._server = _Server((self.host, self.port), self)
        except OSError as error:
            raise UserError(
                f"the page cannot be served at {self.host}:{self.port} ({error.strerror or error}); choose another "
                "port, or 0 for any that is free"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="bczoo watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Tell the viewers that this is the end, and close every connection."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        if self._server is None or self._thread is None or not self._thread.is_alive():
            return
        self._server.shutdown()
        self._thread.join()  # shutdown alone returns too early if serving has not begun yet
        self._server.server_close()
        self._server.hang_up()

    def show(self, frame: np.ndarray, decision: Decision, caption: str = "") -> None:
        """The newest step, for whoever looks. Takes a copy, and never waits for viewers.

        Args:
            frame: uint8 (height, width, 3) of any size.
            decision: of the player, after seeing the frame.
            caption: a line under the picture.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise ValueError(f"a frame to show must be uint8 (height, width, 3), got {frame.dtype} {frame.shape}")
        self._check(decision)
        now = time.monotonic()
        copied = Decision(
            {name: list(v) if isinstance(v, list | tuple) else v for name, v in decision.values.items()},
            decision.ids and {name: list(ids) for name, ids in decision.ids.items()},
            decision.probabilities and {name: np.array(p) for name, p in decision.probabilities.items()},
        )
        frame = frame.copy()
        with self._news:
            self._times.append(now)
            lasted = now - self._times[0]
            rate = (len(self._times) - 1) / lasted if lasted > 0 else None
            step = self._shown.step + 1 if self._shown else 1
            self._shown = _Shown(step, now, frame, copied, caption, rate)
            self._news.notify_all()

    def _check(self, decision: Decision) -> None:
        for group in self.space.groups:
            p = (decision.probabilities or {}).get(group.name)
            if p is not None and np.shape(p) != (group.tokens, group.choices):
                raise ValueError(
                    f"probabilities of {group.name} have shape {np.shape(p)}, but the watched action space "
                    f"{self.space.name!r} has {group.tokens} tokens of {group.choices} choices"
                )

    def _viewer(self, send: Any) -> None:
        """What one viewer gets, until the end or until ``send`` raises."""
        send(_line(kind="hello", title=self.title, groups=[_described(g) for g in self.space.groups]))
        step, due = 0, 0.0
        while not self._ended:
            shown = self._newer_than(step)
            if shown is not None:
                step, due = shown.step, max(due, time.monotonic()) + 1 / self.fps
                send(self._message(shown))
                self._pause(due)
            elif not self._ended:
                since = self._shown and time.monotonic() - self._shown.at
                send(_line(kind="waiting", seconds=since))
        if self._shown is not None and self._shown.step != step:
            send(self._message(self._shown))
        send(_line(kind="end"))

    def _newer_than(self, step: int) -> _Shown | None:
        def there_is() -> bool:
            return self._ended or (self._shown is not None and self._shown.step != step)

        with self._news:
            self._news.wait_for(there_is, HEARTBEAT_S)
            shown = self._shown
        return shown if shown is not None and shown.step != step else None

    def _pause(self, until: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._ended, max(0.0, until - time.monotonic()))

    def _message(self, shown: _Shown) -> bytes:
        """The step as a line; viewers side by side share the work."""
        with self._encoding:
            if self._encoded[0] != shown.step:
                self._encoded = (shown.step, _line(**_step(self.space, shown)))
            return self._encoded[1]


@dataclass(frozen=True)
class _Shown:
    """One step as it was shown.

    Args:
        step: counted from 1.
        at: when, in seconds of the monotonic clock.
        frame: uint8 (height, width, 3).
        decision: of the player.
        caption: a line under the picture.
        rate: steps per second over the last ones; None for the first.
    """

    step: int
    at: float
    frame: np.ndarray
    decision: Decision
    caption: str
    rate: float | None


def _step(space: ActionSpace, shown: _Shown) -> dict[str, Any]:
    """All that the page shows of a step, as plain JSON."""
    decision = shown.decision
    probabilities = {name: np.nan_to_num(p) for name, p in (decision.probabilities or {}).items()}
    held: dict[str, list[str]] = {}
    numbers: dict[str, float | None] = {}
    choices: dict[str, list[dict[str, Any]]] = {}
    bins: dict[str, dict[str, Any]] = {}
    for group in space.groups:
        name, p = group.name, probabilities.get(group.name)
        if isinstance(group, BinnedGroup):
            numbers[name] = _finite(decision.values.get(name, 0))
            if p is not None:
                chosen = decision.ids[name][0] if decision.ids else None
                bins[name] = {"probabilities": [round(float(x), 5) for x in p[0]], "chosen": chosen}
        else:
            held[name] = list(decision.values.get(name, []))
            if p is not None:
                likely = likeliest(group, p, held[name])[: 3 if name == "mouse_buttons" else BARS]
                choices[name] = [{**vars(c), "probability": round(c.probability, 5)} for c in likely]
    height, width = shown.frame.shape[:2]
    return {
        "kind": "step",
        "step": shown.step,
        "rate": shown.rate,
        "caption": shown.caption,
        "width": width,
        "height": height,
        "held": held,
        "numbers": numbers,
        "choices": choices,
        "bins": bins,
        "image": base64.b64encode(_jpeg(shown.frame)).decode(),
    }


def _described(group: Any) -> dict[str, Any]:
    """What the page has to know of an action group."""
    if isinstance(group, BinnedGroup):
        return {
            "name": group.name,
            "integer": group.integer,
            "low": group.low,
            "high": group.high,
            "bins": [group.support(i) for i in range(group.choices)],
        }
    return {"name": group.name, "names": group.names[1:] if group.kind == "held" else group.names}


def _jpeg(frame: np.ndarray) -> bytes:
    image = Image.fromarray(frame)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def _line(**message: Any) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@functools.cache
def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets a browser run its own style and script and nothing else."""
    text = resources.files("bczoo.watch").joinpath("page.html").read_text(encoding="utf-8")
    allowed = {}
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        allowed[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    policy = (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    """A thread per connection, of which there are few."""

    allow_reuse_address = sys.platform != "win32"  # there it would let two runs share the port
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.watch = watch
        self.seats = threading.BoundedSemaphore(MOST_VIEWERS)
        self._talking: dict[socket.socket, threading.Thread] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        names = {"localhost", "127.0.0.1", "[::1]", _in_url(address[0])}
        ports = (f":{self.server_port}", "") if self.server_port == 80 else (f":{self.server_port}",)
        self.hosts = {name + port for name in names for port in ports}

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own looks up the name of the address, which takes time
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self._talking = {one: thread for one, thread in self._talking.items() if thread.is_alive()}
        if len(self._talking) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="bczoo viewer", daemon=True
        )
        thread.start()
        self._talking[request] = thread

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # viewers come and go
            log.exception("a viewer of the game could not be served")

    def hang_up(self) -> None:
        """Once nobody new is let in: wait until every viewer has heard of the end, and close the rest."""
        until = time.monotonic() + GOODBYE_S
        for thread in self._talking.values():
            thread.join(max(0.0, until - time.monotonic()))
        for request, thread in self._talking.items():
            _shut(request)
            thread.join()


def _shut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        request.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads or writes


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /`` and ``GET /stream``, from pages of this server only."""

    server: _Server
    server_version, sys_version = "bczoo", ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            port = self.server.server_port
            self._respond(HTTPStatus.FORBIDDEN, f"This page answers to http://localhost:{port}/ only.")
        elif path == "/":
            body, policy = _page()
            self._begin(HTTPStatus.OK, "text/html", policy, len(body))
            self.wfile.write(body)
        elif path != "/stream":
            self._respond(HTTPStatus.NOT_FOUND, "There is only / here.")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            self._respond(HTTPStatus.FORBIDDEN, "Other pages may not watch the game.")
        elif not self.server.seats.acquire(blocking=False):
            self._respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_VIEWERS} viewers are watching; there is no room for more."
            )
        else:
            try:
                self._stream()
            finally:
                self.server.seats.release()

    def _stream(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        self.server.watch._viewer(self.wfile.write)

    def _refuse(self) -> None:
        self._respond(HTTPStatus.METHOD_NOT_ALLOWED, "This page can only be read.", allow="GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _respond(self, status: HTTPStatus, text: str, **headers: str) -> None:
        body = text.encode()
        self._begin(status, "text/plain", length=len(body), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(
        self, status: HTTPStatus, kind: str, policy: str = "default-src 'none'", length: int | None = None, **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.title(), value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""
