"""The small Hub of the tests, with the real client in other processes: what it shows is what users of the Hub see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

CARD = b"---\nlicense: mit\n---\n# A policy\n"
CONFIG = b'{"width": 32}\n'
WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
LONG = bytes(range(251)) * 48_000  # 12 MB: the client writes in steps of 10 MiB, and resumes after the last one
STEP = 10 * 2**20

PROLOGUE = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api, given = HfApi(), json.loads(sys.argv[1])
def outcome(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def client(env: dict[str, str], code: str, **given) -> dict:
    """Runs the code in a process of its own, as its environment is read at import; returns what it left in ``out``."""
    code = f"{PROLOGUE}\nout = {{}}\n{code}\nprint(json.dumps(out))"
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given, default=str)], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def read(folder: str | Path) -> dict[str, bytes]:
    """The files of a snapshot, without those that the client or the Hub put there."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return {path: data for path, data in found.items() if not path.startswith((".cache/", ".gitattributes"))}


def downloads(hub: HubServer, path: str) -> list[str | None]:
    """The ranges that were asked for, one per download of the file."""
    return [r.range for r in hub.requests if r.method == "GET" and r.path.endswith(f"/{path}")]


def test_what_was_pushed_is_pulled_by_branch_tag_and_commit(hub, tmp_path):
    first = {"README.md": CARD, "config.json": CONFIG, "model.safetensors": WEIGHTS, "more/notes.txt": b"", "a b": b"1"}
    second = {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]}
    for name, files in (("first", first), ("second", second)):
        for path, data in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
    out = client(
        hub.env(tmp_path / "home"),
        """
url = api.create_repo("me/policy", private=True)
out["url"], out["again"] = url, api.create_repo("me/policy", exist_ok=True)
out["user"] = api.whoami()["name"]
one = api.upload_folder(repo_id="me/policy", folder_path=given["first"])
same = api.upload_folder(repo_id="me/policy", folder_path=given["first"])
api.create_tag("me/policy", tag="v1")
api.create_branch("me/policy", branch="try/2", exist_ok=True)
api.create_branch("me/policy", branch="try/2", exist_ok=True)
two = api.upload_folder(
    repo_id="me/policy", folder_path=given["second"], revision="try/2", delete_patterns=["more/*", "R*"]
)
out["commits"] = [one.oid, same.oid, two.oid]
out["folders"] = {r: snapshot_download("me/policy", revision=r) for r in ("main", "v1", "try/2", one.oid, two.oid)}
out["file"] = hf_hub_download("me/policy", "model.safetensors", revision="try/2")
out["tree"] = [e.path for e in api.list_repo_tree("me/policy", recursive=True)]
out["top"] = [e.path for e in api.list_repo_tree("me/policy")]
out["info"] = [e.path for e in api.get_paths_info("me/policy", ["a b", "more", "none"])]
out["private"] = api.model_info("me/policy").private
""",
        first=tmp_path / "first",
        second=tmp_path / "second",
    )
    one, same, two = out["commits"]
    assert out["url"] == out["again"] == f"{hub.url}/me/policy" and out["user"] == "tester" and out["private"]
    assert same == one != two
    changed = {"a b": b"1"} | second
    assert {r: read(folder) for r, folder in out["folders"].items()} == {
        "main": first, "v1": first, one: first, "try/2": changed, two: changed
    }  # fmt: skip
    assert Path(out["file"]).read_bytes() == second["model.safetensors"]
    attributes = {".gitattributes": hub.files("me/policy")[".gitattributes"]}
    assert hub.files("me/policy") == attributes | first and hub.files("me/policy", "try/2") == attributes | changed
    assert out["tree"] == sorted({*attributes, *first, "more"}) and set(out["tree"]) - set(out["top"]) == {
        "more/notes.txt"
    }
    assert out["info"] == ["a b", "more"]
    assert len([r for r in hub.requests if r.method == "PUT"]) == 2  # only large files, each once


def test_who_sees_what(hub, tmp_path):
    hub.add("me/open", {"config.json": CONFIG})
    hub.add("me/private", {"config.json": CONFIG}, private=True)
    hub.add("me/gated", {"config.json": CONFIG}, gated=True)
    hub.add("me/hostile", {"../out.txt": b"1"})
    code = """
for name in ("me/open", "me/private", "me/gated", "me/none", "me/hostile"):
    out[name] = [outcome(snapshot_download, name), outcome(hf_hub_download, name, "config.json")]
out["push"] = outcome(api.upload_file, repo_id="me/open", path_in_repo="a", path_or_fileobj=b"1")
out["create"] = outcome(api.create_repo, "me/new")
out["revision"] = [
    outcome(snapshot_download, "me/open", revision="none"),
    outcome(hf_hub_download, "me/open", "config.json", revision="0" * 40),
    outcome(api.upload_file, repo_id="me/open", path_in_repo="a", path_or_fileobj=b"1", revision="none"),
]
out["file"] = outcome(hf_hub_download, "me/open", "none.json")
"""
    anonymous = client(hub.env(tmp_path / "anonymous", token=False), code)
    assert anonymous["me/private"] == anonymous["me/none"] == ["RepositoryNotFoundError"] * 2
    assert anonymous["me/gated"] == ["GatedRepoError"] * 2
    assert anonymous["push"] == anonymous["revision"][2] == "RepositoryNotFoundError"
    assert anonymous["create"] == "HfHubHTTPError"

    user = client(hub.env(tmp_path / "user"), code)
    for name in ("me/private", "me/gated"):
        folder, file = user[name]
        assert read(folder) == {"config.json": CONFIG} and Path(file).read_bytes() == CONFIG
    assert user["me/none"] == ["RepositoryNotFoundError"] * 2
    assert user["revision"][2] == "RevisionNotFoundError"
    assert hub.files("me/open")["a"] == b"1" and "me/new" in hub.repos

    for out, home in ((anonymous, "anonymous"), (user, "user")):
        assert read(out["me/open"][0])["config.json"] == CONFIG
        assert out["me/hostile"] == ["ValueError", "RemoteEntryNotFoundError"]  # the client refuses paths outside
        assert not list((tmp_path / home).rglob("out.txt"))
        assert out["revision"][:2] == ["RevisionNotFoundError"] * 2
        assert out["file"] == "RemoteEntryNotFoundError"

    stranger = client(hub.env(tmp_path / "stranger") | {"HF_TOKEN": "hf_wrong"}, code)
    assert stranger["me/open"] == stranger["me/private"] == ["HfHubHTTPError"] * 2


def test_a_download_that_breaks_off_goes_on_where_the_last_step_ended(hub, tmp_path):
    hub.add("me/policy", {"config.json": CONFIG, "model.safetensors": LONG})
    hub.break_after("model.safetensors", STEP + 100_000)
    hub.break_after("model.safetensors", 1000)  # of the rest
    out = client(hub.env(tmp_path), 'out["folder"] = snapshot_download("me/policy")')
    assert read(out["folder"]) == {"config.json": CONFIG, "model.safetensors": LONG}
    first, *resumed = downloads(hub, "model.safetensors")
    assert first is None and resumed == [f"bytes={STEP}-"] * 2
    assert downloads(hub, "config.json") == [None]


def test_a_pull_that_failed_can_be_repeated(hub, tmp_path):
    """Whole files are not loaded again. What the client had of the broken one is gone, so nothing is said of ranges."""
    hub.add("me/policy", {"a.json": CONFIG, "model.safetensors": WEIGHTS})
    for _ in range(20):  # more often than the client tries
        hub.break_after("model.safetensors", 2_000_000)
    code = """
import time
time.sleep = lambda seconds: None  # the pauses between the attempts
out["got"] = outcome(snapshot_download, "me/policy", max_workers=1)
"""
    assert client(hub.env(tmp_path), code)["got"].endswith("Error")
    hub.cuts.clear()
    folder = client(hub.env(tmp_path), code)["got"]
    assert read(folder) == {"a.json": CONFIG, "model.safetensors": WEIGHTS}
    assert downloads(hub, "a.json") == [None]


def test_the_cache_serves_without_the_server(tmp_path):
    pull = 'out["got"] = outcome(snapshot_download, "me/policy", **given)'
    with HubServer() as hub:
        env = hub.env(tmp_path)
        commit = hub.add("me/policy", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
        folder = client(env, pull)["got"]
        seen = len(hub.requests)
    code = f"""
out["local"] = outcome(snapshot_download, "me/policy", local_files_only=True)
out["plain"] = outcome(snapshot_download, "me/policy", revision="{commit}")
out["none"] = outcome(snapshot_download, "me/other")
out["push"] = outcome(api.create_repo, "me/policy", exist_ok=True)
"""
    stopped = client(env, code)
    assert stopped == {"local": folder, "plain": folder, "none": "LocalEntryNotFoundError", "push": "ConnectError"}
    offline = client(env | {"HF_HUB_OFFLINE": "1"}, code)
    assert offline == stopped | {"push": "OfflineModeIsEnabled"}
    assert read(folder) == {"config.json": CONFIG, "model.safetensors": WEIGHTS} and len(hub.requests) == seen


def test_the_environment_is_this_servers_alone(hub, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    env = hub.env(tmp_path, token=False)
    assert {k: v for k, v in env.items() if v != os.environ.get(k)} == {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"
    }  # fmt: skip
    assert not {"HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "http_proxy"} & set(env)
    assert hub.env(tmp_path)["HF_TOKEN"] == hub.token
