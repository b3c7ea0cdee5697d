"""Time of this process: the system clock's at the start, then steady.

    unix time = boot time (monotonic, runs on while the machine sleeps) + offset

A step of the system clock (by a person, NTP, or a resumed virtual machine) changes neither silence,
pauses and deadlines of a running process nor the order of what it writes. `observe` notices a step;
with `slew` it moves the offset toward the system clock, so slowly that no timer is harmed. A new
process begins with the system clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS CLOCK_MONOTONIC counts sleep too
STEP_US = 500_000  # a smaller change is the reading's own delay, or NTP at work
SLEW = 0.01  # seconds a second


def _steady_ns() -> int:
    return time.clock_gettime_ns(_BOOT)


def reader(offset_ns: int) -> Callable[[], int]:
    """Return a quick function that returns the unix time in µs of a clock."""
    read, boot = time.clock_gettime_ns, _BOOT
    return lambda: (read(boot) + offset_ns) // 1_000


class ProcessClock:
    """Unix time that never steps."""

    def __init__(self, system_ns: Callable[[], int] = time.time_ns, steady_ns: Callable[[], int] = _steady_ns) -> None:
        self._system_ns, self._steady_ns = system_ns, steady_ns
        self.offset_ns = self._measure_ns()  # unix time less boot time
        self._seen_ns = self._measure_ns()  # the system clock's offset when observed last
        self._observed_ns = steady_ns()
        self.steps = 0  # of the system clock, observed since the start

    def now_us(self) -> int:
        """Return unix time in µs."""
        return (self._steady_ns() + self.offset_ns) // 1_000

    def now_ms(self) -> int:
        """Return unix time in ms."""
        return (self._steady_ns() + self.offset_ns) // 1_000_000

    def behind_us(self) -> int:
        """Return by how much the system clock is ahead of this process's time."""
        return (self._measure_ns() - self.offset_ns) // 1_000

    def observe(self, *, slew: bool = False) -> int:
        """Return the step of the system clock since the last call, in µs; 0: none.

        `slew`: move this process's time toward the system clock, by SLEW of the time passed.
        """
        measured, now = self._measure_ns(), self._steady_ns()
        step = measured - self._seen_ns
        if slew:
            most = int(max(0, now - self._observed_ns) * SLEW)
            self.offset_ns += max(-most, min(most, measured - self.offset_ns))
        self._seen_ns, self._observed_ns = measured, now
        if abs(step) < STEP_US * 1_000:
            return 0
        self.steps += 1
        return step // 1_000

    def _measure_ns(self) -> int:
        return self._system_ns() - self._steady_ns()


process_clock = ProcessClock()


def now_us() -> int:
    """Return this process's unix time in µs."""
    return process_clock.now_us()


def now_ms() -> int:
    """Return this process's unix time in ms."""
    return process_clock.now_ms()
