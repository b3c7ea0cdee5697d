"""Real Kafka brokers (KRaft) as processes of this machine: one node, or three.

Broker(folder).start()
    ready in about 3 s; `address` is its bootstrap address; kill() is kill -9; start() restarts it
Cluster(folder).start()
    three nodes, each broker and controller; replication 3, two in sync required to write
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.kafka.jars import jars, java
from tests.ports import free_port

CLUSTER_ID = "b25jdWUtdGVzdHMtMDAwMQ"
START_S = 60.0
LOGGING = """status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = {folder}/server.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{{1}}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
"""


class Broker:
    """One node.

    `settings` override the server's defaults; `listeners` maps names of further listeners to their
    protocols.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node: int = 1,
        voters: Mapping[int, int] | None = None,
        settings: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        format_flags: Iterable[str] = (),
        heap_mb: int = 256,
        lasting: bool = False,
    ) -> None:
        """`lasting` chooses the JVM's compiler and collector for a long life.

        The default is those for a short start.
        """
        self.folder, self.node = folder, node
        self.port = free_port()
        self.ports = {name: free_port() for name in listeners or {}}
        self._protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"} | dict(listeners or {})
        self._voters = dict(voters or {node: free_port()})
        self._settings, self._format_flags, self._heap_mb = dict(settings or {}), list(format_flags), heap_mb
        self._lasting = lasting
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def listener(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker was started"
        return self._process.pid

    @property
    def data(self) -> Path:
        return self.folder / "data"

    # ------------------------------------------------------------ lifecycle

    def start(self, wait: bool = True) -> Broker:
        """Format the folder if it is new, then run.

        Raises Missing (no Java ...), or AssertionError with the broker's output.
        """
        config = self.folder / "server.properties"
        if not config.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            config.write_text("".join(f"{k}={v}\n" for k, v in self._server().items()))
            (self.folder / "log4j2.properties").write_text(LOGGING.format(folder=self.folder))
            flags = ["-t", CLUSTER_ID, "-c", str(config), "--ignore-formatted", *self._format_flags]
            done = subprocess.run(
                [*self._java(), "kafka.tools.StorageTool", "format", *flags],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with (self.folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(config)], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        # Kills the broker when this process ends in any way: the pipe closes then.
        self._watch = subprocess.Popen(
            ["sh", "-c", f"read line || kill -9 {self.pid}"], stdin=subprocess.PIPE, start_new_session=True
        )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until all ports accept connections.

        A listener opens when the broker has caught up with the cluster's metadata, one after the
        other.
        """
        closed = [self.port, *self.ports.values()]
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, f"the broker did not start: {self.log_tail()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", closed[0]), 1):
                del closed[0]
                if not closed:
                    return
                continue
            time.sleep(0.05)
        raise AssertionError(f"the broker was not ready in {START_S:.0f} s: {self.log_tail()}")

    def kill(self) -> None:
        """Send kill -9 and wait for the process to end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Terminate the broker; kill it after 20 s."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._watch is not None:
            self._watch.communicate(b"\n")
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self) -> str:
        """Return the end of its output and log."""
        files = [self.folder / "out", self.folder / "server.log"]
        return "\n".join(f.read_text(errors="replace")[-3000:] for f in files if f.exists())

    # ------------------------------------------------------------ settings

    def _java(self) -> list[str]:
        # The serial collector and the first compiler only: a faster start and less memory.
        soon = [] if self._lasting else ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        flags = [f"-Xmx{self._heap_mb}m", *soon, "-Xshare:auto"]
        logging = f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"
        return [java(), *flags, logging, "-cp", f"{jars()}/*"]

    def _server(self) -> dict[str, str]:
        ports = {"PLAINTEXT": self.port, "CONTROLLER": self._voters[self.node]} | self.ports
        listeners = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
        copies = str(len(self._voters))
        in_sync = str(min(2, len(self._voters)))
        found = {
            "process.roles": "broker,controller",
            "node.id": str(self.node),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p}" for n, p in self._voters.items()),
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(v for k, v in listeners.items() if k != "CONTROLLER"),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in self._protocols.items()),
            "log.dirs": str(self.data),
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            # For speed, and little memory with many small topics.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.index.size.max.bytes": "65536",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "log.retention.check.interval.ms": "1000",
            "log.cleaner.backoff.ms": "500",
            "log.initial.task.delay.ms": "500",
            "auto.create.topics.enable": "false",
            "socket.request.max.bytes": "104857600",
        }
        return found | self._settings


class Cluster:
    """A cluster of three nodes."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        voters = {n: free_port() for n in (1, 2, 3)}
        self.nodes = [Broker(folder / str(n), node=n, voters=voters, settings=settings) for n in voters]

    @property
    def address(self) -> str:
        return ",".join(n.address for n in self.nodes)

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start(wait=False)  # one alone has no quorum
        for node in self.nodes:
            node.wait_ready()
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
