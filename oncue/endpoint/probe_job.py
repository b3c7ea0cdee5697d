"""Probe job: one short batch job that reports what blocks would find.

    doctor ──submit──► scheduler ──► node: Python without oncue's help ──TCP──► doctor: NodeReport

The report arrives by the way that nodes of blocks use: it proves the network path back.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import select
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from oncue import curve
from oncue.endpoint.nodes.launch import hosts
from oncue.endpoint.options.apply import python_on_nodes
from oncue.endpoint.options.options import EndpointOptions, NetworkOptions
from oncue.endpoint.providers.jobs import (
    JobProvider,
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionUnclear,
)
from oncue.errors import Undecodable

TOKEN = "ONCUE_PROBE_TOKEN"  # environment variable of the job
MODULES = ("oncue", "msgspec", "zmq", "cloudpickle", "psutil")
POLL_S, REPORT_S, WALLTIME_S = 1.0, 10.0, 300
MOST_BYTES = 65_536
# It runs on any Python 3: what is wrong there shall be reported, not be a traceback.
SCRIPT = """
import json, os, socket, sys
report = {"host": socket.gethostname(), "python": ".".join(map(str, sys.version_info[:3])), "executable": sys.executable,
          "folder": os.path.isdir(sys.argv[1]), "packages": {}, "missing": {}, "unreached": {}, "address": ""}
for name in MODULES:
    try:
        module = __import__(name)
        report["packages"][name] = str(getattr(module, "__version__", "?"))
    except BaseException as e:
        report["missing"][name] = "%s: %s" % (type(e).__name__, e)
for address in sys.argv[2:]:
    host, _, port = address[len("tcp://"):].rpartition(":")
    try:
        link = socket.create_connection((host.strip("[]"), int(port)), 10)
    except OSError as e:
        report["unreached"][address] = str(e)
        continue
    report["address"] = address
    link.sendall((json.dumps({"token": os.environ["TOKEN"], "report": report}) + chr(10)).encode())
    link.close()
    sys.exit(0)
sys.exit("the agent's machine cannot be reached: %s" % report["unreached"])
"""


class NodeReport(msgspec.Struct, frozen=True):
    """Facts from the node."""

    host: str
    python: str
    executable: str
    folder: bool  # the endpoint's folder is there, too
    packages: dict[str, str]  # name: version
    missing: dict[str, str]  # name: why
    unreached: dict[str, str]  # address: why
    address: str  # of this machine, by which the report came


class _Message(msgspec.Struct, frozen=True):
    token: str
    report: NodeReport


class ProbeResult(msgspec.Struct, frozen=True):
    """End of a probe: the report, or the last that is known of the job."""

    report: NodeReport | None
    status: JobStatus | None
    waited_s: float


class ProbeJob:
    """A submitted probe. Use it in `with`: at the end, the job is cancelled."""

    def __init__(self, provider: JobProvider, folder: Path, endpoint: str, options: EndpointOptions) -> None:
        """Submit the job. Raises SchedulerError, Invalid (the network)."""
        self._provider, self._token, self.job = provider, secrets.token_urlsafe(16), ""
        self._socket = _listen(options.network)
        port = self._socket.getsockname()[1]
        self.addresses = [curve.address(host, port) for host in hosts(options.network)]
        mark = f"oncue-{endpoint.removeprefix('ep_')[:8]}-probe{os.urandom(3).hex()}"
        request = JobRequest(
            mark,
            _command(python_on_nodes(options), [str(folder), *self.addresses]),
            walltime_s=WALLTIME_S,
            environment={TOKEN: self._token},
        )
        try:
            self.job = provider.submit(request)
        except SubmissionUnclear:
            found = provider.find([mark])
            if mark not in found:
                raise
            self.job = found[mark]
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> ProbeJob:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._provider.cancel([self.job])

    def wait(self, limit_s: float, tell: Callable[[str], None]) -> ProbeResult:
        """Return when the report is here, the job has ended, or the time is over.

        `tell` gets each new state of the job, in words.
        """
        began, status, told = time.monotonic(), None, ""
        ended_at = 0.0
        while (waited := time.monotonic() - began) < limit_s:
            if report := self._receive(POLL_S):
                return ProbeResult(report, status, time.monotonic() - began)
            try:
                status = self._provider.jobs([self.job]).get(self.job, status)
                words = f"{status.state.value} {status.reason}".strip() if status else "not listed yet"
            except SchedulerAway as e:
                words = e.message
            if words != told:
                told = words
                tell(words)
            if status is not None and status.state is JobState.ENDED:
                ended_at = ended_at or waited
                if waited - ended_at > REPORT_S:
                    break
        return ProbeResult(None, status, time.monotonic() - began)

    def _receive(self, seconds: float) -> NodeReport | None:
        """Return a report that arrives within this time; others' connections are dropped."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return None
        link, _ = self._socket.accept()
        with link:
            link.settimeout(REPORT_S)
            data = b""
            try:
                while not data.endswith(b"\n") and len(data) < MOST_BYTES and (more := link.recv(MOST_BYTES)):
                    data += more
                message = msgspec.json.decode(data, type=_Message)
            except (OSError, ValueError, Undecodable):
                return None
        return message.report if hmac.compare_digest(message.token.encode(), self._token.encode()) else None


def _listen(network: NetworkOptions) -> socket.socket:
    """Listen at the endpoint's port, or if the agent has it, at any other."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    for port in dict.fromkeys((network.port, 0)):
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6)
        except OSError:
            if not port:
                raise
    raise AssertionError


def _command(python: str, arguments: Sequence[str]) -> str:
    """Return the job's command.

    The script is encoded: schedulers quote in their own ways.
    """
    text = SCRIPT.replace("MODULES", repr(MODULES)).replace('"TOKEN"', repr(TOKEN))
    loader = f"import base64;exec(base64.b64decode('{base64.b64encode(text.encode()).decode()}'))"
    return shlex.join([python, "-P", "-c", loader, *arguments])
