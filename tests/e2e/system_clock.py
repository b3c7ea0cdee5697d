"""A system clock that a test steps: libfaketime, for the processes that get its environment.

Monotonic clocks and file times are the machine's, as if a person or NTP had set the time of day.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)
LIBRARY = next((path for path in LIBRARIES if Path(path).exists()), "")
needs_faketime = pytest.mark.skipif(not LIBRARY, reason="needs libfaketime (Linux): apt-get install libfaketime")
#: libfaketime 0.9.10 lets clock_nanosleep fail where monotonic clocks are real; Python's sleep calls it.
SITE = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class SystemClock:
    """The clock of one node: its processes start with `environment()`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._site = folder / f"{name}.clock", folder / "site"
        self.ahead_s = 0
        self.set(0)
        self._site.mkdir(exist_ok=True)
        (self._site / "sitecustomize.py").write_text(SITE)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": str(self._site),
        }

    def set(self, ahead_s: int) -> None:
        """Set the clock to the true time and so many seconds."""
        self.ahead_s = ahead_s
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        shutil.move(fresh, self._file)

    def step(self, by_s: int) -> None:
        self.set(self.ahead_s + by_s)
