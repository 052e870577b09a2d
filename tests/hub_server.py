"""A small hub on loopback: as much of the Hugging Face Hub's API as `huggingface_hub` speaks here.

It keeps every request, and fails, cuts or keeps silent where a test says so.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

WRITER, READER = "hf_writer", "hf_reader"  # tokens; the first may write below "somebody"

NO_MORE: Mapping[str, str] = {}


@dataclass
class Repository:
    """Files by commit; a branch or a tag names a commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Put files over those of `ref`, and give the new commit."""
        merged = {**self.files(ref), **files}
        digest = hashlib.sha1(f"{len(self.commits)} {sorted(merged)}".encode())
        commit = digest.hexdigest()
        self.commits[commit] = merged
        self.refs[ref] = commit
        return commit

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.find(revision) or "", {})


class Hub:
    """The state that a test sets up and reads; `running` serves it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}  # uploaded, by sha256
        self.requests: list[str] = []  # "METHOD /path"
        self.status: dict[str, int] = {}  # what to answer where the path holds the key
        self.short: set[str] = set()  # files that come with half of their bytes
        self.broken: set[str] = set()  # files whose connection breaks, once, after half of them
        self.silent: set[str] = set()  # paths that get no answer
        self.closing = threading.Event()
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> Repository:
        repository = self.repositories.setdefault(name, Repository(**settings))
        repository.commit(files)
        return repository

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        """Serve on a free port of loopback until the end of the block."""
        handler = type("Handler", (_Handler,), {"hub": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = False  # closing waits for them: none is left behind
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}"
            try:
                yield self
            finally:
                self.closing.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def handle_any(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.query = {key: values[0] for key, values in parse_qs(query).items()}
        self.hub.requests.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if any(part in self.path for part in self.hub.silent):
            self.hub.closing.wait(20)
            return
        for part, status in self.hub.status.items():
            if part in self.path:
                return self.answer({"error": "the test says so"}, status)
        for method, pattern, answer in ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, self.path)):
                return answer(self, *map(unquote, match.groups()))
        self.answer({"error": f"no such page: {self.path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: object) -> None: ...

    def answer(self, value: object, status: int = 200, code: str = "") -> None:
        self.send(json.dumps(value).encode(), status, {"X-Error-Code": code})

    def refuse(self, status: int, code: str = "Forbidden") -> None:
        self.answer({"error": code}, status, code)

    def send(self, body: bytes, status: int = 200, headers: Mapping[str, str] = NO_MORE) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Give a repository and a commit, or answer why not."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.token != WRITER):
            return self.refuse(404 if self.token else 401, "RepoNotFound")
        commit = repository.find(revision)
        if commit is None and repository.commits:
            return self.refuse(404, "RevisionNotFound")
        return repository, commit or ""

    def may_write(self, name: str) -> bool:
        allowed = self.token == WRITER and name.startswith("somebody/")
        if not allowed:
            self.refuse(403 if self.token in (WRITER, READER) else 401)
        return allowed

    def models(self) -> None:
        author, search = self.query["author"] + "/", self.query["search"].lower()
        ids = [id for id in self.hub.repositories if id.startswith(author)]
        self.answer([{"id": id} for id in ids if search in id.lower()])

    def info(self, name: str, revision: str = "main") -> None:
        if found := self.find(name, revision):
            repository, commit = found
            files = [{"rfilename": name} for name in repository.files(commit)]
            self.answer(
                {"id": name, "sha": commit, "siblings": files, "private": repository.private}
            )

    def resolve(self, name: str, revision: str, file: str) -> None:
        if not (found := self.find(name, revision)):
            return
        repository, commit = found
        if repository.gated and self.token != READER:
            return self.refuse(403 if self.token else 401, "GatedRepo")
        if file not in repository.files(commit):
            return self.refuse(404, "EntryNotFound")
        data = repository.files(commit)[file]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        if self.command == "HEAD":
            return self.send(data, 200, headers)
        if file in self.hub.broken:
            self.hub.broken.discard(file)
            return self.send(
                data[: len(data) // 2], 200, {**headers, "Content-Length": f"{len(data)}"}
            )
        if file in self.hub.short:
            data = data[: len(data) // 2]
        begin = int(re.sub(r"\D", "", self.headers.get("Range") or "0"))
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send(data[begin:], 206 if begin else 200, headers)

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.may_write(name):
            there = name in self.hub.repositories
            private = wanted.get("visibility") == "private"
            self.hub.repositories.setdefault(name, Repository(private=private))
            self.answer({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def branch(self, name: str, branch: str) -> None:
        if self.may_write(name):
            refs = self.hub.repositories[name].refs
            there = branch in refs
            refs.setdefault(branch, refs.get("main", ""))
            self.answer({}, 409 if there else 200)

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if self.may_write(name):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer({"files": modes})

    def batch(self, name: str) -> None:
        if self.may_write(name):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}"}}}
                for wanted in json.loads(self.body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self.send(b"")

    def commit(self, name: str, revision: str) -> None:
        if not self.may_write(name):
            return
        files = {}
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.repositories[name].commit(files, revision)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.answer({"success": True, "commitOid": commit, "commitUrl": url})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: tuple[tuple[tuple[str, ...], str, Callable[..., None]], ...] = (
    (("GET",), r"/api/models", _Handler.models),
    (("GET",), rf"/api/models/{_NAME}", _Handler.info),
    (("GET",), rf"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    (("POST",), rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/blobs/(\w+)", _Handler.upload),
    (("POST",), rf"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
)
