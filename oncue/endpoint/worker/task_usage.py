"""CPU time and peak memory of the tasks that a worker runs.

Short tasks are not measured: reading the kernel's counters takes as long as they do. The CPU time
of a longer one is that of this process and of the children that have ended, since its start.
"""

from __future__ import annotations

import os
import resource
import sys

MEASURED_US = 10_000  # tasks that took so long are measured
_STATUS, _CLEAR = "/proc/self/status", "/proc/self/clear_refs"
_RESET_PEAK = b"5"  # see proc(5), clear_refs
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss

# Kept, so that a function that replaces them breaks no measurement.
_getrusage, _open, _read, _write, _close = resource.getrusage, os.open, os.read, os.write, os.close


_noted = [0]  # peak of the children that were waited for one by one


def note_child(used: resource.struct_rusage) -> None:
    """Note the memory of a child that has ended."""
    _noted[0] = max(_noted[0], used.ru_maxrss * _UNIT)


class TaskUsage:
    """Counters of the kernel since the last task that was measured."""

    def __init__(self) -> None:
        self._resets = sys.platform == "linux"  # the peak can be set back
        self._cpu_s = self._children_s = 0.0
        self._peak = self._children_peak = 0
        self.measure()

    def begin(self) -> None:
        """Begin to count: what was used before is no task's."""
        own = _getrusage(resource.RUSAGE_SELF)
        self._cpu_s = own.ru_utime + own.ru_stime

    def measure(self) -> tuple[int, int]:
        """Return (CPU time in µs, peak memory in bytes) of a task; 0: not known.

        They are those since the last call, so they include short tasks before it.
        """
        own, children = _getrusage(resource.RUSAGE_SELF), _getrusage(resource.RUSAGE_CHILDREN)
        cpu_s, children_s = own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime
        cpu_us = int((cpu_s - self._cpu_s + children_s - self._children_s) * 1e6)
        self._cpu_s, self._children_s = cpu_s, children_s
        peak = self._own_peak(own.ru_maxrss * _UNIT)
        if children.ru_maxrss * _UNIT > self._children_peak:  # the kernel keeps the largest one for ever
            self._children_peak = children.ru_maxrss * _UNIT
            peak = max(peak, self._children_peak)
        noted, _noted[0] = _noted[0], 0
        return max(0, cpu_us), max(peak, noted)

    def _own_peak(self, most_ever: int) -> int:
        """Return the peak since the last call; 0 if it is not known."""
        if self._resets:
            try:
                return _peak_then_reset()
            except (OSError, ValueError):  # a container may forbid it
                self._resets = False
        before, self._peak = self._peak, max(self._peak, most_ever)
        return most_ever if most_ever > before else 0


def _peak_then_reset() -> int:
    fd = _open(_STATUS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = _read(fd, 8_192)
    finally:
        _close(fd)
    found = text.partition(b"VmHWM:")[2].split(None, 1)
    if not found:
        raise ValueError("no VmHWM")
    fd = _open(_CLEAR, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write(fd, _RESET_PEAK)
    finally:
        _close(fd)
    return int(found[0]) * 1024
