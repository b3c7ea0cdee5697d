"""A Kubernetes cluster of a test's own: the real API server, controllers and scheduler.

    etcd ◄── kube-apiserver ◄── kube-controller-manager, kube-scheduler, kubectl, kubelet.py

Only the kubelet is a stand-in (kubelet.py): pods run as processes of this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.keeper import Kept
from tests.kubernetes.binaries import programs
from tests.ports import free_port
from tests.schedulers.faults import CommandFaults

START_S = 120.0
COMMAND_S = 60.0
CONTROLLERS = (
    "job-controller,garbage-collector-controller,ttl-after-finished-controller,pod-garbage-collector-controller"
)


class Cluster:
    """One node of 4 cores, `node01`. `environ` is for kubectl; `config` is its file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._bin = folder, programs()
        self._ports = {name: free_port() for name in ("api", "etcd", "peers", "controllers", "scheduler")}
        self._token = secrets.token_urlsafe(16)
        self.config = folder / "kubeconfig"
        path = f"{self._bin}:{os.environ['PATH']}"
        self.faults = CommandFaults(folder / "wrappers", path)
        self.environ = os.environ | {"KUBECONFIG": str(self.config), "PATH": f"{self.faults.folder}:{path}"}
        self._etcd = self._kept("etcd", self._etcd_command())
        self._api = self._kept("api", self._api_command())
        self._others = [
            self._kept("controllers", self._component("kube-controller-manager", f"--controllers={CONTROLLERS}")),
            self._kept("scheduler", self._component("kube-scheduler")),
            self._kept("kubelet", [sys.executable, "-m", "tests.kubernetes.kubelet", str(folder), "node01"]),
        ]

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self._ports['api']}"

    def start(self) -> Cluster:
        """Start all, and wait until pods can run. Raises AssertionError with the logs."""
        for name in ("certificates", "etcd"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        key = self.folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f'{self._token},admin,1,"system:masters"\n')
        self.write_config(self.config, self._token)
        (self.folder / "kubelet.json").write_text(json.dumps({"server": self.server, "token": self._token}))
        self._etcd.start()
        self._api.start()
        self._wait(lambda: self._try("get", "--raw", "/readyz").returncode == 0, "the API is ready")
        for kept in self._others:
            kept.start()
        self._wait(lambda: "node01" in self._try("get", "nodes", "--output=name").stdout, "the node has joined")
        self._wait(lambda: bool(self._try("get", "serviceaccount", "default").stdout) or self._account(), "an account")
        return self

    def _account(self) -> bool:
        """Make the account that the controller for accounts would make."""
        return self._try("create", "serviceaccount", "default").returncode == 0

    def stop(self) -> None:
        """Kill all, with all pods."""
        for kept in (*self._others, self._api, self._etcd):
            kept.kill()

    def stop_api(self) -> None:
        self._api.kill()

    def start_api(self) -> None:
        self._api.start()
        self._wait(lambda: self._try("get", "--raw", "/readyz").returncode == 0, "the API is ready again")

    def mend(self) -> None:
        """Remove the jobs and secrets of a test, and wait until their pods have gone."""
        if not self._api.running:
            self.start_api()
        self.kubectl("delete", "jobs,secrets,pods,resourcequotas", "--all", "--wait=true", "--grace-period=1")

    # ------------------------------------------------------------ questions

    def kubectl(self, *words: str, stdin: str = "") -> str:
        """Run kubectl as the administrator. Raises AssertionError if it fails."""
        done = self._try(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def items(self, kinds: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kinds, "--output=json"))["items"]
        return found

    def active_jobs(self) -> set[str]:
        """Return the names of Jobs that have not ended."""
        ended = ("Complete", "Failed")
        return {
            job["metadata"]["name"]
            for job in self.items("jobs")
            if not any(c["type"] in ended and c["status"] == "True" for c in job["status"].get("conditions", ()))
        }

    def pods_of(self, job: str) -> list[str]:
        return self.kubectl("get", "pods", f"--selector=job-name={job}", "--output=name").split()

    def write_config(self, file: Path, token: str) -> None:
        """Write a configuration of kubectl for this token."""
        cluster = {"server": self.server, "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
            "current-context": "x",
        }
        file.write_text(json.dumps(config))
        file.chmod(0o600)

    # ------------------------------------------------------------ processes

    def _kept(self, name: str, command: list[str]) -> Kept:
        return Kept(command, self.environ, self.folder / f"{name}.out")

    def _etcd_command(self) -> list[str]:
        clients, peers = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peers"))
        return [
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            *(f"--{name}-client-urls={clients}" for name in ("listen", "advertise")),
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        ]

    def _api_command(self) -> list[str]:
        key = self.folder / "accounts.key"
        return [
            str(self._bin / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._ports['api']}",
            f"--cert-dir={self.folder / 'certificates'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={self.server}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--watch-cache=false",  # Debian's etcd 3.4 has no progress requests
        ]

    def _component(self, program: str, *more: str) -> list[str]:
        port = self._ports["controllers" if more else "scheduler"]
        files = [f"--{name}={self.config}" for name in ("kubeconfig", "authentication-kubeconfig")]
        files.append(f"--authorization-kubeconfig={self.config}")
        at = ["--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={self.folder / program}"]
        return [str(self._bin / program), *files, *at, "--leader-elect=false", *more]

    def _try(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._bin / "kubectl"), *words],
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            for kept in (self._etcd, self._api):
                assert kept.running, f"Kubernetes does not run: {kept.tail()}"
            if reached():
                return
            time.sleep(0.1)
        logs = "\n".join(kept.tail() for kept in (self._api, *self._others))
        raise AssertionError(f"not in {START_S:.0f} s: {what}\n{logs}")
