"""The agent's process: `python -m oncue.endpoint.run --dir DIR`.

One thread, one loop (loop.py).

SIGTERM or SIGINT: accept nothing new, let running tasks end (grace_s), send Bye. The rest stays in
the journal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import random
import socket
import sys
from pathlib import Path

import oncue
from oncue import curve
from oncue.clocks.process import now_us, process_clock
from oncue.disk.private_files import close_to_others, make_files_private
from oncue.endpoint import settings as folder_settings
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.blob_sweep import BlobSweep
from oncue.endpoint.agent.effects import Connect
from oncue.endpoint.agent.journal import DiskFile, Journal
from oncue.endpoint.agent.servers import ServerList
from oncue.endpoint.agent.session import SessionPhase
from oncue.endpoint.agent.socket import AgentSocket, ConnectionProblem
from oncue.endpoint.blocks.limits import most_workers
from oncue.endpoint.blocks.workers import BlockWorkers, open_blocks
from oncue.endpoint.containers.catalog import CONTAINERS, NONE
from oncue.endpoint.control_files import KEEP_BLOCKS, StopMode, forget_requests, requested_stop
from oncue.endpoint.folder_claim import FolderClaim
from oncue.endpoint.local_workers import LocalWorkers
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.machine_use import MachineMeter
from oncue.endpoint.options.apply import effective, pinning
from oncue.endpoint.options.file import load_options
from oncue.endpoint.options.options import EndpointOptions
from oncue.endpoint.options.providers import kind_of
from oncue.endpoint.pool.orphans import Orphans
from oncue.endpoint.providers.base import BlockRequest, ProviderContext
from oncue.endpoint.providers.catalog import LOCAL, PROVIDERS
from oncue.endpoint.settings import EndpointSettings
from oncue.endpoint.worker.mpi_run import LAUNCHER
from oncue.errors import OncueError, Refused
from oncue.processes.children import adopt_orphans
from oncue.processes.garbage_collection import collect_seldom, keep_what_is_here
from oncue.processes.secrecy import drop_secrets, hide_from_tasks
from oncue.protocol.bridge import OTHER_AGENT
from oncue.text.log_lines import log_to

log = logging.getLogger("oncue.agent")
USAGE_US, STATUS_US = 5_000_000, 2_000_000
REVOKED = "the server refused this endpoint: it was revoked"
REFUSED_EXIT = 5  # service managers do not start an agent again that the server refuses
KEY_REFUSED_US = 20_000_000  # a server that starts needs time to read its endpoints


class AgentProcess:
    """Agent, socket and one block of workers, which a loop connects.

    `provider` and `container` are kinds of the catalogues. `adopts`: this process adopts orphans,
    and has no children but workers. Raises Invalid (settings, keys), Conflict (an agent runs here
    already), OSError (the folder).
    """

    def __init__(
        self,
        folder: Path,
        settings: EndpointSettings,
        options: EndpointOptions = EndpointOptions(),  # noqa: B008 frozen
        *,
        provider: str = LOCAL,
        container: str = NONE,
        adopts: bool = False,
    ) -> None:
        self.folder, self.settings = folder, settings
        close_to_others(folder)
        self._lock = folder_settings.lock_folder(folder)
        boot, host = os.urandom(8), socket.gethostname()
        self._claim = FolderClaim(folder, host, boot, log.info)
        forget_requests(folder)
        local = kind_of(options.provider) == LOCAL
        workers = settings.workers or os.cpu_count() or 1
        self.identity = AgentIdentity(
            settings.id, oncue.__version__, platform.python_version(), host, os.getpid(), boot, self._claim.after
        )
        self._file = DiskFile(folder / "journal")
        journal = Journal(self._file, os.urandom(8))
        cache = DiskCache(folder / "functions", folder / "blobs", settings.server_blobs_here())
        self.agent = Agent(
            self.identity,
            journal,
            cache,
            random.Random(),
            workers if local else most_workers(options),
            now_us(),
            budget_bytes=settings.spool_bytes,
            adopts=not local,
        )
        self._servers = ServerList(folder / "servers.json", lambda: folder_settings.resolve_server(settings))
        self._socket = AgentSocket(curve.load_or_make_keys(folder / "agent.key"))
        self._workers: LocalWorkers | BlockWorkers
        if local:
            context = _provider_context(folder, settings, options, container, Orphans() if adopts else None)
            block = BlockRequest(f"{settings.id}-{self.identity.boot.hex()}", workers)
            self._workers = LocalWorkers(PROVIDERS[provider](context), block, self.agent.shares)
        else:
            self._workers = open_blocks(folder, settings, options, self.agent, journal)
        self.pool = self._workers.pool
        self._loop = AgentLoop(
            self.agent, self.pool, self._socket, self._dial, self._servers.remember, self._workers.journalled
        )
        if isinstance(self._workers, BlockWorkers):
            self._loop.watch(self._workers.fd, self._workers.on_readable)
        self._machine = MachineMeter()
        self._sweep = BlobSweep(self.agent, folder / "blobs")
        self._usage_us = self._status_us = 0
        self._status = b""
        self._why = self._remedy = ""  # why the server refuses the key; remedy
        self._register_again = folder_settings.register_again(settings.name, folder)
        self._key_refused_us = 0
        self._obeyed = 0  # signals to stop
        self._stop_mode = StopMode.GRACE

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Run until a signal. Raises Refused if the server rejects this endpoint."""
        self._loop.stop_on_signals()
        while not self.agent.refused and not self._is_over():
            self._loop.turn(min(self._status_us + STATUS_US, self._workers.due_us()), self._check)
        if refused := self.agent.refused:
            keep = self.folder / KEEP_BLOCKS
            if refused.details.get("reason") == OTHER_AGENT:  # then the jobs are that one's
                keep.touch()
            self._workers.finish(self._loop, 0.0)
            keep.unlink(missing_ok=True)
            raise refused
        self._finish()

    def _is_over(self) -> bool:
        """Return True after a signal to stop; in a drain, when no task runs any more."""
        signals = self._loop.signals
        if not signals:
            return False
        if signals != self._obeyed:  # also a second one, which may ask for more haste
            self._obeyed, self._stop_mode = signals, requested_stop(self.folder)
            self.agent.draining = self._stop_mode is StopMode.DRAIN
            if self.agent.draining:
                log.info("draining: %d workers are busy; no task begins any more", self.pool.busy)
        return not self.agent.draining or not self.pool.busy

    def _check(self, at: int) -> None:
        self._check_connection(at)
        self._workers.check(at)
        self._report_status(at)

    def _dial(self, to: Connect) -> None:
        server = self._servers.pick(to.bridge, to.server_key)
        self._socket.connect(server.bridge, server.key.encode())

    # ------------------------------------------------------------ status

    def _report_status(self, at: int) -> None:
        if at - self._status_us < STATUS_US:
            return
        self._status_us = at
        self._claim.beat()
        self._sweep.check(at)
        if step_us := process_clock.observe():
            log.warning("the system clock was stepped by %+.1f s; the agent keeps its own time", step_us / 1e6)
        self._workers.report()
        if self.agent.phase is SessionPhase.CONNECTED and at - self._usage_us >= USAGE_US:
            self._usage_us = at
            with contextlib.suppress(OSError):  # no descriptor is left
                self.agent.report_usage(self.pool, self._machine.measure(), self._workers.usage())
        self.write_status()

    def _check_connection(self, at: int) -> None:
        if self.agent.phase is SessionPhase.CONNECTED and self._key_refused_us:
            self._key_refused_us, self._why = 0, ""
        problems = self._socket.problems()
        if not problems:
            return
        if ConnectionProblem.KEY_REFUSED in problems:
            self._key_refused_us = self._key_refused_us or at
            revoked = problems[ConnectionProblem.KEY_REFUSED] == curve.REVOKED
            why = self._why = (
                REVOKED if revoked else "the server does not know this endpoint's key: is it another server's?"
            )
            if revoked or at - self._key_refused_us > KEY_REFUSED_US:
                self.agent.refused = Refused(why, remedy=self._register_again)
            self.agent.disconnect(why, at)
        elif ConnectionProblem.CLOSED in problems:
            self.agent.disconnect(ConnectionProblem.CLOSED.value, at)
        elif self._servers.has_several():  # to a single server, ZeroMQ retries by itself
            self.agent.disconnect(ConnectionProblem.NO_ANSWER.value, at)

    def refusal(self, refused: Refused) -> Refused:
        """Return the refusal with the command that registers this endpoint again."""
        refusal, reason = refused, refused.details.get("reason")
        if reason == "revoked":
            refusal = Refused(REVOKED, remedy=self._register_again)
        elif reason == OTHER_AGENT:
            refusal = Refused(refused.message, remedy=refused.remedy.replace("NAME", self.settings.name))
        self._why, self._remedy = refusal.message, refusal.remedy
        self.write_status("refused")
        return refusal

    def write_status(self, state: str = "") -> None:
        """Write `status.json` if it changed."""
        agent = self.agent
        status = {
            "pid": self.identity.pid,
            "id": self.settings.id,
            "name": self.settings.name,
            "state": state or ("draining" if agent.draining else agent.phase.value),
            "server": agent.server,
            "workers": self.pool.size,
            "ready": self.pool.ready,
            "busy": self.pool.busy,
            "queued": len(agent.queue.held) - agent.running,
            "spooled": sum(n.count for n in agent.outbox.spool.values()),
            "trouble": self._workers.trouble,
            "why": self._why,
            "remedy": self._remedy,
        } | self._workers.facts()
        text = json.dumps(status).encode()
        if text == self._status:
            return
        try:
            fresh = self.folder / "status.json.new"
            fresh.write_bytes(text)
            fresh.replace(self.folder / "status.json")
            self._status = text
        except OSError as e:
            log.warning("status.json could not be written: %s", e.strerror)

    # ------------------------------------------------------------ the end

    def _finish(self) -> None:
        """Let running tasks end and send results. Waiting tasks stay in the journal."""
        self.agent.stop(self._loop.stop_why)
        grace_s = 0.0 if self._stop_mode is StopMode.CANCEL else self.settings.grace_s
        self._workers.finish(self._loop, grace_s)
        self._loop.flush(2.0)
        self.write_status("stopped")
        log.info("stopped")

    def close(self) -> None:
        self._workers.close()
        self._socket.close()
        self._loop.close()
        self._file.close()
        self._claim.release()
        self._lock.release()


def _provider_context(
    folder: Path, settings: EndpointSettings, options: EndpointOptions, container: str, orphans: Orphans | None
) -> ProviderContext:
    return ProviderContext(
        folder,
        folder / "blobs",
        CONTAINERS[container](),
        settings.pass_env,
        settings.limits(),
        orphans,
        settings.server_blobs_here(),
        options.variables() | {LAUNCHER: options.mpi_launcher},
        pinning(options.workers),
    )


def main(argv: list[str] | None = None, *, provider: str = LOCAL, container: str = NONE) -> int:
    parser = argparse.ArgumentParser(prog="oncue.endpoint.run", description="Run an endpoint's agent.")
    parser.add_argument("--dir", required=True, type=Path, help="the endpoint's folder (it has agent.json)")
    parser.add_argument("--by-hand", action="store_true", help="also where it was stopped by hand")
    given = parser.parse_args(argv)
    folder: Path = given.dir.absolute()
    log_to()
    make_files_private()
    try:
        options = load_options(folder)
        settings = effective(folder_settings.load(folder), options)
        if not settings.debuggable:
            hide_from_tasks()
        # Commands of a batch scheduler are children too, which are nobody's orphans.
        adopts = kind_of(options.provider) == LOCAL and adopt_orphans()
        process = AgentProcess(folder, settings, options, provider=provider, container=container, adopts=adopts)
    except (OncueError, OSError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)  # noqa: T201
        return e.exit_code if isinstance(e, OncueError) else 1
    # Checked under the lock: `endpoint stop` either finds this process, or its mark is found here.
    if given.by_hand:
        folder_settings.unmark_stopped(folder)
    elif folder_settings.is_marked_stopped(folder):
        log.info("stopped by hand: `oncue endpoint start` starts it")
        process.close()
        return 0
    keep_what_is_here()
    collect_seldom()
    try:
        process.run()
    except Refused as e:
        print(f"Refused: {process.refusal(e)}", file=sys.stderr)  # noqa: T201
        return REFUSED_EXIT
    finally:
        process.close()
    return 0


if __name__ == "__main__":
    drop_secrets()
    sys.exit(main())
