"""A small Hugging Face Hub on loopback: the endpoints that the real client calls, real files, real hashes."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_" + "x" * 34
USER = "me"
LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Repository:
    """Branch -> commits, the latest last; each is path -> content."""

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches.setdefault(branch, []).append(oid)
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that `revision` names."""
        if revision in self.commits:
            return revision
        return self.branches[revision][-1] if self.branches.get(revision) else None


class Hub:
    """What the server holds, and what goes wrong in it.

    Attributes:
        repositories: By id.
        requests: `METHOD path` of every request.
        drops: Bytes of a file after which its download breaks off, once for each entry.
        damage: Changes the content of a file on its way out.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[str] = []
        self.drops: list[int] = []
        self.damage: Callable[[str, bytes], bytes] = lambda path, content: content

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> content."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.find(revision)]


@contextmanager
def serving(hub: Hub):
    """Serve `hub`; yields the address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, code: str | None = None):
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args):
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {url.path}")
        try:
            self._route()
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send(refusal.status, b"{}", headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self) -> None:
        parts = self.parts
        if parts[:2] == ["api", "whoami-v2"]:
            self._need_token()
            return self._json({"name": USER, "type": "user", "orgs": []})
        if parts[:3] == ["api", "repos", "create"]:
            return self._create()
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[0] == "lfs":
            return self._store(parts[1])
        if len(parts) < 3:
            raise _Refusal(404)
        if parts[1].endswith(".git") and parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch()
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        raise _Refusal(404)

    # ---- Writing --------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        self._need_token()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"http://{self.headers['Host']}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            return self._json(answer, 409)
        repository = self.hub.repositories[repo_id] = Repository(asked.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b""}, "initial commit")
        return self._json(answer)

    def _api(self, repo_id: str, rest: list[str]) -> None:
        repository = self._repository(repo_id)
        action, revision = (rest[0] if rest else "revision"), (rest[1] if len(rest) > 1 else "main")
        if action == "branch":
            self._need_token()
            if revision in repository.branches:
                raise _Refusal(409)
            repository.branches[revision] = [repository.find("main")]
            return self._json({})
        if action == "preupload":
            return self._preupload()
        if action == "commit":
            return self._commit(repository, repo_id, revision)
        oid = self._find(repository, revision)
        files = repository.commits[oid]
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": repo_id, "sha": oid, "siblings": siblings, "private": repository.private})
        if action == "tree":
            return self._json([self._entry(path, content) for path, content in files.items()])
        raise _Refusal(404)

    def _preupload(self) -> None:
        self._need_token()
        asked = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        return self._json(
            {
                "files": [
                    {"path": f["path"], "uploadMode": modes[f["path"].endswith(LFS_SUFFIXES)], "shouldIgnore": False}
                    for f in asked
                ]
            }
        )

    def _batch(self) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"http://{self.headers['Host']}/lfs/{asked['oid']}"
            actions = {} if asked["oid"] in self.hub.objects else {"actions": {"upload": {"href": href}}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        return self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400)
        self.hub.objects[oid] = self.body
        return self._send(200, b"")

    def _commit(self, repository: Repository, repo_id: str, revision: str) -> None:
        self._need_token()
        if repository.find(revision) is None:
            raise _Refusal(404, "RevisionNotFound")
        files, message = dict(repository.commits[repository.find(revision)]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        address = f"http://{self.headers['Host']}/{repo_id}"
        answer = {"success": True}
        if self.query.get("create_pr"):
            revision = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.branches)}"
            answer["pullRequestUrl"] = f"{address}/discussions/{revision.rsplit('/', 1)[-1]}"
        oid = repository.commit(revision, files, message)
        return self._json(answer | {"commitOid": oid, "commitUrl": f"{address}/commit/{oid}"})

    # ---- Reading --------------------------------------------------------------------------------------------------

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._repository(repo_id)
        oid = self._find(repository, revision)
        if path not in repository.commits[oid]:
            raise _Refusal(404, "EntryNotFound")
        content = repository.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        content, status, start = self.hub.damage(path, content), 200, 0
        wanted = self.headers.get("Range")
        if wanted:
            status, start = 206, int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(status, content[start:], headers, breaks=self.command == "GET")

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            raise _Refusal(404 if self._has_token() else 401, "RepoNotFound")
        if repository.private and not self._has_token():
            raise _Refusal(401, "RepoNotFound")
        return repository

    def _find(self, repository: Repository, revision: str) -> str:
        oid = repository.find(revision)
        if oid is None:
            raise _Refusal(404, "RevisionNotFound")
        return oid

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
        return entry

    # ---- Answers --------------------------------------------------------------------------------------------------

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _need_token(self) -> None:
        if not self._has_token():
            raise _Refusal(401)

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict | None = None, breaks: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if breaks and self.hub.drops and len(content) > self.hub.drops[0]:
            self.wfile.write(content[: self.hub.drops.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)


def _oid(path: str, content: bytes) -> str:
    """The hash that names a file: SHA-256 in LFS, else git's SHA-1 of a blob."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
