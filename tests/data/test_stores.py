"""Roots that are URLs, against servers on loopback: a web server, the small Hub of the tests, S3 as moto answers it.

Another process reads each, as a user's would, because clients read their settings when they are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from synthetic import write_recordings
from test_packs import KEYBOARD, batches

from bczoo.core.errors import UserError
from bczoo.data import cache, stores
from bczoo.data.cache import Cache, located
from bczoo.data.errors import NoRecordingsError
from bczoo.data.index import open_index

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))
from hub_server import HubServer

READ = """
import hashlib, json, sys
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.index import open_index
try:
    index = open_index(sys.argv[1], ActionSpace.keyboard_mouse())
    found = {}
    for r in index.usable.tolist():
        with index.reading(r) as folder:
            name = str(index.names[r]).rpartition("/")[2]
            found[name] = hashlib.sha256((folder / index.video_name(r, 48)).read_bytes()).hexdigest()
    print(json.dumps({"found": found, "problems": index.problems.tolist()}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


def read(url: str, home: Path, env: dict[str, str] | None = None) -> dict:
    """What another process finds under a URL: the videos' hashes by recording, or the error of a user."""
    places = {"BCZOO_CACHE_DIR": str(home / "cache"), "XDG_CACHE_HOME": str(home / "user_cache")}
    run = subprocess.run(
        [sys.executable, "-c", READ, url],
        env=(env or dict(os.environ)) | places,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Archives and a folder, and what lies in them by name."""
    folders = write_recordings(tmp_path_factory.mktemp("folders") / "recordings", 4)
    root = batches(folders, tmp_path_factory.mktemp("shipped") / "data")
    write_recordings(root / "below", 1, 9)
    (root / "below" / "rec-0").rename(root / "below" / "loose")
    (root / "README.md").write_text("# Recordings\n")
    return root


@pytest.fixture(scope="module")
def expected(shipped, tmp_path_factory):
    found = read(str(shipped), tmp_path_factory.mktemp("home"))["found"]
    assert sorted(found) == ["loose", "rec-0", "rec-1", "rec-2", "rec-3"]
    return found


class Handler(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def send_head(self):
        self.asked.append(f"{self.command} {self.path}")
        return super().send_head()

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def web(shipped):
    """The address of a web server, and what it was asked."""
    asked: list[str] = []
    handler = type("Bound", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shipped)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_web_server_is_read_once(web, expected, tmp_path):
    url, asked = web
    assert read(url, tmp_path) == {"found": expected, "problems": [""] * 5}
    assert any(line.startswith("GET") and line.endswith(".tar.gz") for line in asked)
    asked.clear()
    assert read(url, tmp_path)["found"] == expected
    assert not [line for line in asked if line.startswith("GET") and line.endswith((".tar.gz", ".tar", ".mp4"))]
    single = read(f"{url}/batch_00000.tar.gz", tmp_path)["found"]
    assert single == {name: expected[name] for name in ("rec-0", "rec-1")}
    assert f"there is no {url}/missing" in read(f"{url}/missing", tmp_path)["error"]
    assert "check the address and the connection" in read("http://127.0.0.1:9/data", tmp_path)["error"]


def test_a_dataset_on_the_hub(shipped, expected, tmp_path):
    files = {p.relative_to(shipped).as_posix(): p.read_bytes() for p in shipped.rglob("*") if p.is_file()}
    with HubServer() as hub:
        hub.add("org/games", {f"dataset/{path}": data for path, data in files.items() if ".bczoo" not in path})
        env = hub.env(tmp_path / "hub")
        assert read("hf://datasets/org/games", tmp_path, env) == {"found": expected, "problems": [""] * 5}
        hub.requests.clear()
        assert read("hf://datasets/org/games/dataset", tmp_path / "again", env)["found"] == expected
        assert read("hf://datasets/org/games", tmp_path, env)["found"] == expected
        assert "there is no hf://datasets/org/none" in read("hf://datasets/org/none", tmp_path, env)["error"]
    assert "check the address and the connection" in read("hf://datasets/org/games", tmp_path, env)["error"]


def test_a_bucket(shipped, expected, tmp_path):
    pytest.importorskip("s3fs", reason="needs bczoo[s3]")
    moto = pytest.importorskip("moto.server", reason="needs moto[s3,server]")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = dict(os.environ) | {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    upload = "import s3fs, sys; s3 = s3fs.S3FileSystem(); s3.mkdir('bucket'); s3.put(sys.argv[1], 'bucket/data', True)"
    try:
        subprocess.run([sys.executable, "-c", upload, str(shipped)], env=env, check=True, timeout=120)
        assert read("s3://bucket/data", tmp_path, env) == {"found": expected, "problems": [""] * 5}
        assert read("s3://bucket/data/batch_00002.tar", tmp_path, env)["found"].keys() == {"rec-2", "rec-3"}
        assert "there is no s3://missing/data" in read("s3://missing/data", tmp_path, env)["error"]
    finally:
        server.stop()


@pytest.fixture
def memory(shipped, tmp_path, monkeypatch):
    """The same files in fsspec's memory, for what needs no server."""
    monkeypatch.setenv("BCZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    fs = fsspec.filesystem("memory")
    fs.put(str(shipped), "/data", recursive=True)
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_roots_of_both_kinds_in_one_list(memory, shipped):
    index = open_index(["memory://data", shipped], KEYBOARD)
    assert len(index.usable) == 10 and len(index.packs) == 3 + 2
    with located("memory://data/batch_00000.tar.gz/dataset/rec-1") as folder:
        assert (folder / "annotation.proto").is_file()
    with located("memory://data/below/loose") as folder:
        assert (folder / "annotation.proto").is_file()


def test_a_hiccup_is_tried_again_and_no_more_than_that(memory, monkeypatch):
    monkeypatch.setattr(cache, "PAUSE_S", 0.0)
    failing = []
    opened = memory.open

    def hiccup(path, *arguments, **options):
        if len(failing) < failures:
            failing.append(path)
            raise ConnectionResetError("the other end has gone")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(memory), "open", lambda self, *a, **k: hiccup(*a, **k))
    failures = cache.TRIES - 1
    assert len(open_index("memory://data", KEYBOARD).usable) == 5
    failures, failing = 100, []
    with pytest.raises(UserError, match=r"memory://data/batch_00000.tar.gz cannot be read \(ConnectionResetError"):
        open_index("memory://data", KEYBOARD, fps=10.0, cache=Cache(Path(os.environ["BCZOO_CACHE_DIR"]) / "new"))
    assert len(failing) == cache.TRIES
    failures = 0
    assert len(open_index("memory://data", KEYBOARD, fps=10.0).usable) == 5  # the network's fault is not remembered


def test_a_broken_archive_in_a_store_is_broken_not_unreachable(memory):
    memory.pipe("/data/bad.tar.gz", b"no archive" * 1000)
    index = open_index("memory://data", KEYBOARD)
    assert dict(zip(index.names.tolist(), index.problems.tolist(), strict=True))["bad.tar.gz"].startswith(
        "the archive is"
    )


def test_what_is_wrong_with_a_url_is_one_line(memory, monkeypatch):
    memory.mkdir("/empty")
    memory.pipe("/empty/notes.txt", b"nothing here")
    with pytest.raises(NoRecordingsError, match="memory://empty holds neither recordings nor archives"):
        open_index("memory://empty", KEYBOARD)
    with pytest.raises(UserError, match="nowhere://x cannot be read"):
        open_index("nowhere://x", KEYBOARD)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install 'bczoo\[s3\]'"):
        stores.files_of("s3://bucket/data")
