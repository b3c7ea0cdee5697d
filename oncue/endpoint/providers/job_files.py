"""Files of an endpoint's jobs: script, output and exit code, by the job's mark.

    jobs/MARK.sh      script; readable by its user only, because it has the block's secret
    jobs/MARK.out     stdout and stderr (.err) of the script
    jobs/MARK.exit    exit code, written by the script at its end
    jobs/ids/JOB      the mark of the job with this id

The folder belongs to the endpoint, which others cannot enter. Where nodes do not see it, there are
no output and no exit code: the scheduler's word counts alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import quote

KEPT_JOBS = 200  # whose files stay
TAIL_BYTES = 4_000
_SUFFIXES = (".sh", ".node", ".out", ".err", ".exit", ".submit", ".log", ".parsl")


class JobFiles:
    """Files of the jobs of one endpoint. Raises OSError if the folder cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids = folder / "ids"
        self._ids.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    def path(self, mark: str, suffix: str) -> Path:
        return self.folder / f"{mark}{suffix}"

    def write(self, mark: str, suffix: str, text: str) -> Path:
        """Write a private file of a job; return its path. Raises OSError."""
        path = self.path(mark, suffix)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def keep(self, mark: str, suffix: str, text: str) -> None:
        """Write a private file of a job, if the disk lets us."""
        with contextlib.suppress(OSError):
            self.write(mark, suffix, text)

    def kept(self, job: str, suffix: str) -> str | None:
        """Return the content of a job's file, if it is here."""
        with contextlib.suppress(OSError):
            if mark := self.mark_of(job):
                return self.path(mark, suffix).read_text(encoding="utf-8")
        return None

    def bind(self, job: str, mark: str) -> None:
        """Remember the mark of a job, if the disk lets us: it leads to its output only."""
        with contextlib.suppress(OSError):
            os.symlink(mark, self._ids / quote(job, safe=""))

    def mark_of(self, job: str) -> str | None:
        try:
            return os.readlink(self._ids / quote(job, safe=""))
        except OSError:
            return None

    def exit_code(self, job: str) -> int | None:
        """Return the exit code that the job's script left behind, if it did."""
        with contextlib.suppress(OSError, ValueError):
            if (mark := self.mark_of(job)) and 0 <= (code := int(self._tail(mark, ".exit"))) <= 255:
                return code
        return None

    def stderr_tail(self, job: str) -> str:
        """Return the last lines of the job's stderr, as far as they are here."""
        with contextlib.suppress(OSError):
            if mark := self.mark_of(job):
                return self._tail(mark, ".err").strip()
        return ""

    def _tail(self, mark: str, suffix: str) -> str:
        with self.path(mark, suffix).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
        return text.partition("\n")[2] if size > TAIL_BYTES and "\n" in text else text

    def prune(self, kept: int = KEPT_JOBS) -> None:
        """Remove the files of all but the newest jobs. Raises OSError."""
        scripts = sorted(self.folder.glob("*.sh"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        old = {p.stem for p in scripts[kept:]}
        for mark in old:
            for suffix in _SUFFIXES:
                self.path(mark, suffix).unlink(missing_ok=True)
        if old:
            for link in self._ids.iterdir():
                if os.readlink(link) in old:
                    link.unlink(missing_ok=True)
