"""ShellResult: what a shell function has returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncue.client.files.output_file import OutputFile


class ShellResult:
    """Result of a shell function.

    `returncode` is its exit code, 0: another one raises ShellFailed. `stdout` and `stderr` are the
    starts of what it printed, as text; `stdout_file` and `stderr_file` all of it (None: nothing).
    `outputs` are the files that its `outputs` named.
    """

    def __init__(self, value: Mapping[str, Any], files: Sequence[OutputFile]) -> None:
        self.returncode = int(value.get("returncode", 0))
        self.stdout, self.stderr = str(value.get("stdout", "")), str(value.get("stderr", ""))
        self.outputs = [f for f in files if not f.stream]
        self.files = list(files)

    @property
    def stdout_file(self) -> OutputFile | None:
        return next((f for f in self.files if f.stream == "stdout"), None)

    @property
    def stderr_file(self) -> OutputFile | None:
        return next((f for f in self.files if f.stream == "stderr"), None)

    def plain(self) -> dict[str, Any]:
        """Return it without the files' content, for JSON."""
        return {"returncode": self.returncode, "stdout": self.stdout, "stderr": self.stderr}

    def __repr__(self) -> str:
        more = f", outputs={[f.name for f in self.outputs]}" if self.outputs else ""
        return f"ShellResult(returncode={self.returncode}, stdout={_short(self.stdout)}, stderr={_short(self.stderr)}{more})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
