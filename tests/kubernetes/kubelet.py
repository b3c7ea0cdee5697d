"""Stand-in of a kubelet: runs the pods of one node as processes, without containers.

    python -m tests.kubernetes.kubelet CLUSTER_FOLDER NODE

It uses the real API: makes its node, runs the pods that the scheduler binds to it, reports their
states, ends them when they are deleted, and answers `kubectl logs`. Images are ignored.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

POLL_S = 0.1
CORES, MEMORY = "4", "8Gi"


class Api:
    """Kubernetes' API, as its administrator."""

    def __init__(self, server: str, token: str) -> None:
        self._server, self._token = server, token
        self._context = ssl._create_unverified_context()  # its certificate is its own, and it is on this machine

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Return the answer; None if the object does not exist (any more)."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            raise

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body, "application/merge-patch+json")


class Kubelet:
    """The pods of one node."""

    def __init__(self, api: Api, node: str, folder: Path, port: int) -> None:
        self._api, self._node, self._folder, self._port = api, node, folder, port
        self._pods: dict[str, subprocess.Popen[bytes]] = {}  # by uid
        self._ending: set[str] = set()

    def join(self) -> None:
        """Make the node, ready for pods."""
        with contextlib.suppress(urllib.error.HTTPError):  # it exists
            labels = {"kubernetes.io/hostname": self._node}
            self._api.call("POST", "/api/v1/nodes", {"metadata": {"name": self._node, "labels": labels}})
        room = {"cpu": CORES, "memory": MEMORY, "pods": "50"}
        ready = {"type": "Ready", "status": "True", "reason": "StandIn", "lastTransitionTime": _now()}
        status = {
            "capacity": room,
            "allocatable": room,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
        }
        self._api.patch(f"/api/v1/nodes/{self._node}/status", {"status": status})
        self._api.patch(f"/api/v1/nodes/{self._node}", {"spec": {"taints": None}})

    def turn(self) -> None:
        """Begin the pods that are new, and end those that are deleted."""
        selector = urllib.parse.quote(f"spec.nodeName={self._node}")
        for pod in self._api.call("GET", f"/api/v1/pods?fieldSelector={selector}")["items"]:
            uid, phase = pod["metadata"]["uid"], pod["status"].get("phase", "Pending")
            if "deletionTimestamp" in pod["metadata"]:
                if uid not in self._ending:
                    self._ending.add(uid)
                    threading.Thread(target=self._end, args=[pod], daemon=True).start()
            elif uid not in self._pods and phase == "Pending":
                self._begin(pod)

    def _begin(self, pod: dict[str, Any]) -> None:
        container, name = pod["spec"]["containers"][0], pod["metadata"]["name"]
        environ = {"PATH": os.environ["PATH"], "HOME": "/tmp", "HOSTNAME": name}
        for source in container.get("envFrom", ()):
            environ |= self._secret(pod["metadata"]["namespace"], source["secretRef"]["name"])
        environ |= {variable["name"]: variable.get("value", "") for variable in container.get("env", ())}
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*container.get("command", ()), *container.get("args", ())],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pods[pod["metadata"]["uid"]] = process
        self._report(pod, "Running", {"running": {"startedAt": _now()}})
        threading.Thread(target=self._wait, args=[pod, process], daemon=True).start()

    def _secret(self, namespace: str, name: str) -> dict[str, str]:
        found = self._api.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return {key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()}

    def _wait(self, pod: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        code = 128 - code if code < 0 else code
        reason = "Error" if code else "Completed"
        state = {"exitCode": code, "reason": reason, "startedAt": _now(), "finishedAt": _now()}
        self._report(pod, "Failed" if code else "Succeeded", {"terminated": state})

    def _report(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        running = phase == "Running"
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "stand-in",
            "ready": running,
            "restartCount": 0,
            "state": state,
        }
        ready = {"type": "Ready", "status": str(running), "lastTransitionTime": _now()}
        conditions = [c for c in pod["status"].get("conditions", ()) if c["type"] != "Ready"] + [ready]
        body = {"status": {"phase": phase, "containerStatuses": [status], "conditions": conditions}}
        at = pod["metadata"]
        self._api.patch(f"/api/v1/namespaces/{at['namespace']}/pods/{at['name']}/status", body)

    def _end(self, pod: dict[str, Any]) -> None:
        at = pod["metadata"]
        process = self._pods.get(at["uid"])
        if process is not None:
            for number, limit_s in ((signal.SIGTERM, at.get("deletionGracePeriodSeconds", 30)), (signal.SIGKILL, 30)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(limit_s)
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": at["uid"]}}
        self._api.call("DELETE", f"/api/v1/namespaces/{at['namespace']}/pods/{at['name']}", options)


class Logs(BaseHTTPRequestHandler):
    """Answers /containerLogs/NAMESPACE/POD/CONTAINER?tailLines=N of the API server."""

    folder: ClassVar[Path]

    def do_GET(self) -> None:
        place, _, query = self.path.partition("?")
        file = self.folder / f"{place.split('/')[3]}.log"
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        tail = int(urllib.parse.parse_qs(query).get("tailLines", ["0"])[0])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"".join(lines[-tail:]))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def serve_logs(folder: Path, certificates: Path) -> int:
    """Serve the logs in a thread; return the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("FolderLogs", (Logs,), {"folder": folder}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def main() -> None:
    cluster, node = Path(sys.argv[1]), sys.argv[2]
    settings = json.loads((cluster / "kubelet.json").read_text())
    folder = cluster / node
    folder.mkdir(exist_ok=True)
    api = Api(settings["server"], settings["token"])
    kubelet = Kubelet(api, node, folder, serve_logs(folder, cluster / "certificates"))
    kubelet.join()
    while True:
        try:
            kubelet.turn()
        except (OSError, ValueError) as e:  # the API is away
            print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
