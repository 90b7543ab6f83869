"""``bczoo data download`` against the small Hub of the tests, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hub_server import HubServer

from bczoo.hub.datasets import PUBLIC

BATCHES = {f"dataset/batch_{i:05}.tar.gz": bytes([i]) * 1000 * i for i in range(1, 13)}
TOY = {
    f"dataset/{name}/{file}": f"{name} {file}".encode()
    for name in ("a", "b")
    for file in ("annotation.proto", "192x192.mp4", "video.mp4")
}


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add(PUBLIC["p2p"].repository, BATCHES | {"data_metadata.parquet": b"table", "README.md": b"# Data"})
        server.add(PUBLIC["p2p-toy"].repository, TOY | {"README.md": b"# Toy"})
        yield server


def download(hub, folder, *words) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    code = "import sys; from bczoo.cli import main; sys.exit(main(sys.argv[1:]))"
    env = hub.env(folder / "hub", token=False) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env.pop("BCZOO_TRACEBACK", None)
    run = subprocess.run(
        [sys.executable, "-c", code, "data", "download", *words], env=env, cwd=folder, capture_output=True, text=True
    )
    return run.returncode, run.stdout, run.stderr


def files(folder) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {path: data for path, data in found.items() if not path.startswith(".cache/")}


def test_batches_are_brought_once(hub, tmp_path):
    status, said, _ = download(hub, tmp_path, "p2p", "--batches", "2-3,11")
    wanted = {path: BATCHES[path] for path in (f"dataset/batch_{i:05}.tar.gz" for i in (2, 3, 11))}
    assert status == 0 and files(tmp_path / "p2p") == wanted
    assert "3 batches, 0.0 MB to p2p\n" in said and "--data.root p2p" in said
    hub.requests.clear()
    status, said, _ = download(hub, tmp_path, "p2p", "--batches", "2,4")
    assert status == 0 and sorted(files(tmp_path / "p2p")) == sorted([*wanted, "dataset/batch_00004.tar.gz"])
    brought = {r.path.rpartition("/")[2] for r in hub.requests if r.method == "GET" and "/resolve/" in r.path}
    assert brought == {"batch_00004.tar.gz"} and "of these are missing" in said


def test_toy_recordings_come_without_the_raw_videos(hub, tmp_path):
    status, said, _ = download(hub, tmp_path, "p2p-toy", "--out", "deep/toy")
    assert status == 0 and "2 recordings" in said
    assert files(tmp_path / "deep" / "toy") == {path: data for path, data in TOY.items() if "video.mp4" not in path}


WRONG = [
    (["p2p"], "batches 1 to 12, 0.1 MB together. Name some of them, such as --batches 1-5"),
    (["p2p", "10-20"], "there is no batch 13"),
    (["p2p", "5-1"], "give numbers such as 1-5"),
    (["p2p", "some"], "give numbers such as 1-5"),
    (["p2p-toy", "1"], "p2p-toy has no batches"),
    (["p2p-all"], "there are p2p-toy, p2p"),
]


def refused(hub, folder, code: str, *given) -> list[str]:
    """The errors of several calls in one other process."""
    code = f"""
import json, sys
from bczoo.core.errors import UserError
from bczoo.hub.datasets import download
{code}
for words in json.loads(sys.argv[1]):
    try:
        download(*words)
    except UserError as error:
        print(json.dumps(str(error)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        env=hub.env(folder / "hub"),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith('"')]


def test_what_is_wrong_with_a_request_is_told(hub, tmp_path):
    errors = refused(hub, tmp_path, "", *(words for words, _ in WRONG))
    assert len(errors) == len(WRONG)
    for error, (_, said) in zip(errors, WRONG, strict=True):
        assert said in error
    assert not (tmp_path / "p2p").exists()


def test_offline_is_one_line(hub, tmp_path):
    hub.stop()
    status, _, wrong = download(hub, tmp_path, "p2p", "--batches", "1")
    assert status == 1 and len(wrong.splitlines()) == 1 and "connection to the Hub failed" in wrong


def test_too_full_a_disk_is_told_before(hub, tmp_path):
    full = (
        "import collections, shutil\nshutil.disk_usage = lambda path: collections.namedtuple('Usage', 'free')(50_000)"
    )
    (error,) = refused(hub, tmp_path, full, ["p2p", "all"])
    assert "the disk has 0.1 MB free, too little for 0.1 MB" in error
    assert not [r for r in hub.requests if "/resolve/" in r.path]
