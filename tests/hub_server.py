"""A Hugging Face Hub in memory on the loopback interface: what `huggingface_hub` asks to load and to publish a model.

    with HubServer() as hub:
        hub.add("org/name", {"config.json": b"...", "model.safetensors": b"..."}, tag="v1")
        hub.fail("model.safetensors", cut=1000)
        ran = client(hub, 'result["weights"] = digest(dcgan.Generator.from_pretrained("org/name"))', home=tmp_path)

The real client talks to it through `HF_ENDPOINT`, which it reads when it is imported: hence a process per `client`.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The valid tokens: of all repositories, of none, and one that may read only.
OWNER, STRANGER, READER = "hf_owner", "hf_stranger", "hf_reader"
LARGE = (".safetensors", ".bin", ".pth")  # kept in LFS, as .gitattributes has it on the Hub


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # id -> path -> content
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> id

    @property
    def files(self):
        return self.commits[self.refs["main"]]

    def commit(self, changes, message, branch="main"):
        files = {**self.commits.get(self.refs.get(branch), {}), **changes}
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid


@dataclass
class Fault:
    path: str  # found anywhere in the request's path
    method: str = "GET"
    times: int = 1
    status: int | None = None  # answer this
    cut: int | None = None  # close the connection after so many bytes of the body
    body: bytes | None = None  # send this under the right ETag
    delay: float = 0  # seconds before the answer
    then: Callable[[], object] = lambda: None  # call this before the answer, which it does not change


@dataclass
class Request:
    method: str
    path: str
    token: str | None
    range: str | None
    agent: str
    status: int = 0


class HubError(Exception):
    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


class HubServer:
    """`log` holds every request, `repos` every repository, `lfs` the large files by SHA-256.

    With a `prefix`, such as "/mirror", it serves below that path only, as mirrors inside companies do.
    """

    def __init__(self, prefix=""):
        self.prefix = prefix
        self.repos, self.log, self.faults, self.lfs, self.errors = {}, [], [], {}, []

    def __enter__(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.http.handle_error = lambda *_: self.errors.append(sys.exception())
        self.url = f"http://127.0.0.1:{self.http.server_port}{self.prefix}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop()
        # A client that gives up, or is cut off, breaks its connection; all else is a mistake in this file.
        assert not [error for error in self.errors if not isinstance(error, ConnectionError)], self.errors

    def stop(self):
        """Close the port: what follows is refused."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def add(self, name, files, *, message="Add", private=False, gated=False, tag=None):
        """Commit files to a repository, new or not; return the commit's id."""
        repo = self.repos.setdefault(name, Repo(private, gated))
        oid = repo.commit(files, message)
        if tag:
            repo.refs[tag] = oid
        return oid

    def fail(self, path, **fault):
        """Let the next request of `path` fail; the fields are those of `Fault`, and faults queue up."""
        self.faults.append(Fault(path, **fault))

    def downloads(self):
        """Return the file names whose content was sent, and forget the log."""
        sent = [r.path for r in self.log if r.method == "GET" and r.status in (200, 206) and "/api/" not in r.path]
        self.log.clear()
        return [re.sub(r"^/(cdn/\w+/[^/]+/[^/]+|.+/resolve/[^/]+)/", "", path) for path in sent]


_ROUTES = []


def _route(methods, pattern):
    pattern = pattern.replace("REPO", r"(?P<name>[\w.-]+/[\w.-]+?)").replace("REV", r"(?P<revision>[^/]+)")
    return lambda function: _ROUTES.append((methods.split(), re.compile(pattern), function))


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urlsplit(self.path).path
        if path.startswith(f"{self.hub.prefix}/"):
            path = path.removeprefix(self.hub.prefix)
        elif not path.startswith("/cdn/"):
            path = f"/outside{path}"  # which has no route
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.record = Request(self.command, path, self.token, self.headers["Range"], self.headers["User-Agent"])
        self.hub.log.append(self.record)
        self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = next((f for f in self.hub.faults if f.path in path and f.method == self.command and f.times), Fault(""))
        fault.times -= 1
        time.sleep(fault.delay)
        try:
            answer = self.answer(path, fault)
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            answer = error.status, headers, {"error": error.message}
        fault.then()
        self.reply(*answer, fault)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server looks for

    def answer(self, path, fault):
        if fault.status:
            raise HubError(fault.status, "as the test wants it")
        if self.token not in (None, OWNER, STRANGER, READER):
            raise HubError(401, "Invalid credentials in Authorization header")
        for methods, pattern, function in _ROUTES:
            if self.command in methods and (match := pattern.fullmatch(path)):
                return function(self, **{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
        raise HubError(404, f"no route {self.command} {path}")

    def reply(self, status, headers, body, fault):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if status == 200 and fault.body is not None:
            body = fault.body
        if status == 200 and self.record.range and self.command == "GET":
            first = int(re.fullmatch(r"bytes=(\d+)-", self.record.range)[1])
            status, headers = 206, headers | {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            body = body[first:]
        self.record.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut])
            self.close_connection |= fault.cut is not None

    def log_message(self, *_):
        pass

    def repo(self, name, *, write=False):
        """Return a repository that the token may see, or refuse as the Hub does: what is private is not admitted to."""
        repo, owner = self.hub.repos.get(name), self.token == OWNER
        if repo is None or (repo.private and not owner):
            if self.token is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise HubError(403 if self.token else 401, "You don't have the rights to write to this repository")
        return repo

    def commit(self, name, revision):
        repo = self.repo(name)
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, oid, repo.commits[oid]

    @_route("GET HEAD", r"/REPO/resolve/REV/(?P<path>.+)")
    def resolve(self, name, revision, path):
        repo, oid, files = self.commit(name, revision)
        if repo.gated and self.token != OWNER:
            raise HubError(403 if self.token else 401, f"Access to model {name} is restricted.", "GatedRepo")
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        headers, etag = {"X-Repo-Commit": oid}, _etag(path, files[path])
        if not path.endswith(LARGE):
            return 200, headers | {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}, files[path]
        # Large files lie on another host, where the client must not send its token.
        self.hub.lfs[etag] = files[path]
        location = f"http://localhost:{self.hub.http.server_port}/cdn/{etag}/{name}/{path}"
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": len(files[path]), "Location": location}
        return 302, headers, b""

    @_route("GET HEAD", r"/cdn/(?P<oid>\w{64})/(?P<path>.+)")
    def cdn(self, oid, path):
        return 200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, self.hub.lfs[oid]

    @_route("GET", r"/api/models/REPO(?:/revision/REV)?")
    def info(self, name, revision="main"):
        repo, oid, _ = self.commit(name, revision)
        return 200, {}, {"id": name, "sha": oid, "private": repo.private, "gated": repo.gated, "tags": []}

    @_route("GET", r"/api/models/REPO/tree/REV")
    def tree(self, name, revision):
        _, _, files = self.commit(name, revision)
        return 200, {}, [{"type": "file", "path": p, "size": len(d), "oid": _etag(p, d)} for p, d in files.items()]

    @_route("GET", r"/api/whoami-v2")
    def whoami(self):
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        name = self.token.removeprefix("hf_")
        token = {"displayName": "token", "role": "read" if self.token == READER else "write"}
        return 200, {}, {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": token}}

    @_route("POST", r"/api/repos/create")
    def create(self):
        wanted = json.loads(self.content)
        name, private = f"{wanted['organization'] or 'owner'}/{wanted['name']}", wanted.get("visibility") == "private"
        if self.token != OWNER:
            raise HubError(403 if self.token else 401, "You don't have the rights to create a model")
        if name in self.hub.repos:
            return 409, {}, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit", private=private)
        return 200, {}, {"url": f"{self.hub.url}/{name}"}

    @_route("POST", r"/api/validate-yaml")
    def validate(self):
        return 200, {}, {"errors": [], "warnings": []}

    @_route("POST", r"/api/models/REPO/preupload/REV")
    def preupload(self, name, revision):
        self.repo(name, write=True)
        _, _, files = self.commit(name, revision)
        answer = json.loads(self.content)
        for file in answer["files"]:
            path = file["path"]
            file["oid"] = _etag(path, files[path]) if path in files else None  # what is there already is not sent
            file |= {"uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
        return 200, {}, answer

    @_route("POST", r"/REPO\.git/info/lfs/objects/batch")
    def lfs_batch(self, name):
        self.repo(name, write=True)
        objects = json.loads(self.content)["objects"]
        for thing in objects:
            if thing["oid"] not in self.hub.lfs:
                upload, verify = f"{self.hub.url}/lfs/{thing['oid']}", f"{self.hub.url}/{name}.git/info/lfs/verify"
                thing["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return 200, {}, {"transfer": "basic", "objects": objects}

    @_route("PUT", r"/lfs/(?P<oid>\w{64})")
    def lfs_upload(self, oid):
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise HubError(400, "The content does not have this SHA-256")
        self.hub.lfs[oid] = self.content
        return 200, {}, b""

    @_route("POST", r"/REPO\.git/info/lfs/verify")
    def lfs_verify(self, name):
        wanted = json.loads(self.content)
        if len(self.hub.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(404, "Object not found")
        return 200, {}, {}

    @_route("POST", r"/api/models/REPO/commit/REV")
    def make_commit(self, name, revision):
        repo, changes = self.repo(name, write=True), {}
        header, *lines = [json.loads(line) for line in self.content.splitlines()]
        for key, value in (line.values() for line in lines):  # "file" or "lfsFile"
            content = self.hub.lfs[value["oid"]] if key == "lfsFile" else base64.b64decode(value["content"])
            changes[value["path"]] = content
        if revision not in repo.refs:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        oid = repo.commit(changes, header["value"]["summary"], revision)
        return 200, {}, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}


def _etag(path, data):
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_BEFORE = """
import json, os, time, dcgan
from hub_server import attempt, digest
time.sleep = lambda seconds: None  # the client tries again for half a minute before it gives up
result = {}
"""
_AFTER = """
with open(os.environ["RESULT"], "w") as file:
    json.dump(result, file)
"""


def client(hub, code, *, home, **env):
    """Run `code` in a fresh interpreter that takes `hub` for the Hub.

    Return the completed process, which has to end well, with what the code put into `result` as its `result`.
    """
    ours = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    # The client takes every upload to Xet storage where it can, whatever the server says.
    switches = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_UPDATE_CHECK")
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HUGGING"))}
    inherited |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "RESULT": str(home / "result.json")}
    # The client's own upload to LFS is deprecated by its own HTTP library.
    warnings = "error,ignore:Use 'content=<...>' to upload raw"
    inherited |= {"PYTHONPATH": os.pathsep.join(ours), "PYTHONWARNINGS": warnings, "OMP_NUM_THREADS": "1"}
    inherited |= {"NO_PROXY": "*", "no_proxy": "*"} | dict.fromkeys(switches, "1")
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _BEFORE + code + _AFTER]
    ran = subprocess.run(command, env=inherited | env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    ran.result = json.loads((home / "result.json").read_text())
    return ran


def attempt(call, *args, **kwargs):
    """Return what a call raised, as the names of its bases and its message, or None."""
    try:
        call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test compares it
        return [[base.__name__ for base in type(error).__mro__], str(error)]
    return None


def digest(network):
    """Return a fingerprint of a network's tensors."""
    parts = [f"{name} {value.dtype} {value.tolist()}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
