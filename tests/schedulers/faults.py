"""Faults of a scheduler's commands: stand-ins that come first in PATH."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path


class CommandFaults:
    """Stand-ins in `folder`, which callers have first in their PATH; `path` finds the real commands."""

    def __init__(self, folder: Path, path: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, path

    @contextlib.contextmanager
    def faulty(self, command: str, script: str) -> Iterator[Path]:
        """Within it, a shell script stands in for a command.

        `$REAL` in it is the real one; each call appends its arguments to the file that is yielded.
        """
        real = shutil.which(command, path=self._path)
        assert real is not None, f"{command} is not in {self._path}"
        file, calls = self.folder / command, self.folder / f"{command}.calls"
        calls.write_text("")
        new = self.folder / f"{command}.new"
        new.write_text(f'#!/bin/sh\nREAL={shlex.quote(real)}\necho "$*" >>{shlex.quote(str(calls))}\n{script}\n')
        new.chmod(0o755)
        new.rename(file)
        try:
            yield calls
        finally:
            file.unlink()

    def hanging(self, command: str) -> contextlib.AbstractContextManager[Path]:
        """Within it, a command does nothing and never answers."""
        return self.faulty(command, "exec sleep 1000")

    def answer_lost(self, command: str) -> contextlib.AbstractContextManager[Path]:
        """Within it, a command never answers, and what it should do is done all the same, later."""
        # In a subshell that ends: no descendant of the caller, who ends those when its patience is over.
        script = 'cat >"$0.$$"\n(setsid "$REAL" "$@" <"$0.$$" >/dev/null 2>&1 &)\nexec sleep 1000'
        return self.faulty(command, script)

    def refusing(self, command: str, message: str, code: int = 1) -> contextlib.AbstractContextManager[Path]:
        """Within it, a command fails with a message on stderr."""
        return self.faulty(command, f"echo {shlex.quote(message)} >&2\nexit {code}")

    def babbling(self, command: str, text: str) -> contextlib.AbstractContextManager[Path]:
        """Within it, a command succeeds with this output, whatever it was asked."""
        return self.faulty(command, f"printf '%s' {shlex.quote(text)}")

    def counted(self, command: str) -> contextlib.AbstractContextManager[Path]:
        """Within it, each call of a command is written down, and works."""
        return self.faulty(command, 'exec "$REAL" "$@"')
