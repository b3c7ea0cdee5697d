"""A real agent whose workers are on nodes, for tests: agent process, node processes, their scripted server.

Run as a module, this file is the agent's process. It reads the keys of the blocks from `blocks.json` at its
start, and obeys the lines of the file `commands`.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from bench.node_agent import BLOCKS, open_agent
from oncue import curve
from oncue.clocks.process import now_us
from oncue.endpoint.nodes import node_pool
from oncue.endpoint.nodes.addresses import read_addresses
from oncue.endpoint.nodes.block_secret import SECRET
from oncue.endpoint.nodes.launch import ADDRESS_FILE, NodeLaunch
from oncue.protocol import bridge as wire
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, TaskRecord
from oncue.text.log_lines import log_to
from tests.integration.test_agent import ENDPOINT, Bridge

DIE_AT_RUN = "die-at-run"  # a file


def run(folder: Path) -> None:
    """Run the agent's process until a signal."""
    log_to()
    loop, pools = open_agent(folder)
    done = 0

    def check(_at: int) -> None:
        nonlocal done
        if (folder / DIE_AT_RUN).exists():
            (folder / DIE_AT_RUN).unlink()
            pools.run = die  # type: ignore[method-assign]
        path = folder / "commands"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[done:]:
            verb, block, *why = line.split()
            getattr(pools, verb)(block, *[" ".join(why)] if why else [])
        done = len(lines)
        for change in pools.changes():
            with open(folder / "changes", "a") as changes:
                changes.write(f"{change.block} {'joined' if change.joined else 'left'} {change.why}\n")

    loop.stop_on_signals()
    while not loop.stop_why and not loop.agent.refused:
        loop.turn(now_us() + 100_000, check)
    loop.agent.stop(loop.stop_why)
    loop.flush(2.0)
    pools.close(0)
    logging.getLogger("oncue.agent").info("stopped")


def die(*_chunk: object) -> None:
    """End at once, with the tasks in the journal as started, and not sent."""
    os.kill(os.getpid(), signal.SIGKILL)


class BlobBridge(Bridge):
    """A scripted server that also has large arguments and takes large results, by hash."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.blobs: dict[str, bytes] = {}

    def _on(self, route: bytes, parts: list[bytes]) -> None:
        envelope, body = wire.decode_from_agent(parts)
        message = envelope.message
        if isinstance(message, wire.UploadPart):
            blob = self.blobs[message.sha256] = self.blobs.get(message.sha256, b"")[: message.offset_bytes] + body
            self.send(wire.UploadAck(message.sha256, len(blob)))
        elif isinstance(message, wire.FetchPart) and message.sha256 in self.blobs:
            blob, at = self.blobs[message.sha256], message.offset_bytes
            self.send(wire.BlobPart(message.sha256, at, len(blob)), blob[at : at + wire.PART_BYTES])
        else:
            super()._on(route, parts)


class NodeSite:
    """Server, agent and nodes. `bridge` is the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bridge = BlobBridge(folder)
        self._keys: dict[str, curve.Keys] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        for block in ("b1", "b2"):
            self._add_key(block)

    def _add_key(self, block: str) -> None:
        path = self.folder / BLOCKS
        keys = curve.make_keys()
        self._keys[block] = keys
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {block: keys.public.decode()}))

    def keys(self, block: str) -> curve.Keys:
        return self._keys[block]

    def dispatch_payload(self, name: str, n: int, payload: bytes) -> None:
        """Send a task whose arguments are this payload."""
        function = next(p.id for p in self.bridge.functions.values() if p.name == name)
        call = encode(Call(VERSION, function, ENDPOINT, "me", name))
        self.bridge.send(wire.Dispatch(call, 1, 1, 1), encode([TaskRecord(n.to_bytes(16, "big"), payload)]))

    def start_agent(
        self, *, silent_us: int = node_pool.SILENT_US, closed_us: int = node_pool.CLOSED_US
    ) -> subprocess.Popen[bytes]:
        hellos = len(self.bridge.hellos)
        words = [sys.executable, "-m", "tests.integration.node_site", str(self.folder), str(silent_us), str(closed_us)]
        agent = self._start(words, "agent", {})
        self.bridge.until(lambda: len(self.bridge.hellos) > hellos)
        return agent

    def start_node(
        self, block: str = "b1", workers: int = 1, *, secret: bytes = b"", arguments: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a node; return when it has joined, unless it has another key."""
        found = read_addresses(self.folder / ADDRESS_FILE)
        assert found is not None
        launch = NodeLaunch(found, self.folder / ADDRESS_FILE, arguments=arguments)
        joined = self.changes().count(f"{block} joined ")
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        variables = {SECRET: (secret or self._keys[block].secret).decode(), "TMPDIR": str(scratch)}
        node = self._start(shlex.split(launch.command(block, workers)), block, variables)
        if not secret:
            self.bridge.until(lambda: self.changes().count(f"{block} joined ") > joined)
        return node

    def _start(self, words: list[str], name: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **variables, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self._processes.append(process)
        return process

    def changes(self) -> list[str]:
        """Return the lines on nodes that have joined and left."""
        path = self.folder / "changes"
        return path.read_text().splitlines() if path.exists() else []

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def command(self, line: str) -> None:
        with open(self.folder / "commands", "a") as commands:
            commands.write(line + "\n")

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        self.bridge.close()


if __name__ == "__main__":
    node_pool.SILENT_US, node_pool.CLOSED_US = map(int, sys.argv[2:])
    run(Path(sys.argv[1]))
