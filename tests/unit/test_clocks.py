"""The time of a process, and the clocks of its peers."""

from __future__ import annotations

import pytest

from oncue.clocks.peer import PeerClock
from oncue.clocks.process import ProcessClock, now_us, process_clock, reader

S = 1_000_000_000
YEAR = 365 * 86_400 * S


class Machine:
    """A machine whose clocks the test sets."""

    def __init__(self) -> None:
        self.system_ns, self.steady_ns = 1_700_000_000 * S, 5_000 * S
        self.process = ProcessClock(lambda: self.system_ns, lambda: self.steady_ns)

    def passes(self, ns: int) -> None:
        self.system_ns += ns
        self.steady_ns += ns


@pytest.mark.parametrize("step", [S, -S, 3_600 * S, -3_600 * S, YEAR, -YEAR])
def test_a_step_of_the_system_clock_does_not_change_the_time_of_a_process(step: int) -> None:
    machine = Machine()
    machine.passes(10 * S)
    before = machine.process.now_us()

    machine.system_ns += step
    machine.passes(2 * S)

    assert machine.process.now_us() - before == 2_000_000
    assert machine.process.observe() == step // 1_000
    assert machine.process.observe() == 0  # told once
    assert machine.process.steps == 1
    assert machine.process.behind_us() == step // 1_000


def test_a_small_correction_is_no_step() -> None:
    machine = Machine()
    machine.system_ns += S // 5
    assert machine.process.observe() == 0
    assert machine.process.steps == 0


@pytest.mark.parametrize("step", [10 * S, -10 * S])
def test_slewing_approaches_the_system_clock_and_never_runs_backwards(step: int) -> None:
    machine = Machine()
    machine.system_ns += step
    last = machine.process.now_us()
    for _ in range(1_100):
        machine.passes(S)
        machine.process.observe(slew=True)
        assert 980_000 <= machine.process.now_us() - last <= 1_020_000
        last = machine.process.now_us()
    assert machine.process.now_us() == machine.system_ns // 1_000


def test_a_worker_reads_the_time_of_its_pool() -> None:
    read = reader(process_clock.offset_ns)
    before = now_us()
    assert before <= read() <= now_us()


def test_a_peers_clock_counts_only_beyond_the_tolerance() -> None:
    peer = PeerClock()
    peer.measure(1_000_000_000, 1_004_000_000)
    assert peer.known
    assert peer.ahead_us == 0
    peer.measure(9_000_000_000, 1_000_000_000)
    assert peer.ahead_us == 8_000_000_000
    peer.measure(9_001_000_000, 1_003_000_000)  # a late message
    assert peer.ahead_us == 8_000_000_000
    peer.measure(1_010_000_000, 1_010_000_000)
    assert peer.ahead_us == 0


def test_a_peer_that_does_not_say_its_time_is_not_known() -> None:
    peer = PeerClock()
    peer.measure(0, 1_000_000_000)
    assert not peer.known
    assert peer.ahead_us == 0
