"""Simulated ends of an agent: its server, and nodes whose workers only wait.

    ServerEnd ◄──bridge──► Agent, PoolSet (the real ones) ◄──bridge──► SimulatedNodes

Time is what `clock` says: this machine's, or a simulated one (bench/virtual_agent.py).
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from oncue.endpoint.nodes.listener import Received
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import pack_args
from oncue.protocol.records import OK, VERSION, Call, Ended, TaskRecord

FRAME = 256  # tasks that the server sends together
READ_AT_ONCE = 256  # messages, as the agent's sockets do
NOTHING = b"m\xc0"  # a result of None
GRANTED = 1 << 40  # credit without an end


class SimulatedNodes:
    """A NodeLink of nodes whose workers take `task_us` for each task.

    A message is on its way for `latency_us`.
    """

    def __init__(
        self, nodes: int, workers: int, clock: Callable[[], int], task_us: int = 0, latency_us: int = 0
    ) -> None:
        self._workers, self._clock = workers, clock
        self._task_us, self._latency_us = task_us, latency_us
        self._numbers = [0] * nodes  # of the next message
        self._seqs = [0] * nodes
        self._free = [[0] * workers for _ in range(nodes)]  # when each worker is: heaps
        self._due: list[tuple[int, int, int, bridge.FromAgent, Sequence[bytes]]] = []  # messages to the agent
        self._ties = itertools.count()
        self.messages = self.tasks = 0  # both ways

    def join(self) -> None:
        """Let all nodes say hello."""
        for node in range(len(self._numbers)):
            route = _route(node)
            hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", f"n{node}", 1, route * 2, b"", self._workers, 0)
            self._post(self._clock(), node, hello)
            self._post(self._clock(), node, bridge.Credit(GRANTED))

    def beat(self) -> None:
        """Let all nodes say that they are alive."""
        for node in range(len(self._numbers)):
            self._post(self._clock(), node, bridge.Heartbeat(self._clock()))

    def _post(self, at: int, node: int, message: bridge.FromAgent, ids: Sequence[bytes] = ()) -> None:
        heapq.heappush(self._due, (at, next(self._ties), node, message, ids))

    @property
    def next_us(self) -> int | None:
        """Time at which the next message arrives; None without one."""
        return self._due[0][0] if self._due else None

    # ------------------------------------------------------------ a NodeLink

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        """Let a node run what it is sent. It has begun all before it is asked to give some back."""
        self.messages += 1
        envelope, body = bridge.decode_from_bridge(parts)
        message = envelope.message
        if isinstance(message, bridge.Dispatch):
            node, free = int.from_bytes(route, "big"), self._free[int.from_bytes(route, "big")]
            tasks = decode(list[TaskRecord], body)
            self.tasks += len(tasks)
            begin = max(self._clock() + self._latency_us, free[0])
            end = begin + len(tasks) * self._task_us
            heapq.heapreplace(free, end)
            results = bridge.Results(0, len(tasks), message.call, 1, GRANTED)
            self._post(end + self._latency_us, node, results, [t.id for t in tasks])
        return True

    @property
    def readable(self) -> bool:
        return bool(self._due) and self._due[0][0] <= self._clock()

    def receive(self, on_message: Received) -> None:
        for _ in range(READ_AT_ONCE):
            if not self.readable:
                return
            self.messages += 1
            at, _, node, message, ids = heapq.heappop(self._due)
            body = b""
            if isinstance(message, bridge.Results):
                self._seqs[node] += 1
                message = bridge.Results(self._seqs[node], message.count, message.call, 1, GRANTED)
                ended = at - self._latency_us
                body = encode([Ended(i, 1, OK, max(1, ended - self._task_us), ended, NOTHING) for i in ids])
            head = bridge.encode(bridge.AgentEnvelope(1, self._numbers[node], 0, message))
            self._numbers[node] += 1
            on_message(f"b{node}", _route(node), [head, body] if body else [head])

    def filenos(self) -> list[int]:
        return []

    def allow(self, block: str, public_key: bytes) -> None: ...

    def forbid(self, block: str, public_key: bytes) -> None: ...

    def close(self) -> None: ...


def _route(node: int) -> bytes:
    return node.to_bytes(4, "big")


class ServerEnd:
    """The least that an agent needs of its server, as the agent's socket (AgentLink).

    Results are acked at once.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.connects = 0
        self.done = 0  # tasks
        self.welcomed = False
        self._session = self._number = 0
        self._inbox: deque[list[bytes]] = deque()  # to the agent

    def enqueue(self, function: str, first: int, count: int) -> None:
        """Send tasks of this function, numbered from `first` on."""
        call, args = encode(Call(VERSION, function, "ep", "bench", "noop")), pack_args((), {})
        for at in range(first, first + count, FRAME):
            made = [TaskRecord(i.to_bytes(16, "big"), args) for i in range(at, min(at + FRAME, first + count))]
            self._post(bridge.Dispatch(call, 1, len(made), 1), encode(made))

    def beat(self) -> None:
        """Say that the server is alive."""
        if self.welcomed:
            self._post(bridge.Heartbeat(self._clock()))

    def _post(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        head = bridge.encode(bridge.BridgeEnvelope(self._session, self._number, 1, message))
        self._number += 1
        self._inbox.append([head, body] if body else [head])

    # ------------------------------------------------------------ an AgentLink

    @property
    def readable(self) -> bool:
        return bool(self._inbox)

    def filenos(self) -> list[int]:
        return []

    def receive(self) -> list[list[bytes]]:
        return [self._inbox.popleft() for _ in range(min(READ_AT_ONCE, len(self._inbox)))]

    def send(self, parts: list[bytes]) -> None:
        envelope, _ = bridge.decode_from_agent(parts)
        message = envelope.message
        if isinstance(message, bridge.Hello):
            self._session, self._number, self.welcomed = envelope.session, 0, True
            self._post(bridge.Welcome(1, "bench", "1", by_function=True))
        elif isinstance(message, bridge.Results):
            self.done += message.count
            self._post(bridge.Ack(message.seq))
