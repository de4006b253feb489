"""A hub of models on a server of this machine: files of repositories, and commits to them."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    url: str = ""
    # owner/name -> its commits, oldest first: (40 hexadecimal digits, path -> content)
    repos: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # "GET /path"
    mode: str = "regular"  # how files are uploaded, or "lfs"
    objects: dict[str, bytes] = field(default_factory=dict)  # SHA-256 -> content

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        commits = self.repos.setdefault(repo, [])
        content = (commits[-1][1] if commits else {}) | files
        name = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        commits.append((name, content))
        return name


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/")
        if len(parts) < 4:  # its front page
            return self.answer(200)
        owner, name, _, revision, *file = parts
        commits = self.hub.repos.get(f"{owner}/{name}", [])
        known = {one[0]: one for one in commits} | ({"main": commits[-1]} if commits else {})
        if not commits:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in known:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = known[revision]
        content = files.get("/".join(file))
        if content is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, {"ETag": f'"{digest}"', "X-Repo-Commit": commit}, content)

    do_HEAD = do_GET

    def do_POST(self):
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer token":
            return self.answer(401)
        if self.path.endswith("/repos/create"):
            values = json.loads(body)
            repo = f"{values['organization']}/{values['name']}"
            self.hub.repos.setdefault(repo, [("0" * 40, {})])
            return self.json({"url": f"{self.hub.url}/{repo}"})
        if self.path.endswith("/validate-yaml"):
            return self.json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            rows = [{"path": f["path"], "uploadMode": self.hub.mode} for f in files]
            return self.json({"files": [row | {"shouldIgnore": False} for row in rows]})
        if "/info/lfs/objects/batch" in self.path:
            rows = json.loads(body)["objects"]
            for row in rows:
                address = {"href": f"{self.hub.url}/objects/{row['oid']}"}
                row["actions"] = {"upload": address}
            return self.json({"transfer": "basic", "objects": rows})
        owner, name = self.path.split("/")[3:5]
        files = {}
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                files[row["value"]["path"]] = self.hub.objects[row["value"]["oid"]]
        commit = self.hub.commit(f"{owner}/{name}", files)
        url = f"{self.hub.url}/{owner}/{name}/commit/{commit}"
        return self.json({"success": True, "commitOid": commit, "commitUrl": url})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def json(self, values: dict) -> None:
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, headers, json.dumps(values).encode())

    def answer(self, status: int, headers: dict | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None: ...


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
