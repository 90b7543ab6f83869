"""A small Hub for tests: what the Hugging Face Hub answers to its client about models, and to readers of datasets.

Place in the tests: subprocesses run the real ``huggingface_hub`` against it, with the environment of ``HubServer.env``
(the client reads its endpoint when it is imported). Everything is kept in memory and served from loopback.

Models and datasets share one list of names. Not here, and refused: Spaces, uploads of datasets, pull requests, Xet
storage, uploads in several parts, deletion of branches and repositories. Large files are sent from the same address;
the real Hub redirects to another host.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

USER = "tester"
LFS_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin", ".npz", ".zip", ".mp4")
LFS_BYTES = 10_000_000  # from here on any file is a large one
PAGE = 5  # entries of a listing per answer: few, so that tests turn pages
NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
KIND = "(?:models|datasets)"


class Refused(Exception):
    """An answer that is an error, with the code by which the client chooses its exception."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        message = " ".join(message.encode("ascii", "replace").decode().split())  # a header is one line of ASCII
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


class Request(NamedTuple):
    """A line of the log: what a test may ask about the traffic."""

    method: str
    path: str
    range: str | None


@dataclass
class Reply:
    """What goes back; ``cut`` is how much of the body is sent before the connection is closed."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def reply_json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return Reply(json.dumps(data).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


@dataclass(frozen=True)
class File:
    """One content. Large files have the SHA-256 as identity, all others the hash that git gives them."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git keeps in place of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        kept = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """As listings show it."""
        size = len(self.data)
        lfs = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": len(self.pointer)}} if self.lfs else {}
        return {"type": "file", "path": path, "size": size, "oid": self.oid} | lfs


def is_large(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size >= LFS_BYTES


def listing(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Every file and every folder by path, sorted."""
    entries = {path: file.entry(path) for path, file in files.items()}
    for folder in {path[: slash.start()] for path in files for slash in re.finditer("/", path)}:
        oid = hashlib.sha1(folder.encode()).hexdigest()
        entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return dict(sorted(entries.items()))


@dataclass
class Repo:
    """Commits by hash, and the names that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The Hub, too, begins with this file, so a pull brings more than was pushed."""
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit("main", {".gitattributes": File(rules.encode(), lfs=False)})

    def find(self, revision: str) -> str:
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        if revision not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revision

    def commit(self, branch: str, files: dict[str, File]) -> str:
        """A new state of the branch. The count keeps hashes of equal states apart, as the time does in git."""
        content = sorted((path, file.oid) for path, file in files.items())
        name = hashlib.sha1(json.dumps([len(self.commits), content]).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


# name of the method of Handler, HTTP method, whether a token is needed, path
ROUTES = [
    ("who_am_i", "GET", True, "/api/whoami-v2"),
    ("validate_card", "POST", False, "/api/validate-yaml"),
    ("create_repo", "POST", True, "/api/repos/create"),
    ("repo_info", "GET", False, f"/api/{KIND}/{NAME}(?:/revision/{REVISION})?"),
    ("list_tree", "GET", False, f"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?"),
    ("paths_info", "POST", False, f"/api/{KIND}/{NAME}/paths-info/{REVISION}"),
    ("create_ref", "POST", True, f"/api/{KIND}/{NAME}/(?P<kind>branch|tag)/(?P<at>[^/]+)"),
    ("choose_upload_modes", "POST", True, f"/api/{KIND}/{NAME}/preupload/{REVISION}"),
    ("offer_uploads", "POST", True, rf"/{NAME}\.git/info/lfs/objects/batch"),
    ("take_large_file", "PUT", False, "/large-files/(?P<oid>[0-9a-f]{64})"),
    ("verify_large_file", "POST", True, rf"/{NAME}\.git/info/lfs/objects/verify"),
    ("make_commit", "POST", True, f"/api/{KIND}/{NAME}/commit/{REVISION}"),
    ("download", "GET", False, f"(?:/datasets)?/{NAME}/resolve/{REVISION}/(?P<path>.+)"),
]


class Handler(BaseHTTPRequestHandler):
    """Reads a request, finds the method that answers it, sends the answer.

    Speaks HTTP/1.0, one connection per request, so that no open connection outlives a stopped server.
    """

    hub: HubServer

    def handle_any(self) -> None:
        self.address = urlsplit(self.path)
        self.query = parse_qs(self.address.query)
        # read in any case: closing a connection with unread input would reset it, and the client miss the answer
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, unquote(self.address.path), self.headers.get("Range")))
            try:
                reply = self.answer(self.address.path)
            except Refused as error:
                reply = reply_json({"error": str(error)}, error.status, error.headers)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
            self.send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for key, value in (reply.headers | {"Content-Length": str(len(reply.body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut])

    def log_message(self, *args: Any) -> None:
        """Silent: tests have ``HubServer.requests``."""

    def answer(self, path: str) -> Reply:
        """By the first route that fits: its method is called with the path's groups, and with the repository."""
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {self.hub.token}"):
            raise Refused(401, None, "Invalid credentials in Authorization header")
        self.signed_in = sent is not None
        for answer, method, signed, pattern in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                groups: dict[str, Any] = {key: unquote(value or "") for key, value in found.groupdict().items()}
                if "name" in groups:
                    groups["repo"] = self.open(groups["name"], signed)
                elif signed and not self.signed_in:
                    raise Refused(401, None, "Invalid username or password.")
                return getattr(self, answer)(**groups)
        raise Refused(404, None, f"Not served here: {self.command} {path}")

    def open(self, name: str, signed: bool) -> Repo:
        """Without a token, private repositories are not told apart from missing ones.

        The client takes a bare 401 for a missing repository at https addresses only, so the code is always sent.
        """
        repo = self.hub.repos.get(name)
        if not self.signed_in and (signed or repo is None or repo.private):
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        if repo is None:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def who_am_i(self) -> Reply:
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return reply_json({"type": "user", "name": USER, "orgs": [], "auth": auth})

    def validate_card(self) -> Reply:
        """Only whether a card has metadata, which is a warning there, too; any metadata is taken as valid."""
        found = re.match(r"---\n.*?\n---\s", json.loads(self.body)["content"], re.DOTALL)
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return reply_json({"errors": [], "warnings": [] if found else [warning]})

    def create_repo(self) -> Reply:
        wanted = json.loads(self.body)
        if wanted.get("type", "model") != "model":
            raise Refused(404, None, "Only models are served here.")
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return reply_json(answer | {"error": "You already created this model repo"}, status=409)
        private = wanted.get("visibility") == "private" or wanted.get("private")  # newer clients, older clients
        self.hub.repos[name] = Repo(private=bool(private))
        return reply_json(answer)

    def repo_info(self, repo: Repo, name: str, revision: str) -> Reply:
        commit = repo.find(revision or "main")
        files = sorted(repo.commits[commit].items())
        sized = "blobs" in self.query
        siblings = [{"rfilename": path} | ({"size": len(file.data)} if sized else {}) for path, file in files]
        state = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
        return reply_json({"id": name, "modelId": name, "sha": commit, "tags": [], "siblings": siblings} | state)

    def list_tree(self, repo: Repo, name: str, revision: str, folder: str) -> Reply:
        prefix = f"{folder}/" if folder else ""
        below = {p: e for p, e in listing(repo.commits[repo.find(revision)]).items() if p.startswith(prefix)}
        if folder and not below:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", [""])[0].lower() != "true":
            below = {p: e for p, e in below.items() if "/" not in p.removeprefix(prefix)}
        start = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(below):
            query = urlencode(self.query | {"cursor": [start + PAGE]}, doseq=True)
            more = {"Link": f'<{self.hub.url}{self.address.path}?{query}>; rel="next"'}
        return reply_json(list(below.values())[start : start + PAGE], headers=more)

    def paths_info(self, repo: Repo, name: str, revision: str) -> Reply:
        """What is known of the named files and folders; names that do not exist are left out."""
        known = listing(repo.commits[repo.find(revision)])
        return reply_json([known[path] for path in parse_qs(self.body.decode()).get("paths", []) if path in known])

    def create_ref(self, repo: Repo, name: str, kind: str, at: str) -> Reply:
        """The path ends with the branch that is wanted, but with the revision that gets the tag."""
        wanted, names = json.loads(self.body), repo.branches if kind == "branch" else repo.tags
        new, start = (at, wanted.get("startingPoint", "main")) if kind == "branch" else (wanted["tag"], at)
        commit = repo.find(start)
        if new in names:
            raise Refused(409, None, f"Reference already exists: {new}")
        names[new] = commit
        return reply_json({})

    def choose_upload_modes(self, repo: Repo, name: str, revision: str) -> Reply:
        """Which files are large, and what is there already: the client leaves unchanged files out of the commit."""
        there = repo.commits[repo.find(revision)]
        answer = []
        for file in json.loads(self.body)["files"]:
            path, mode = file["path"], "lfs" if is_large(file["path"], file["size"]) else "regular"
            known = {"oid": there[path].etag} if path in there else {}
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        return reply_json({"files": answer})

    def offer_uploads(self, repo: Repo, name: str) -> Reply:
        """Where to put each large file; nothing to do for content that was uploaded before."""
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify"}
                item["actions"] = {"upload": {"href": f"{self.hub.url}/large-files/{item['oid']}"}, "verify": verify}
        return reply_json({"transfer": "basic", "objects": objects})

    def take_large_file(self, oid: str) -> Reply:
        """Without a token, as with the signed addresses of the real Hub."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, None, "The content is not what its name says.")
        self.hub.large_files[oid] = self.body
        return Reply(b"")

    def verify_large_file(self, repo: Repo, name: str) -> Reply:
        wanted = json.loads(self.body)
        if len(self.hub.large_files.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, None, "This large file was not uploaded.")
        return reply_json({})

    def make_commit(self, repo: Repo, name: str, revision: str) -> Reply:
        head = repo.find(revision)
        if revision not in repo.branches or "create_pr" in self.query:
            raise Refused(400, None, "Commits go to branches here.")
        files = dict(repo.commits[head])
        for line in self.body.splitlines():
            operation = json.loads(line)
            self.apply(files, head, operation["key"], operation["value"])
        commit = repo.commit(revision, files)
        return reply_json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def apply(self, files: dict[str, File], head: str, key: str, value: dict[str, Any]) -> None:
        """One line of a commit, done to the files."""
        path = value.get("path", "")
        if key == "header" and value.get("parentCommit", head) != head:
            raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile" and value["oid"] not in self.hub.large_files:
            raise Refused(400, None, f"The large file {path} was not uploaded.")
        elif key == "lfsFile":
            files[path] = File(self.hub.large_files[value["oid"]], lfs=True)
        elif key.startswith("deleted"):
            folder = path.rstrip("/") + "/" if key == "deletedFolder" else None
            gone = [p for p in files if p == path or (folder and p.startswith(folder))]
            if not gone:
                raise Refused(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            for p in gone:
                del files[p]

    def download(self, repo: Repo, name: str, revision: str, path: str) -> Reply:
        if repo.gated and not self.signed_in:
            raise Refused(401, "GatedRepo", f"Access to model {name} is restricted. Please log in.")
        commit = repo.find(revision)
        if path not in repo.commits[commit]:
            raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        file = repo.commits[commit][path]
        reply = self.part_of(file.data, self.headers.get("Range", ""))
        reply.headers |= {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.lfs:
            reply.headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        if self.command == "GET" and self.hub.cuts.get(path):
            reply.cut = self.hub.cuts[path].pop(0)
        return reply

    def part_of(self, data: bytes, wanted: str) -> Reply:
        """The range of bytes that was asked for, or all."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if not asked:
            return Reply(data)
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start > end:
            raise Refused(416, None, "Range Not Satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
        return Reply(data[start : end + 1], 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"})


class HubServer:
    """``with HubServer() as hub:`` serves at ``hub.url`` until the block ends, or until ``stop``."""

    token = "hf_" + "t" * 34

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.lock = threading.Lock()
        self.repos: dict[str, Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.requests: list[Request] = []

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def env(self, home: Path, token: bool = True) -> dict[str, str]:
        """This process's environment for a client of this server alone: own cache in ``home``, no proxy, no Xet."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.upper().endswith("_PROXY")}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}
        kept |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ({"HF_TOKEN": self.token} if token else {})

    def break_after(self, path: str, bytes: int) -> None:
        """The next download of that file ends after so many bytes; called again, the one after it, too."""
        self.cuts.setdefault(path, []).append(bytes)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What is there, ``.gitattributes`` of a new repository included."""
        found = self.repos[repo]
        return {path: file.data for path, file in found.commits[found.find(revision)].items()}

    def add(
        self, repo: str, files: dict[str, bytes], private: bool = False, revision: str = "main", gated: bool = False
    ) -> str:
        """Puts files there as a push would, and returns the commit. A branch that is missing starts from main.

        ``private`` and ``gated`` count for a new repository; a gated one shows its listing to all, its files only to
        users with a token. Paths are taken as they are, hostile ones, too.
        """
        there = self.repos.setdefault(repo, Repo(private, gated))
        added = {path: File(data, is_large(path, len(data))) for path, data in files.items()}
        self.large_files |= {file.sha256: file.data for file in added.values() if file.lfs}
        head = there.branches.get(revision, there.branches["main"])
        return there.commit(revision, there.commits[head] | added)
