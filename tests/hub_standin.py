"""A Hub on loopback: what huggingface_hub calls to create, push, list and download a repository.

    with HubStandIn({"my-token": "me"}) as hub:
        os.environ |= hub.environment("my-token")     # before huggingface_hub is imported
        ...
        hub.repos["me/model"].files()["config.json"]

Repositories live in memory. Regular files and LFS files, branches, commits by id, private repositories, tokens (some that may
only read), the check of a card's metadata, and answers that fail on request: `hub.failing["/commit/"] = 500`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results

WRITES = ("commit", "branch", "preupload", "lfs_batch")
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
REPO = r"/api/models/(?P<repo>[^/]+/[^/]+)"


@dataclass
class Repo:
    """Commits (id -> files) and branches (name -> id)."""

    owner: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        commit = hashlib.sha1(f"{self.branches.get(branch)} {message} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubStandIn:
    """The server; `tokens` maps a token to its user, whose are the repositories `user/...`; `readers` may only read."""

    def __init__(self, tokens: dict[str, str], readers: tuple[str, ...] = ()):
        self.tokens, self.readers, self.repos, self.blobs = tokens, readers, {}, {}
        self.failing: dict[str, int] = {}  # part of a path -> the status it answers with
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What a process needs to take this for the Hub. Its variables count from the import of huggingface_hub on."""
        names = {"HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        names |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return names | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", REPO + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", REPO + r"/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", REPO + r"/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", REPO + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", REPO + r"/refs", "refs"),
        ("GET", REPO + r"/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", REPO + r"/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("HEAD|GET", REPO + r"(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("HEAD|GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._read()
        try:
            for part, status in self.hub.failing.items():
                if part in path:
                    raise _Refused(status, "The stand-in was told to fail here.")
            for methods, pattern, name in self.routes:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods.split("|"):
                    self._authorise(match.groupdict().get("repo"), writes=name in WRITES)
                    return getattr(self, name)(**{k: unquote(v or "") for k, v in match.groupdict().items()})
            raise _Refused(404, f"No such route: {self.command} {path}")
        except _Refused as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _authorise(self, name: str | None, writes: bool) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        self.user, self.only_reads = self.hub.tokens.get(token), token in self.hub.readers
        if name is None:
            return
        self.repo = self.hub.repos.get(name)
        hidden = self.repo is not None and self.repo.private and self.user != self.repo.owner
        if self.repo is None or hidden:
            raise _Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if writes and (self.user != self.repo.owner or self.only_reads):
            raise _Refused(403, f"{self.user} may not write to {name}")

    # Routes -----------------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        role = "read" if self.only_reads else "write"
        self._send({"type": "user", "name": self.user, "auth": {"accessToken": {"role": role}}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self.user
        if self.user is None or owner != self.user or self.only_reads:
            raise _Refused(403 if self.user else 401, f"{self.user} may not create repositories of {owner}")
        name = f"{self.user}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name}
        with self.hub.lock:
            if name in self.hub.repos:
                return self._send({"error": "You already created this model repo", **url}, 409)
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repos[name] = Repo(self.user, private)
            self.hub.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._send(url)

    def validate(self) -> None:
        errors = metadata_errors(json.loads(self.body)["content"])
        self._send({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        stored = self._files(revision)
        self._send(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        **({"oid": _oid(file["path"], stored[file["path"]])} if file["path"] in stored else {}),
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}", "header": {}}}
        self._send({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "The content is not what its oid says.")
        self.hub.blobs[oid] = self.body
        self._send({})

    def commit(self, repo: str, revision: str) -> None:
        with self.hub.lock:
            if revision not in self.repo.branches:
                raise _Refused(404, f"No branch {revision}", "RevisionNotFound")
            files = dict(self.repo.files(revision))
            for line in self.body.splitlines():
                operation = json.loads(line)
                kind, value = operation["key"], operation["value"]
                if kind == "header":
                    message = value["summary"]
                    if value.get("parentCommit") not in (None, self.repo.branches[revision]):
                        raise _Refused(412, "A commit has happened since.")
                elif kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                elif kind == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _Refused(404, f"{value['path']} does not exist", "EntryNotFound")
                else:
                    raise _Refused(400, f"The stand-in knows no {kind}.")
            commit = self.repo.commit(revision, files, message)
        self._send({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

    def branch(self, repo: str, revision: str) -> None:
        if revision in self.repo.branches:
            raise _Refused(409, f"The branch {revision} exists.")
        self.repo.branches[revision] = self.repo.branches["main"]
        self._send({})

    def refs(self, repo: str) -> None:
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in self.repo.branches.items()]
        self._send({"branches": branches, "tags": [], "converts": []})

    def commits(self, repo: str, revision: str) -> None:
        self._files(revision)  # refuses an unknown one
        written = zip(self.repo.commits, self.repo.messages, strict=True)
        day = "2026-01-01T00:00:00.000Z"
        entries = [{"id": c, "title": m, "message": m, "date": day, "authors": []} for c, m in written]
        self._send(entries[::-1])

    def info(self, repo: str, revision: str) -> None:
        files = self._files(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        sha = self.repo.resolve(revision or "main")
        self._send({"id": repo, "modelId": repo, "sha": sha, "private": self.repo.private, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str, folder: str) -> None:
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        files = {path: data for path, data in self._files(revision).items() if path.startswith(prefix)}
        if prefix and not files:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        self._send([_entry(path, data) for path, data in sorted(files.items())])

    def paths_info(self, repo: str, revision: str) -> None:
        files = self._files(revision)
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        paths = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        self._send([_entry(path, files[path]) for path in paths if path in files])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        files = self._files(revision)
        commit = {"X-Repo-Commit": self.repo.resolve(revision)}
        if path not in files:
            raise _Refused(404, f"{path} does not exist", "EntryNotFound")
        etag = f'"{_oid(path, files[path])}"'
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(files[path]))} if path.endswith(LFS_SUFFIXES) else {}
        self._send(files[path], headers={**commit, "ETag": etag, **linked, "Accept-Ranges": "none"})

    # Plumbing ---------------------------------------------------------------------------------------------------------

    def _files(self, revision: str) -> dict[str, bytes]:
        if self.repo.resolve(revision) is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.repo.files(revision)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


def metadata_errors(card: str) -> list[str]:
    """What the Hub refuses in the metadata on top of a card: types, characters of identifiers, a model-index out of shape."""
    block = REGEX_YAML_BLOCK.search(card)
    try:
        metadata = yaml.safe_load(block.group(2)) if block else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["The metadata must be a mapping."]
    errors = []
    for name in ("license", "license_name", "pipeline_tag", "library_name"):
        if not re.fullmatch(r"[a-z0-9.-]+", str(metadata.get(name, "-"))) or not isinstance(metadata.get(name, ""), str):
            errors.append(f'"{name}" must be a string of lower-case letters, digits, dots and hyphens')
    for name in ("language", "tags", "base_model", "datasets"):
        values = metadata.get(name, [])
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{name}" must be a string or a list of strings')
    try:
        if "model-index" in metadata:
            model_index_to_eval_results(metadata["model-index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        errors.append(f'"model-index" is out of shape: {error!r}')
    return errors


def _oid(path: str, data: bytes) -> str:
    """SHA-256 of an LFS file, git's blob id of another."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 130}
    return entry
