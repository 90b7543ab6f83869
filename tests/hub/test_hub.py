"""Publishing and fetching policies over the wire: the real client in other processes, a small Hub in this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
import pytest
import tiny
import torch
from hub_server import HubServer

from bczoo import BCPolicy
from bczoo.train.callbacks.checkpoint import LAST

STEP = 10 * 2**20  # bytes after which the client notes how far it has come
FILES = {"README.md", "config.json", "model.safetensors"}
PROLOGUE = """
import contextlib, io, json, sys
given, out = json.loads(sys.argv[1]), {}
sys.path.insert(0, given["tests"])
import tiny, torch
from bczoo import BCPolicy
from bczoo.cli import main
from bczoo.core.errors import UserError

def command(*words):
    '''Status, output and errors of a command; an exception that leaves it is a traceback to its user.'''
    told, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(wrong):
        try:
            status = main([str(w) for w in words])
        except BaseException as error:
            status = repr(error)
    return [status, told.getvalue().strip(), wrong.getvalue().strip()]

def attempt(call, *args, **kwargs):
    '''The result, or the kind and words of an error.'''
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def load(*args, **kwargs):
    '''The sum of a policy's logits on a batch.'''
    policy = BCPolicy.from_pretrained(*args, **kwargs)
    assert not policy.training
    batch = tiny.tiny_batch(policy)
    with torch.no_grad():
        logits = policy(batch["frames"], batch["actions"], batch.get("text"))
    return float(sum(values.double().square().sum() for values in logits.values()))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def client(env: dict[str, str], code: str, **given: object) -> dict:
    """Runs code in a process of its own; returns what it left in ``out``."""
    code = f"{PROLOGUE}\n{code}\nprint(json.dumps(out))"
    given["tests"] = Path(__file__).parents[1]
    env = {k: v for k, v in env.items() if k != "BCZOO_TRACEBACK"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given, default=str)], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def one_line(result: list, *words: str) -> str:
    """A command that ended with one line for its user; the line."""
    status, _, wrong = result
    assert status == 1, result
    (line,) = wrong.splitlines()
    assert line.startswith("bczoo: ") and "Traceback" not in line
    for word in words:
        assert word in line
    return line


def contents(folder: str | Path) -> dict[str, bytes]:
    """The files of a folder, without those that the client or the Hub put there."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return {path: data for path, data in found.items() if not path.startswith((".cache/", ".gitattributes"))}


def on_hub(hub: HubServer, repository: str, revision: str = "main") -> dict[str, bytes]:
    return {k: v for k, v in hub.files(repository, revision).items() if k != ".gitattributes"}


def downloads(hub: HubServer, path: str) -> list[str | None]:
    """The ranges that were asked for, one per download of the file."""
    return [r.range for r in hub.requests if r.method == "GET" and r.path.endswith(f"/{path}")]


def answer(policy: BCPolicy) -> float:
    """What ``load`` of the other process tells of the same policy."""
    batch = tiny.tiny_batch(policy.eval())
    with torch.no_grad():
        logits = policy(batch["frames"], batch["actions"], batch.get("text"))
    return pytest.approx(float(sum(values.double().square().sum() for values in logits.values())), rel=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy and its folder."""
    policy = tiny.tiny_policy(seed=3)
    return policy, policy.save_pretrained(tmp_path_factory.mktemp("exported") / "policy", license="mit")


def test_export_push_pull_and_play(hub, tmp_path):
    policy, other = tiny.tiny_policy(seed=1), tiny.tiny_policy(seed=2)
    run = tmp_path / "runs" / "mine"
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(policy)
    trainer.save_checkpoint(run / "checkpoints" / LAST)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine alone")
    bare = {k: v for k, v in contents(tmp_path / "other").items() if k != "README.md"}
    hub.add("me/bare", bare)
    shutil.copytree(tmp_path / "other", tmp_path / "spoilt")
    (tmp_path / "spoilt" / "model.safetensors").write_bytes(b"weights")
    out = client(
        hub.env(tmp_path / "home"),
        """
root = given["root"]
out["not"] = {name: command("push", f"{root}/{name}", "me/refused") for name in ("empty", "spoilt", "nowhere")}
out["not a name"] = [command("push", f"{root}/other", name) for name in ("refused", "a/b/c", "../refused", "a/b c")]
out["export"] = command("export", f"{root}/runs/mine", f"{root}/policy", "--license", "mit", "--dtype", "bfloat16")
(open(f"{root}/policy/notes.txt", "w")).write("mine alone")
out["push"] = command("push", f"{root}/policy", "me/policy", "--private", "true", "--message", "Walks.")
out["pull"] = command("pull", "me/policy")
out["pull out"] = command("pull", "me/policy", "--out", f"{root}/pulled")
out["pulled"] = {name: len(open(f"{root}/pulled/{name}", "rb").read()) for name in given["files"]}
out["main"] = load("me/policy")

out["branch"] = command("push", f"{root}/other", "me/policy", "--revision", "try/2")
out["commit"] = BCPolicy.from_pretrained(f"{root}/other").push_to_hub(
    "me/policy", "pieces", message="In pieces.", shard_size=200_000, license="cc-by-4.0"
)
out["new"] = tiny.tiny_policy(seed=4).push_to_hub("me/new", private=False)
out["again"] = BCPolicy.from_pretrained("me/new").push_to_hub("me/new", shard_size=200_000)  # mapped from the cache
out["whole again"] = BCPolicy.from_pretrained("me/new").push_to_hub("me/new")
commit = out["commit"].rpartition("/")[2]
out["loaded"] = {r: load("me/policy", revision=r) for r in ("main", "try/2", "pieces", commit)}
out["new loaded"] = {r: load("me/new", revision=out[r].rpartition("/")[2]) for r in ("new", "again", "whole again")}
out["dtype"] = str(BCPolicy.from_pretrained("me/policy", dtype=torch.float32).encoder.project.weight.dtype)
out["branches"] = command("pull", "me/policy", "--revision", "pieces", "--out", f"{root}/pieces")
open(f"{root}/pulled/notes.txt", "w").write("mine alone")
out["pull over"] = command("pull", "me/policy", "--revision", "pieces", "--out", f"{root}/pulled")
out["pull beside"] = command("pull", "me/bare", "--out", f"{root}/project")
""",
        root=tmp_path,
        files=[*FILES, "training.json"],
    )
    for result in out["not"].values():
        one_line(result)
    for result in out["not a name"]:
        one_line(result, "org/name")
    created = [r for r in hub.requests if r.path == "/api/repos/create"]
    assert len(created) == 6 and set(hub.repos) == {"me/policy", "me/new", "me/bare"}  # nothing went out for those
    assert not any("refused" in r.path for r in hub.requests)

    assert out["export"][0] == 0 and "bczoo push" in out["export"][1]
    assert out["push"][0] == 0 and out["push"][1] == f"{hub.url}/me/policy/commit/{hub.repos['me/policy'].find('main')}"
    assert hub.repos["me/policy"].private and not hub.repos["me/new"].private
    local = contents(tmp_path / "policy")
    assert local.pop("notes.txt") == b"mine alone" and set(local) == FILES | {"training.json"}
    assert on_hub(hub, "me/policy") == local
    assert out["pull"][0] == out["pull out"][0] == 0
    assert contents(out["pull"][1]) == local and out["pulled"] == {k: len(v) for k, v in local.items()}
    rough = policy.bfloat16()
    assert out["main"] == out["loaded"]["main"] == answer(rough) and out["dtype"] == "torch.float32"

    assert on_hub(hub, "me/policy", "try/2") == contents(tmp_path / "other")
    pieces = on_hub(hub, "me/policy", "pieces")
    assert "model.safetensors" not in pieces and "model.safetensors.index.json" in pieces
    assert contents(tmp_path / "pieces") == pieces and b"cc-by-4.0" in pieces["README.md"]
    # a pull into the same folder leaves nothing of the weights before, and whatever else is there as it is
    assert contents(tmp_path / "pulled") == pieces | {"notes.txt": b"mine alone"}
    assert contents(tmp_path / "project") == bare | {"README.md": b"mine alone"}
    commit = out["commit"].rpartition("/")[2]
    assert hub.repos["me/policy"].branches["pieces"] == commit
    assert out["loaded"] == {"main": answer(rough)} | dict.fromkeys(("try/2", "pieces", commit), answer(other))
    assert b"# policy" in on_hub(hub, "me/policy")["README.md"] and b"# new" in on_hub(hub, "me/new")["README.md"]

    assert set(on_hub(hub, "me/new")) == FILES  # no pieces are left of the push before
    between = set(on_hub(hub, "me/new", out["again"].rpartition("/")[2]))
    assert len(between) > 4 and "model.safetensors" not in between
    assert out["new loaded"] == dict.fromkeys(("new", "again", "whole again"), answer(tiny.tiny_policy(seed=4)))


def test_what_cannot_be_opened_is_told_in_one_line(hub, exported, tmp_path):
    policy, folder = exported
    good = contents(folder)
    for name, options in (("open", {}), ("private", {"private": True}), ("gated", {"gated": True})):
        hub.add(f"me/{name}", good, **options)
    hub.add("me/empty", {"README.md": b"# Nothing yet\n"})
    hub.add("me/broken", good | {"model.safetensors": good["model.safetensors"][:-100]})
    out = client(
        hub.env(tmp_path, token=False),
        """
token = given["token"]
for name in ("private", "none", "gated", "empty", "broken"):
    out[name] = command("pull", f"me/{name}")
    out[f"python {name}"] = attempt(load, f"me/{name}")
out["revision"] = command("pull", "me/open", "--revision", "try/9")
out["python revision"] = attempt(load, "me/open", revision="0123456789abcdef0123456789abcdef01234567")
out["push"] = command("push", given["folder"], "me/mine")
out["python push"] = attempt(BCPolicy.from_pretrained(given["folder"]).push_to_hub, "me/mine")
out["push to others"] = command("push", given["folder"], "me/open")
out["stranger"] = command("pull", "me/private", "--token", "hf_wrong")
out["stranger pushes"] = command("push", given["folder"], "me/open", "--token", "hf_wrong")
out["names"] = [command("pull", name) for name in ("open", "me/open/more", "me/..", "me/op en", "me--/.x", "https://me/open")]
out["python names"] = [attempt(load, name) for name in ("open", "me/open/more", "me/op en", "runs/nowhere", "me--/.x")]
out["with a token"] = command("pull", "me/private", "--token", token)
out["python with a token"] = [load(f"me/{name}", token=token) for name in ("private", "gated", "open")]
out["open"] = load("me/open")
""",
        token=hub.token,
        folder=folder,
    )
    for name in ("private", "none"):
        assert "hf auth login" in one_line(out[name], f"me/{name}", "token")
        assert out[f"python {name}"].startswith("UserError: ") and "hf auth login" in out[f"python {name}"]
    one_line(out["gated"], "me/gated", "terms", "hf auth login")
    assert out["python gated"].startswith("UserError: ") and "terms" in out["python gated"]
    one_line(out["empty"], "config.json")
    one_line(out["broken"], "model.safetensors")
    assert out["python empty"].startswith("UserError: ") and out["python broken"].startswith("UserError: ")
    one_line(out["revision"], "me/open", "'try/9'")
    assert out["python revision"].startswith("UserError: ") and "0123456789abcdef" in out["python revision"]
    for push in ("push", "push to others"):
        assert "token" in one_line(out[push]).lower()
    assert out["python push"].startswith("UserError: ")
    one_line(out["stranger"])
    one_line(out["stranger pushes"], "token")
    for result in out["names"]:
        one_line(result)
    for message in out["python names"]:
        assert message.startswith("UserError: ")
    assert set(hub.repos) == {f"me/{n}" for n in ("open", "private", "gated", "empty", "broken")}
    assert on_hub(hub, "me/open") == good
    status, folder_of_private, _ = out["with a token"]
    assert status == 0 and contents(folder_of_private) == good
    assert out["python with a token"] == [answer(policy)] * 3 and out["open"] == answer(policy)


def test_a_download_that_breaks_off_goes_on_and_hostile_ones_end(hub, exported, tmp_path):
    policy = tiny.tiny_policy(text_dim=100_000)  # 13 MB
    weights = contents(policy.save_pretrained(tmp_path / "long"))
    assert STEP + 500_000 < len(weights["model.safetensors"]) < 2 * STEP
    hub.add("me/long", weights)
    hub.break_after("model.safetensors", STEP + 200_000)
    hub.break_after("model.safetensors", 1000)

    good = contents(exported[1])

    def config(**changes: object) -> bytes:
        content = json.loads(good["config.json"])
        spec = content["policy"]
        return json.dumps(content | {"policy": spec | {"init_args": spec["init_args"] | changes}}).encode()

    run = {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path}/marker"}}
    piece = "model-00001-of-00001.safetensors"
    names = list(policy.state_dict())
    pieces = {k: v for k, v in good.items() if k != "model.safetensors"}

    def index(name: str) -> dict[str, bytes]:
        content = json.dumps({"weight_map": dict.fromkeys(names, name)}).encode()
        return pieces | {"model.safetensors.index.json": content}

    hostile = {
        "call": good | {"config.json": config(decoder=run)},
        "pickle": good | {"model.safetensors": b"\x80\x02cos\nsystem\n."},
        "backbone": good | {"config.json": config(encoder={
            "class_path": "bczoo.ImageEncoder", "init_args": {"backbone": "hf-hub:me/long", "pretrained": True}
        })},
        "named-outside": index("../../evil") | {piece: good["model.safetensors"]},
        "outside": index(f"../../{piece}") | {f"../../{piece}": good["model.safetensors"]},
        # the second one is taken for a piece of the weights by its beginning and its end
        "deep-outside": index(piece) | {piece: good["model.safetensors"], f"model-1/../../../../x-of-{piece}": b"evil"},
        "code": good | {"evil.py": b"raise SystemExit", "model-1-of-2.py": b"", "pytorch_model.bin": b"\x80"},
    }  # fmt: skip
    for name, content in hostile.items():
        hub.add(f"evil/{name}", content)
    before = sorted(p.name for p in tmp_path.iterdir())
    out = client(
        hub.env(tmp_path / "home"),
        """
out["long"] = load("me/long")
for name in given["names"]:
    out[name] = command("pull", f"evil/{name}")
    out[f"python {name}"] = attempt(load, f"evil/{name}")
out["imported"] = sorted(m for m in sys.modules if m.startswith("evil"))
""",
        names=list(hostile),
    )
    assert out["long"] == answer(policy)
    first, *resumed = downloads(hub, "me/long/resolve/" + hub.repos["me/long"].find("main") + "/model.safetensors")
    assert first is None and resumed == [f"bytes={STEP}-"] * 2
    for name in list(hostile)[:-1]:
        one_line(out[name])
        assert out[f"python {name}"].startswith("UserError: ")
    assert "'os.system'" in out["call"][2] and "hf-hub:me/long" in out["backbone"][2]
    assert "../../evil" in out["named-outside"][2]
    assert len([r for r in hub.requests if "me/long" in r.path and "config.json" in r.path]) <= 2  # HEAD and GET

    # what else lies in a repository is not even fetched
    assert out["code"][0] == 0 and out["python code"] == answer(exported[0])
    assert set(contents(out["code"][1])) == FILES and out["imported"] == []
    everything = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in everything if p.name in ("marker", "evil", "evil.py", "pytorch_model.bin")]
    assert not [p for p in everything if p.name.startswith("x-of-")]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "home"])


def stop_when(hub: HubServer, marker: Path) -> None:
    while not marker.exists():
        time.sleep(0.02)
    hub.stop()


def test_what_was_fetched_works_without_the_hub(hub, exported, tmp_path):
    policy, folder = exported
    commit = hub.add("me/policy", contents(folder))
    hub.add("me/policy", {"README.md": b"# newer\n"})
    hub.add("me/second", contents(folder))
    fetch = """
import socket, time
from pathlib import Path
out["here"] = [load("me/policy"), load("me/policy", revision=given["commit"])]
out["elsewhere here"] = load("me/policy", cache_dir=given["cache"])
out["second"] = attempt(load, "me/second", local_files_only=True)
Path(given["marker"]).touch()  # the Hub goes away
address = ("127.0.0.1", int(given["url"].rpartition(":")[2]))
while True:
    try:
        socket.create_connection(address, timeout=1).close()
        time.sleep(0.1)
    except OSError:
        break
"""
    code = """
out["local"] = load("me/policy", local_files_only=True)
out["plain"] = load("me/policy")
out["commit"] = load("me/policy", revision=given["commit"])
out["pull"] = command("pull", "me/policy")
out["elsewhere"] = load("me/policy", cache_dir=given["cache"], local_files_only=True)
out["other"] = command("pull", "me/other")
out["python other"] = [attempt(load, "me/other", local_files_only=local) for local in (True, False)]
out["push"] = command("push", given["folder"], "me/policy")
"""
    given = {"commit": commit, "cache": tmp_path / "cache", "folder": folder, "marker": tmp_path / "fetched"}
    env = hub.env(tmp_path / "home")
    stopping = threading.Thread(target=stop_when, args=(hub, tmp_path / "fetched"), daemon=True)
    stopping.start()
    down = client(env, fetch + code, url=hub.url, **given)
    stopping.join(10)
    seen = len(hub.requests)
    assert down["here"] == [answer(policy)] * 2 and down["elsewhere here"] == answer(policy)
    assert len(downloads(hub, "model.safetensors")) == 2  # once for each of the two caches
    assert down["second"].startswith("UserError: ") and not any("me/second" in r.path for r in hub.requests)
    offline = client(env | {"HF_HUB_OFFLINE": "1"}, code, **given)
    for out in (down, offline):
        for how in ("local", "plain", "commit", "elsewhere"):
            assert out[how] == answer(policy), how
        assert out["pull"][0] == 0 and contents(out["pull"][1]) == contents(folder) | {"README.md": b"# newer\n"}
        one_line(out["other"], "me/other", "cache")
        assert all(message.startswith("UserError: ") and "cache" in message for message in out["python other"])
        one_line(out["push"], "me/policy")
    assert len(hub.requests) == seen
