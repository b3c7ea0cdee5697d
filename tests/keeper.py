"""Keeps a daemon of a test: runs it, adopts all that it leaves behind, and ends all of it.

    test ──stdin──► keeper (adopts orphans) ──► daemon ──► its children, detached ones too

The keeper ends with the daemon's own end, but not before its descendants have ended. It kills all of
them when its stdin closes: when the test ends it, or dies in any way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oncue.processes.children import adopt_orphans, children_of, descendants_of, kill_all, reap

END_S = 30.0


class Kept:
    """A daemon with its keeper."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], output: Path) -> None:
        self._command, self._environ, self._output = list(command), dict(environ), output
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._keeper is None or self._keeper.poll() is not None, "it runs already"
        environ = self._environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        with self._output.open("ab") as out:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "tests.keeper", *self._command],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def descendants(self) -> set[int]:
        """Return the daemon and all processes that come from it."""
        return descendants_of(self._keeper.pid) if self._keeper is not None and self.running else set()

    def daemon(self) -> int:
        """Return the process id of the daemon itself."""
        assert self._keeper is not None
        end = time.monotonic() + END_S
        while time.monotonic() < end:
            for pid in children_of(self._keeper.pid):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == self._command[0].encode():
                    return pid
            time.sleep(0.02)
        raise AssertionError(f"{self._command[0]} does not run: {self.tail()}")

    def kill(self) -> None:
        """Kill the daemon and all processes that come from it, at once."""
        if self._keeper is not None:
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
            self._keeper.wait(END_S)

    def terminate(self) -> None:
        """Ask the daemon to end, as an administrator would; kill it if it does not."""
        os.kill(self.daemon(), signal.SIGTERM)
        assert self._keeper is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(END_S)
        self.kill()

    def tail(self) -> str:
        return self._output.read_text(errors="replace")[-2000:] if self._output.exists() else ""


def keep(command: Sequence[str]) -> int:
    """Run a daemon until stdin closes, or it ends and nothing of it is left."""
    adopt_orphans()
    closed = threading.Event()
    threading.Thread(target=_watch_stdin, args=[closed], daemon=True).start()
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while not closed.wait(0.1):
        others = children_of(os.getpid()) - {daemon.pid}
        reap(others)
        if daemon.poll() is not None and not children_of(os.getpid()):
            return daemon.returncode
    end = time.monotonic() + END_S / 2
    while (found := descendants_of(os.getpid())) and time.monotonic() < end:
        kill_all(found)
        daemon.poll()
        reap(children_of(os.getpid()) - {daemon.pid})
        time.sleep(0.01)
    return 0


def _watch_stdin(closed: threading.Event) -> None:
    os.read(0, 1)
    closed.set()


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
