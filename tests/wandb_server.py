"""A stand-in for W&B's server on this machine, for the real client in online mode; it can fail in many ways.

Faults are (match, action, value, first, count): `match` is `graphql`, `graphql/UpsertBucket`, `file_stream`, `storage` or
`any`; `action` is `status` (an HTTP code), `hang` (seconds, then dropped) or `garbage` (HTML with 200); it begins with the
request number `first` of that kind and lasts for `count` of them.
"""

import contextlib
import dataclasses
import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

KEY = "0123456789abcdef" * 2 + "01234567"
_ALWAYS = 10**9
_PROJECT = {"id": "p", "name": "distgan", "entity": {"id": "e", "name": "tester"}}


@dataclasses.dataclass
class Run:
    """What the server has of one run."""

    config: dict = dataclasses.field(default_factory=dict)
    summary: dict = dataclasses.field(default_factory=dict)
    lines: dict[int, dict] = dataclasses.field(default_factory=dict)
    """History by offset."""
    events: dict[int, Any] = dataclasses.field(default_factory=dict)
    overwritten: int = 0
    exit_code: int | None = None
    preempting: bool = False
    alerts: list[str] = dataclasses.field(default_factory=list)
    files: set[str] = dataclasses.field(default_factory=set)

    @property
    def history(self):
        """The rows in the order of their steps, without W&B's own names."""
        rows = (line for _, line in sorted(self.lines.items()))
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


@dataclasses.dataclass(frozen=True)
class Fault:
    match: str
    action: str
    value: Any = None
    first: int = 0
    count: int = _ALWAYS


class Server:
    """A context: the server on a free port of loopback."""

    def __init__(self, *faults):
        self.faults = [Fault(*each) for each in faults]
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, dict] = {}
        self.stored: dict[str, int] = {}
        self.unknown: list[str] = []
        self.counts: dict[str, int] = {}
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.dead = False
        self.stop = False
        """Whether the stop button is pressed."""
        self.sweep: dict = {}
        self.trials: list[dict] = []
        """Flags and values that the sweep's agent has yet to try."""
        self.views: list[dict] = []

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        if not self.dead:
            self.die()

    def die(self):
        """Refuses connections from now on."""
        self.dead = True
        self.http.shutdown()
        self.http.server_close()

    def environment(self):
        """What points the client here."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }

    @property
    def run(self):
        """The one run there is."""
        [run] = self.runs.values()
        return run

    def fault(self, kind):
        """The fault that a request meets, if one does."""
        names = {kind, kind.split("/")[0], "any"}
        with self.lock:
            numbers = {name: self.counts.get(name, 0) for name in names}
            self.counts |= {name: number + 1 for name, number in numbers.items()}
        for fault in self.faults:
            if fault.match in names and fault.first <= numbers[fault.match] < fault.first + fault.count:
                return fault
        return None

    def graphql(self, operation, variables):
        """The data of an operation; None where it is not known."""
        answer = getattr(self, f"_{operation}", None)
        if answer is None:
            self.unknown.append(operation)
            return None
        with self.lock:
            return answer(variables)

    def _Viewer(self, _):
        teams = {"edges": [{"node": {"name": "tester"}}]}
        return {
            "viewer": {"id": "v", "entity": "tester", "username": "tester", "email": "", "flags": "{}", "teams": teams}
        }

    def _ServerFeaturesQuery(self, _):
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, v):
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": None}
        bucket = {
            "id": v["name"],
            "name": v["name"],
            "summaryMetrics": json.dumps(run.summary),
            "displayName": v["name"],
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": len(run.events),
            "historyTail": json.dumps([json.dumps(run.lines[max(run.lines)])] if run.lines else []),
            "eventsTail": json.dumps([]),
            "config": json.dumps(run.config),
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }
        entity = {"id": "e", "name": "tester"}
        return {"model": {"id": "p", "name": v.get("project") or "p", "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, v):
        name = v.get("name") or v["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run())
        if v.get("config"):
            run.config |= json.loads(v["config"])
        project = {"id": "p", "name": v.get("project") or "p", "entity": {"id": "e", "name": "tester"}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": v.get("displayName") or name,
            "description": "",
            "config": "{}",
        }
        bucket |= {"sweepName": None, "project": project, "historyLineCount": len(run.lines)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, _):
        return {"markRunFilesUploaded": {"success": True}}

    def _NotifyScriptableRunAlert(self, v):
        self.runs[v["runName"]].alerts.append(v["title"])
        return {"notifyScriptableRunAlert": {"success": True}}

    def _FetchOrgEntityFromEntity(self, _):
        return {"entity": {"organization": None}}

    def _OrganizationCoreWeaveOrganizationID(self, _):
        return {"entity": {"organization": None}}

    def _XXHashDigestsEnabled(self, _):
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _FetchArtifactDigestAlgorithm(self, _):
        return {"project": {"artifactType": None}}

    def _ArtifactType(self, _):
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, v):
        found = v["input"]
        number = f"a{len(self.artifacts)}"
        self.artifacts[number] = {**found, "state": "PENDING", "files": []}
        sequence = {"id": "s", "name": "distgan", "latestArtifact": None}
        artifact = {"id": number, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, v):
        file = {"id": "f", "uploadUrl": f"{self.url}/storage/manifest/{v['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def _UpdateArtifactManifest(self, v):
        file = {"id": "f", "uploadUrl": f"{self.url}/storage/manifest/{v['artifactManifestID']}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": v["artifactManifestID"], "file": file}}}

    def _CreateArtifactFiles(self, v):
        edges = []
        for each in v["input"]["artifactFiles"]:
            self.artifacts[each["artifactID"]]["files"].append(each["name"])
            node = {"storagePath": each["name"], "uploadUrl": f"{self.url}/storage/artifact/{each['name']}"}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": each["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, v):
        self.artifacts[v["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "d"}}}

    def _Run(self, v):
        run = self.runs.get(v["name"])
        if run is None:
            return {"project": {"internalId": "1", "run": None}}
        found = {
            "id": v["name"],
            "name": v["name"],
            "projectId": "1",
            "tags": [],
            "displayName": v["name"],
            "notes": None,
            "sweepName": None,
            "state": "finished",
            "config": json.dumps(run.config),
            "group": None,
            "jobType": None,
            "commit": None,
            "readOnly": False,
            "createdAt": "2020-01-01T00:00:00",
            "heartbeatAt": "2020-01-01T00:00:00",
            "description": "",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "historyKeys": {"lastStep": max(run.lines, default=-1), "keys": {}, "sets": []},
            "user": {"name": "tester", "username": "tester"},
        }
        return {"project": {"internalId": "1", "run": found}}

    def _RunHistoryKeys(self, v):
        run = self.runs[v["name"]]
        return {"project": {"run": {"historyKeys": {"lastStep": max(run.lines, default=-1)}}}}

    def _UpsertSweep(self, v):
        self.sweep = yaml.safe_load(v["config"])
        return {"upsertSweep": {"sweep": {"name": "s1", "project": _PROJECT}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, v):
        sweep = {"id": "s", "name": v["sweep"], "state": "RUNNING", "config": yaml.safe_dump(self.sweep)}
        return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}

    def _CreateAgent(self, _):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, v):
        commands = []
        if not json.loads(v["runState"]):
            commands = [{"type": "exit"}]
            if self.trials:
                args = {name: {"value": value} for name, value in self.trials.pop(0).items()}
                commands = [{"type": "run", "run_id": f"trial{len(self.trials)}", "program": None, "args": args}]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    def _UpsertView2(self, v):
        self.views.append(v)
        return {"upsertView": {"view": {"id": "view", "name": v["name"]}, "inserted": True}}

    def stream(self, name, body):
        """Takes a post of the file stream."""
        with self.lock:
            run = self.runs.setdefault(name, Run())
            for file, part in (body.get("files") or {}).items():
                if file == "wandb-summary.json":
                    run.summary = json.loads(part["content"][0])
                kept = {"wandb-history.jsonl": run.lines, "wandb-events.jsonl": run.events}.get(file)
                for number, text in enumerate(part["content"] if kept is not None else ()):
                    place = part["offset"] + number
                    run.overwritten += place in kept and kept is run.lines
                    kept[place] = json.loads(text)
            run.preempting |= bool(body.get("preempting"))
            if body.get("complete"):
                run.exit_code = body.get("exitcode")
            return {"exitcode": None, "limits": {}, "stopped": self.stop}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Server

    def log_message(self, *_):
        pass

    def _body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _send(self, status, data, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self):
        server, body = self.server_, self._body()
        if server.dead:
            self.close_connection = True
            return
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        asked = json.loads(body) if self.path == "/graphql" else {}
        operation = "".join(re.findall(r"(?:query|mutation)\s+(\w+)", asked.get("query", ""))[:1])
        kind = "storage" if self.path.startswith("/storage") else f"graphql/{operation}" if asked else "file_stream"
        fault = server.fault(kind)
        if fault and fault.action == "hang":
            end = time.monotonic() + fault.value
            while time.monotonic() < end and not server.closing.wait(0.1) and not server.dead:
                pass
            self.close_connection = True
        elif fault and fault.action == "status":
            self._send(fault.value, b'{"error": "injected"}')
        elif fault:
            self._send(200, b"<html>log in</html>", "text/html")
        elif asked:
            data = server.graphql(operation, asked.get("variables") or {})
            errors = {"errors": [{"message": f"unknown operation {operation}"}]}
            self._send(200, json.dumps(errors if data is None else {"data": data}).encode())
        elif stream:
            self._send(200, json.dumps(server.stream(unquote(stream[1]), json.loads(body))).encode())
        elif self.path.startswith("/storage/"):
            with server.lock:
                server.stored[self.path] = len(body)
            self._send(200, b"")
        else:
            server.unknown.append(f"{self.command} {self.path}")
            self._send(404, b"{}")

    def _guarded(self):
        with contextlib.suppress(ConnectionError):
            self._answer()

    do_GET = do_POST = do_PUT = _guarded
