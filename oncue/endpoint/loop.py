"""Loop of an agent: it connects the state machine, a pool of workers and a socket.

The agent's process (run.py) and the process of a node (node.py) are such loops.

    socket (ZeroMQ FD) ─┐                    ┌─► socket: messages
    pool's pipes ───────┼─► Agent ──effects──┼─► pool: chunks, cancels
    timers, signals ────┘                    └─► stderr: one line a change of state
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

from oncue.clocks.process import now_us
from oncue.endpoint.agent.agent import Agent
from oncue.endpoint.agent.effects import CancelRunning, Connect, Effect, LogLine, RememberServers, RunTasks, SendMessage
from oncue.endpoint.agent.session import SessionPhase
from oncue.endpoint.agent.socket import AgentLink
from oncue.endpoint.pool.base import PoolEvents, WorkerPool
from oncue.errors import OncueError, Undecodable
from oncue.processes.stop_signals import stop_signals
from oncue.text.log_lines import LineLimiter

log = logging.getLogger("oncue.agent")
_worker = itemgetter(3)


def forward(agent: Agent, events: PoolEvents) -> None:
    """Pass events of a pool to the agent."""
    for _, _, ends in events.ended:
        agent.on_results(ends)
    for _, _, tasks in reversed(events.requeue):  # each goes to the front
        agent.requeue(tasks)
    for worker, started in groupby(events.started, _worker):
        agent.on_started([(i, n, at) for i, n, at, _ in started], worker)
    for task_id, attempt, offset, text in events.output:
        agent.on_output(task_id, attempt, offset, text)


def execute_in_pool(pool: WorkerPool, effect: RunTasks | CancelRunning) -> None:
    """Execute an effect of the agent that is for its pool."""
    match effect:
        case RunTasks():
            pool.run(effect.function, effect.body, effect.timeout_ms, effect.attempt, effect.tasks, effect.options)
        case CancelRunning():
            pool.cancel(effect.ids)


class AgentLoop:
    """One thread's turns over agent, pool and socket.

    `dial` connects the socket to the server that an effect names; it raises OncueError.
    `remember` stores the servers that a server named. `journalled` is called when the journal has
    all results that were drained.
    """

    def __init__(
        self,
        agent: Agent,
        pool: WorkerPool,
        socket: AgentLink,
        dial: Callable[[Connect], None],
        remember: Callable[[tuple[tuple[str, str], ...]], None] = lambda servers: None,
        journalled: Callable[[], None] = lambda: None,
    ) -> None:
        self.agent, self.pool, self._socket = agent, pool, socket
        agent.misfit, agent.rooms_of = pool.misfit, pool.rooms_of
        self._dial, self._remember, self._journalled = dial, remember, journalled
        self.stop_why = ""  # the newest signal to stop
        self.signals = 0  # so many came
        self._busy = False
        self._selector = selectors.DefaultSelector()
        self._wake_fd = -1
        self._others: dict[int, Callable[[], None]] = {}  # further descriptors
        self._watched: set[int] = set()
        self._watching = (-1, -1)  # versions of the pool's and the socket's descriptors
        self._socket_fds: set[int] = set()
        self._limited = LineLimiter(log)

    def stop_on_signals(self) -> None:
        """Let SIGTERM and SIGINT set `stop_why`, and end a turn's pause."""
        self._wake_fd, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stop_why = signal.Signals(number).name
        self.signals += 1

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` when this descriptor is, before the turn's check."""
        self._others[fd] = on_readable
        self._selector.register(fd, selectors.EVENT_READ)

    def turn(self, due_us: int, check: Callable[[int], None]) -> None:
        """Run one turn: read, `check(now_us)`, let the agent act.

        It pauses until something happens, at most until `due_us`; not if the last turn left work.
        """
        self._watch()
        for key, _ in self._selector.select(0.0 if self._busy else self._pause_s(due_us)):
            if key.fd == self._wake_fd:
                os.read(self._wake_fd, 4096)
            elif key.fd in self._others:
                self._others[key.fd]()
            elif key.fd not in self._socket_fds:
                self.pool.on_readable(key.fd)
        at = now_us()
        if self.pool.next_wake_us is not None and at >= self.pool.next_wake_us:
            self.pool.tick(at)
        self._receive(at)
        check(at)
        self.forward_pool_events()
        self.execute(self.agent.turn(at, self.pool.room(), self.pool.chunk_size))
        if self.agent.journalled:
            self._journalled()
        self._busy = self.forward_pool_events() or self._socket.readable

    def _pause_s(self, due_us: int) -> float:
        wake = min(self.agent.next_wake_us(), due_us)
        if self.pool.next_wake_us is not None:
            wake = min(wake, self.pool.next_wake_us)
        return max(0.0, (wake - now_us()) / 1e6)

    def _watch(self) -> None:
        """Watch the descriptors of the pool and the socket."""
        now = (self.pool.fds_version, self._socket.connects)
        if self._watching == now:
            return
        self._socket_fds = set(self._socket.filenos())
        wanted = set(self.pool.fds()) | self._socket_fds
        for fd in self._watched:
            self._selector.unregister(fd)  # also if the number is another file's now
        for fd in wanted:
            self._selector.register(fd, selectors.EVENT_READ)
        self._watched, self._watching = wanted, now

    def _receive(self, at: int) -> None:
        for parts in self._socket.receive():
            try:
                self.agent.on_message(parts, at)
            except Undecodable as e:
                self._limited.log(logging.ERROR, "message", "a message of the server cannot be read: %s", e.message)
            except Exception:  # a bug here; the journal has what is needed to go on
                self._limited.log(logging.ERROR, "message", "a message of the server failed", exc_info=True)
            else:
                continue
            self.agent.disconnect("the server's messages cannot be read", at)
            return

    def forward_pool_events(self) -> bool:
        """Pass the pool's events to the agent. Return True if there were any."""
        return self.forward(self.pool.drain())

    def forward(self, events: PoolEvents) -> bool:
        """Pass these events of the pool to the agent. Return True if there are any."""
        if not events:
            return False
        forward(self.agent, events)
        return True

    def execute(self, effects: list[Effect]) -> None:
        """Execute the agent's effects, in order."""
        for effect in effects:
            match effect:
                case SendMessage():
                    self._socket.send(effect.parts)
                case RunTasks() | CancelRunning():
                    execute_in_pool(self.pool, effect)
                case LogLine():
                    log.info("%s", effect.text)
                case Connect():
                    self._connect(effect)
                case RememberServers():
                    self._remember(effect.servers)

    def _connect(self, to: Connect) -> None:
        try:
            self._dial(to)
        except OncueError as e:
            log.warning("%s", e)
            self.agent.disconnect(e.message, now_us())

    def flush(self, limit_s: float) -> None:
        """Start no further task, and send what is left, for at most `limit_s`."""
        agent = self.agent
        self.forward_pool_events()
        self.execute(agent.turn(now_us(), 0, self.pool.chunk_size))
        deadline = time.monotonic() + limit_s
        while agent.phase is SessionPhase.CONNECTED and agent.outbox.spool and time.monotonic() < deadline:
            self._watch()
            self._selector.select(0.05)
            self._receive(now_us())
            self.execute(agent.turn(now_us(), 0, self.pool.chunk_size))
        agent.end_session(self.stop_why)
        self.execute(agent.turn(now_us(), 0, self.pool.chunk_size))

    def close(self) -> None:
        self._selector.close()
