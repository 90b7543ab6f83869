"""The page that shows a game: what it serves, to whom, and what a real browser makes of it."""

from __future__ import annotations

import gc
import http.client
import importlib.util
import json
import os
import shutil
import socket
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bczoo.core.actions import ActionSpace, Decision
from bczoo.core.errors import UserError
from bczoo.games.render import likeliest
from bczoo.watch import page as watch_module
from bczoo.watch.page import MOST_CONNECTIONS, MOST_VIEWERS, Watch

SPACE = ActionSpace.keyboard_mouse()
RED, BLUE = (200, 30, 20), (10, 40, 220)
NEUTRAL = {"keys": [], "mouse_buttons": [], "mouse_dx": 0, "mouse_dy": 0}
WAIT_MS = 10_000


def frame_of(colour: tuple[int, int, int], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def decision(space: ActionSpace = SPACE, **values: Any) -> Decision:
    """Values with ids and probabilities in which the chosen ids have 3/4 and the others share the rest."""
    values = {**(NEUTRAL if space is SPACE else {}), **values}
    ids = space.encode(**values)
    probabilities = {}
    for group in space.groups:
        p = np.full((group.tokens, group.choices), 0.25 / (group.choices - 1))
        p[np.arange(group.tokens), ids[group.name]] = 0.75
        probabilities[group.name] = p
    return Decision(values, ids, probabilities)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Watch(SPACE, "doom/basic", port=0, fps=200.0) as one:
        yield one


class Viewer:
    """A viewer that is no browser: reads the stream line by line."""

    def __init__(self, watch: Watch, **headers: str) -> None:
        self.connection = connect(watch)
        self.connection.request("GET", "/stream", headers=headers)
        self.answer = self.connection.getresponse()

    def next(self, kind: str) -> dict[str, Any]:
        """The next message of this kind."""
        while line := self.answer.readline():
            if (message := json.loads(line))["kind"] == kind:
                return message
        raise AssertionError(f"the stream ended without {kind}")

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def connect(watch: Watch) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", int(watch.url.split(":")[2].strip("/")), timeout=20)


def ask(watch: Watch, method: str = "GET", path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = connect(watch)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    ends = "Content-Length" in answer.headers  # a stream does not
    answer.text = answer.read().decode() if ends else ""  # type: ignore[attr-defined]
    connection.close()
    return answer


def viewer_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(("bczoo watch", "bczoo viewer"))]


# without a browser


def test_the_page_is_self_contained_and_locked_down(watch):
    answer = ask(watch)
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    outside = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in outside and "https:" not in outside and "src=" not in outside.replace("img[src]", "")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("GET", "/stream", {"Host": "evil.example:{port}"}, 403),
        ("GET", "/", {"Host": "127.0.0.1"}, 403),
        ("GET", "/", {"Host": "LocalHost:{port}"}, 200),
        ("GET", "/", {"Host": "[::1]:{port}"}, 200),
        ("GET", "/stream", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/stream", {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", "/../watch.py", {}, 404),
        ("GET", "/watch.html", {}, 404),
        ("POST", "/", {}, 405),
        ("HEAD", "/", {}, 405),
        ("BREW", "/", {}, 501),
    ],
)
def test_who_is_answered(watch, method, path, headers, status):
    port = watch.url.rstrip("/").rpartition(":")[2]
    answer = ask(watch, method, path, **{k: v.format(port=port) for k, v in headers.items()})
    assert answer.status == status
    if status == 405:
        assert answer.headers["Allow"] == "GET"
    if status == 403 and "Host" in headers:
        assert watch.url.rpartition(":")[2] in answer.text, "says under which address it answers"


def test_only_this_computer_can_look():
    for host in ("0.0.0.0", "192.168.0.1", "::", "example.org"):
        with pytest.raises(UserError, match="this computer only"):
            Watch(SPACE, "t", host=host)
    with pytest.raises(UserError, match="port"):
        Watch(SPACE, "t", port=70_000)
    with pytest.raises(UserError, match="fps"):
        Watch(SPACE, "t", fps=0)


def test_a_port_in_use_is_told_with_the_way_out(watch):
    port = int(watch.url.rstrip("/").rpartition(":")[2])
    with (
        pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*in use.*another port, or 0"),
        Watch(SPACE, "t", port=port),
    ):
        pass


def test_a_viewer_gets_what_was_shown(watch):
    viewer = Viewer(watch)
    hello = viewer.next("hello")
    assert hello["title"] == "doom/basic"
    assert [g["name"] for g in hello["groups"]] == ["keys", "mouse_buttons", "mouse_dx", "mouse_dy"]
    assert len(hello["groups"][2]["bins"]) == 23 and hello["groups"][2]["bins"][0] == [-501, -501]
    assert viewer.next("waiting")["seconds"] is None
    watch.show(frame_of(RED), decision(keys=["w", "Space"], mouse_dx=-9), "3.0 s")
    step = viewer.next("step")
    assert (step["step"], step["caption"], step["width"], step["height"]) == (1, "3.0 s", 64, 48)
    assert step["held"] == {"keys": ["w", "Space"], "mouse_buttons": []}
    assert step["numbers"] == {"mouse_dx": -9, "mouse_dy": 0}
    chosen = step["bins"]["mouse_dx"]["chosen"]
    assert hello["groups"][2]["bins"][chosen] == [-11, -7]
    assert step["bins"]["mouse_dx"]["probabilities"][chosen] == 0.75
    assert len(step["choices"]["keys"]) == 5 and len(step["choices"]["mouse_buttons"]) == 3
    assert viewer.next("waiting")["seconds"] > 0.5


def test_likeliest_counts_every_token_and_nothing_only_in_the_first():
    keys, switches = SPACE.groups[0], ActionSpace.gamepad().groups[0]
    p = np.zeros((4, keys.choices))
    w, a = keys.names.index("w"), keys.names.index("a")
    p[0, [0, a, w]] = 0.5, 0.2, 0.3
    p[1, [0, w]] = 0.6, 0.4
    p[2:, 0] = 1.0
    first = likeliest(keys, p, ["w"])[:3]
    assert [(c.label, round(c.probability, 9), c.held) for c in first] == [
        ("w", 0.7, True),
        ("none", 0.5, False),
        ("a", 0.2, False),
    ]
    assert likeliest(keys, p, [])[1].held, "nothing is held"
    on = np.full((switches.tokens, 2), (0.9, 0.1))
    on[3] = (0.2, 0.8)
    best = likeliest(switches, on, ["west"])[0]
    assert (best.label, best.probability, best.held) == (switches.names[3], 0.8, True)


def test_players_without_probabilities_and_broken_numbers_are_shown_too(watch):
    viewer = Viewer(watch)
    watch.show(frame_of(RED), Decision({"keys": ["w"], "mouse_dx": float("nan")}))
    step = viewer.next("step")
    assert step["held"]["keys"] == ["w"] and step["choices"] == step["bins"] == {}
    assert step["numbers"] == {"mouse_dx": None, "mouse_dy": 0}
    broken = decision()
    broken.probabilities["keys"][:] = np.nan
    watch.show(frame_of(BLUE, (3, 2000)), broken)
    assert viewer.next("step")["width"] == 2000


def test_what_cannot_be_shown_raises_where_it_is_shown(watch):
    for frame in (np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            watch.show(frame, decision())
    other = ActionSpace.keyboard_mouse(extra_keys=["r"])
    with pytest.raises(ValueError, match="keys have shape"):
        watch.show(frame_of(RED), decision(other, **NEUTRAL))


def test_what_the_game_overwrites_later_stays_as_it_was_shown(watch):
    frame, made = frame_of(RED), decision(keys=["w"])
    watch.show(frame, made)
    frame[:] = 0
    made.values["keys"].clear()
    made.probabilities["keys"][:] = 0
    shown = watch._shown
    assert (shown.frame == RED).all() and shown.decision.keys == ["w"]
    assert shown.decision.probabilities["keys"].max() == 0.75


def test_a_viewer_that_never_reads_holds_up_nobody(watch):
    stuck = connect(watch)
    stuck.connect()
    stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.request("GET", "/stream")
    other = Viewer(watch)
    other.next("hello")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for i in range(1, 31):  # far more than the buffers of the connection hold
        watch.show(noise, decision(), str(i))
        assert other.next("step")["step"] == i
    watch.stop()
    assert other.next("end") and not viewer_threads()


def steps_to_the_end(viewer: Viewer) -> list[int]:
    messages = [json.loads(line) for line in viewer.answer]
    assert messages[-1] == {"kind": "end"}
    return [m["step"] for m in messages if m["kind"] == "step"]


def test_viewers_skip_to_the_newest_step():
    with Watch(SPACE, "t", port=0, fps=0.1) as watch:
        viewer = Viewer(watch)
        viewer.next("hello")
        watch.show(frame_of(RED), decision())
        assert viewer.next("step")["step"] == 1
        for _ in range(50):
            watch.show(frame_of(BLUE), decision())
            time.sleep(0.002)  # time enough to send it, if it were due
    assert steps_to_the_end(viewer) == [51]


def test_nobody_looks_nothing_is_encoded(watch, monkeypatch):
    encoded = []
    monkeypatch.setattr(watch_module, "_jpeg", lambda frame: encoded.append(1) or b"")
    for _ in range(20):
        watch.show(frame_of(RED), decision())
    assert not encoded
    viewers = [Viewer(watch) for _ in range(3)]
    assert [v.next("step")["step"] for v in viewers] == [20] * 3
    assert len(encoded) == 1, "viewers share the work"


def test_memory_does_not_grow_with_the_steps(watch):
    frame, made = np.zeros((200, 200, 3), np.uint8), decision()
    watch.show(frame, made)
    old = weakref.ref(watch._shown)
    tracemalloc.start()
    for _ in range(200):  # 24 MB if they were kept
        watch.show(frame, made)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.collect()
    assert old() is None and grown < 1_000_000


def test_viewers_and_connections_are_few(watch):
    viewers = [Viewer(watch) for _ in range(MOST_VIEWERS)]
    for viewer in viewers:
        viewer.next("hello")
    refused = ask(watch, path="/stream")
    assert refused.status == 503 and str(MOST_VIEWERS) in refused.text
    assert ask(watch).status == 200, "the page itself can still be read"
    idle = [connect(watch) for _ in range(MOST_CONNECTIONS + 10)]
    for connection in idle:
        connection.connect()
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(watch)
    assert len(viewer_threads()) <= MOST_CONNECTIONS + 1
    for connection in idle:
        connection.close()


def test_a_viewer_who_leaves_makes_room(watch):
    viewers = [Viewer(watch) for _ in range(MOST_VIEWERS)]
    for viewer in viewers:
        viewer.close()
    for _ in range(500):  # the server notices when it writes
        watch.show(frame_of(RED), decision())
        if ask(watch, path="/").status == 200 and len(viewer_threads()) == 1:
            break
    newcomer = Viewer(watch)
    assert newcomer.answer.status == 200 and newcomer.next("step")


def test_steps_from_another_thread_arrive_and_the_last_one_before_the_end(watch):
    viewer = Viewer(watch)
    viewer.next("hello")
    playing = threading.Thread(target=lambda: [watch.show(frame_of(RED), decision(), f"{i}") for i in range(100)])
    playing.start()
    playing.join()
    watch.stop()
    steps = steps_to_the_end(viewer)
    assert steps[-1] == 100 and steps == sorted(set(steps))


def test_stop_closes_sockets_and_threads_and_frees_the_port(monkeypatch):
    monkeypatch.setattr(watch_module._Handler, "timeout", 600.0)
    watch = Watch(SPACE, "t", port=0)
    watch.start()
    port = watch._server.server_port
    viewer, idle = Viewer(watch), connect(watch)
    idle.connect()
    viewer.next("hello")
    assert ask(watch).status == 200  # so the idle connection before it has been taken
    stopping = threading.Thread(target=watch.stop, daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive() and not viewer_threads()
    assert viewer.next("end")
    assert idle.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(watch).connect()
    watch.show(frame_of(RED), decision())  # nobody looks any more
    watch.stop()
    with Watch(SPACE, "t", port=port) as again:
        assert ask(again).status == 200


def test_rubbish_is_refused_and_others_are_undisturbed(watch):
    viewer = Viewer(watch)
    viewer.next("hello")
    rng = np.random.default_rng(0)
    for size in (1, 100, 70_000):
        with socket.create_connection(("127.0.0.1", watch._server.server_port), timeout=20) as client:
            try:
                client.sendall(rng.integers(0, 256, size, np.uint8).tobytes() + b"\r\n\r\n")
                client.recv(4096)
            except ConnectionError:
                pass
    watch.show(frame_of(RED), decision())
    assert viewer.next("step")["step"] == 1


# in a browser


def browser_path() -> str | None:
    names = (os.environ.get("BCZOO_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright: pip install playwright")
    if (path := browser_path()) is None:
        pytest.skip("no browser: install chromium, or name one in BCZOO_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, watch) -> Iterator[Any]:
    """The page at ``watch``, open and ready; when the test is over, nothing may have gone wrong in it."""
    with open_page(browser, watch) as page:
        yield page


class open_page:
    def __init__(self, browser: Any, watch: Watch, width: int = 1280, height: int = 720) -> None:
        self.watch = watch
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(WAIT_MS)
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def __enter__(self) -> Any:
        self.page.goto(self.watch.url)
        self.page.get_by_role("status").get_by_text("waiting", exact=True).wait_for()
        return self.page

    def __exit__(self, *exception: object) -> None:
        self.page.close()
        if exception[0] is None:
            refused = [t for t in self.troubles if "ERR_CONNECTION_REFUSED" not in t]  # after the end of a run
            assert not refused
            assert all(url.startswith((self.watch.url, "data:")) for url in self.requests), self.requests


def shown(page: Any, watch: Watch, frame: np.ndarray, made: Decision, caption: str = "") -> None:
    """Show a step and wait until the page has drawn it."""
    watch.show(frame, made, caption)
    page.wait_for_function("step => document.body.dataset.step == step", arg=str(watch._shown.step))


def pixels(page: Any) -> np.ndarray:
    flat, width, height = page.evaluate(
        """() => {
          const picture = document.getElementById("picture"), canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
          const pen = canvas.getContext("2d");
          pen.drawImage(picture, 0, 0);
          return [[...pen.getImageData(0, 0, canvas.width, canvas.height).data], canvas.width, canvas.height];
        }"""
    )
    return np.array(flat, np.uint8).reshape(height, width, 4)[..., :3]


def test_the_picture_is_the_frame_and_changes_with_it(page, watch):
    assert "doom/basic" in page.title()
    for frame in (frame_of(RED), frame_of(BLUE), frame_of(BLUE, (30, 20))):
        frame[: len(frame) // 2] //= 2
        shown(page, watch, frame, decision(), "7.5 s   return 3")
        assert np.abs(pixels(page).astype(int) - frame).mean() < 4
    assert page.get_by_role("status").inner_text() == "live"
    assert page.get_by_text("7.5 s").is_visible() and page.get_by_text("step 3").is_visible()
    box = page.get_by_role("img", name="live picture of the game, 20 x 30").bounding_box()
    assert box["width"] > 700 and box["height"] > 500


def test_held_keys_and_buttons_light_up_and_go_out(page, watch):
    caps = {
        "w": {"keys": ["w"]},
        "Space": {"keys": ["Space"]},
        "LeftShift": {"keys": ["LeftShift"]},
        "left mouse button": {"mouse_buttons": ["0"]},
        "right mouse button": {"mouse_buttons": ["1"]},
        "middle mouse button": {"mouse_buttons": ["2"]},
    }
    colour = "element => { const s = getComputedStyle(element); return s.fill + s.backgroundColor }"
    for name, values in caps.items():
        shown(page, watch, frame_of(RED), decision())
        cap = page.get_by_role("img", name=f"{name} released", exact=True)
        dark = cap.evaluate(colour)
        assert page.get_by_role("img", name=" held").count() == 0
        shown(page, watch, frame_of(RED), decision(**values))
        lit = page.get_by_role("img", name=f"{name} held", exact=True)
        assert page.get_by_role("img", name=" held").count() == 1
        assert "255, 196, 61" in lit.evaluate(colour) and "255, 196, 61" not in dark


def test_the_mouse_arrow_points_where_the_mouse_goes(page, watch):
    arrow = page.locator(".dial .arrow")
    tip = "element => [element.x2.baseVal.value, element.y2.baseVal.value]"
    shown(page, watch, frame_of(RED), decision())
    assert arrow.get_attribute("visibility") == "hidden"
    lengths = []
    for dx, dy in ((3, 0), (60, 0), (-60, 0), (0, 20), (0, -20), (500, 150)):
        shown(page, watch, frame_of(RED), decision(mouse_dx=dx, mouse_dy=dy))
        x, y = arrow.evaluate(tip)
        assert arrow.get_attribute("visibility") == "visible"
        assert np.allclose(np.array([x, y]) / np.hypot(x, y), np.array([dx, dy]) / np.hypot(dx, dy), atol=1e-4)
        lengths.append(np.hypot(x, y))
    assert lengths[0] < lengths[1] < lengths[-1] < 48
    assert page.get_by_role("img", name="mouse +500 px, +150 px").count() == 1


def test_bars_are_as_long_as_the_choices_are_likely(page, watch):
    made = decision(keys=["d"])
    keys = made.probabilities["keys"]
    keys[:] = 0
    keys[0, [SPACE.groups[0].names.index(k) for k in ("d", "w", "_no_key")]] = 0.5, 0.3, 0.2
    keys[1:, 0] = 1
    shown(page, watch, frame_of(RED), made)
    bars = page.get_by_role("region", name="keys").get_by_role("meter")
    told = bars.evaluate_all(
        """bars => bars.map((bar) => {
          const width = (part) => bar.querySelector(part).getBoundingClientRect().width;
          const [label, value] = [bar.getAttribute("aria-label"), Number(bar.getAttribute("aria-valuenow"))];
          return [label, value, bar.querySelector(".percent").innerText, 100 * width(".fill") / width(".track")];
        })"""
    )
    assert [(label, value, text) for label, value, text, _ in told][:3] == [
        ("keys: d", 50, "50 %"),
        ("keys: w", 30, "30 %"),
        ("keys: none", 20, "20 %"),
    ]
    assert all(abs(value - share) < 0.2 for _, value, _, share in told) and len(told) == 5
    figure = page.get_by_role("figure", name="mouse dx")
    heights = figure.locator("rect").evaluate_all("bars => bars.map((bar) => bar.height.baseVal.value ** 2)")
    assert np.allclose(heights, made.probabilities["mouse_dx"][0], atol=1e-4)
    lit = figure.locator("rect").evaluate_all("bars => bars.findIndex((bar) => bar.classList.contains('on'))")
    assert lit == made.ids["mouse_dx"][0]
    assert figure.get_by_role("img", name="likeliest 0 px with 75 %").count() == 1


def test_a_player_without_probabilities_is_said_to_have_none(page, watch):
    shown(page, watch, frame_of(RED), decision())
    none = page.get_by_text("tells no probabilities")
    assert not none.is_visible() and page.get_by_role("meter").first.is_visible()
    shown(page, watch, frame_of(RED), Decision({**NEUTRAL, "keys": ["w"]}))
    assert none.is_visible() and page.get_by_role("meter").count() == 0
    assert page.get_by_role("img", name="w held").is_visible()


def test_gamepads_and_phones(browser):
    pad = ActionSpace.gamepad()
    sticks = {"left_stick_x": -0.8, "left_stick_y": 0.0, "right_stick_x": 0.0, "right_stick_y": 0.5}
    with Watch(pad, "pad", port=0) as watch, open_page(browser, watch, 390, 844) as page:
        shown(page, watch, frame_of(RED, (90, 160)), decision(pad, buttons=["south", "dpad_up"], **sticks))
        assert page.get_by_role("img", name=" held").count() == 2
        assert page.get_by_role("img", name="left stick -0.80, 0.00").is_visible()
        assert page.get_by_role("img", name="right stick 0.00, +0.50").is_visible()
        assert page.get_by_role("region", name="buttons").get_by_role("meter").count() == 5
        assert page.get_by_role("figure", name="right stick y").locator("rect").count() == 11
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out sideways"


@pytest.mark.parametrize("space", [SPACE, ActionSpace.gamepad()], ids=lambda s: s.name)
def test_all_fits_a_small_screen_without_scrolling(browser, space):
    with Watch(space, "t" * 200, port=0) as watch, open_page(browser, watch) as page:
        shown(page, watch, frame_of(RED), decision(space), "caption")
        inside = "e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth"
        assert page.locator("aside").evaluate(inside) and page.locator("body").evaluate(inside)


def test_silence_and_the_end_are_told_and_the_next_run_appears(browser):
    with Watch(SPACE, "first", port=0) as watch, open_page(browser, watch) as page:
        status, notice = page.get_by_role("status"), page.locator("#notice")
        shown(page, watch, frame_of(RED), decision())
        assert status.inner_text() == "live" and not notice.is_visible()
        status.get_by_text("waiting", exact=True).wait_for()
        assert "no new frame" in notice.inner_text() and notice.is_visible()
        shown(page, watch, frame_of(RED), decision())
        assert status.inner_text() == "live"
        port = watch._server.server_port
        watch.stop()
        status.get_by_text("ended", exact=True).wait_for()
        assert "has ended" in notice.inner_text() and notice.is_visible()
        assert page.locator("#picture").evaluate("e => getComputedStyle(e).opacity") == "0.35"
        with Watch(SPACE, "second", port=port) as following:
            page.get_by_role("heading", name="second").wait_for()
            shown(page, following, frame_of(BLUE), decision())
            assert status.inner_text() == "live" and np.abs(pixels(page)[0, 0].astype(int) - BLUE).max() < 8


def test_a_lost_connection_and_a_full_house_are_told(browser, watch):
    with open_page(browser, watch) as page:
        others = [Viewer(watch) for _ in range(MOST_VIEWERS - 1)]
        for viewer in others:
            viewer.next("hello")
        late = browser.new_page()
        late.set_default_timeout(WAIT_MS)
        late.goto(watch.url)
        late.get_by_text("there is no room for more").wait_for()
        late.close()
        for request in list(watch._server._talking):
            watch_module._shut(request)
        page.get_by_role("status").get_by_text("no connection").wait_for()
        page.get_by_role("status").get_by_text("waiting", exact=True).wait_for()
