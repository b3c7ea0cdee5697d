"""An agent with a valid key that sends whatever it likes: odd frames, and others' tasks."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import OK, VERSION, Call, Ended, TaskRecord
from oncue.protocol.reports import Output, Started, Usage
from tests.simulation.clock import Clock

NAME = "hostile"  # its endpoint
ODD = (0, 1, -1, 2, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
LIE = b"m\xa3lie"  # the value that it gives for tasks of others
PAUSE_US = 300_000


class HostileAgent:
    """Sends a few frames every now and then, until `stop`."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        send: Callable[[list[bytes]], None],
        others: Callable[[], list[bytes]],
        functions: list[str],
    ) -> None:
        """`others`: the ids of tasks of other endpoints."""
        self._clock, self._rng, self._send, self._others, self._functions = clock, rng, send, others, functions
        self._session, self._n, self._epoch = 0, 0, 0
        self._own: list[TaskRecord] = []
        self._sent: list[list[bytes]] = []
        self._stopped = False
        self.frames = 0
        clock.after(rng.randrange(PAUSE_US), self._act)

    def stop(self) -> None:
        self._stopped = True

    def frame(self, parts: list[bytes]) -> None:
        """It obeys nothing, but learns from what the server says."""
        with contextlib.suppress(Undecodable):
            envelope, body = bridge.decode_from_bridge(parts)
            self._epoch = envelope.epoch
            if isinstance(envelope.message, bridge.Dispatch):
                self._own += decode(list[TaskRecord], body)

    def _act(self) -> None:
        if self._stopped:
            return
        for _ in range(self._rng.randrange(1, 8)):
            self._one()
        self._clock.after(self._rng.randrange(PAUSE_US), self._act)

    def _one(self) -> None:
        rng = self._rng
        kind = rng.randrange(12)
        if kind < 3:
            self._hello()
        elif kind == 3 and self._sent:  # again, and in another order
            self._post(rng.choice(self._sent))
        elif kind == 4:
            self._post([rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(4))])
        elif kind == 5 and self._sent:
            self._post([part[: rng.randrange(len(part) + 1)] for part in rng.choice(self._sent)])
        elif kind < 9:
            self._say(*self._results())
        else:
            self._say(*rng.choice((self._inventory, self._other, self._report))())

    def _hello(self) -> None:
        rng = self._rng
        self._session = rng.choice((self._session + 1, self._clock.now_us, rng.choice(ODD)))
        self._n = 0
        held = rng.choice((0, 0, 1, rng.choice(ODD)))
        boot, journal = rng.choice((b"12345678", rng.randbytes(8))), rng.choice((b"12345678", rng.randbytes(8)))
        at_us = rng.choice((0, self._clock.now_us, rng.choice(ODD)))
        protocol = bridge.PROTOCOL if rng.random() < 0.9 else rng.choice(ODD)
        epoch = self._epoch if rng.random() < 0.9 else rng.choice(ODD)
        self._say(
            bridge.Hello(protocol, "1", "3.11", "h\n\x1b[2J", rng.choice(ODD), boot, journal, 1, held, epoch, at_us)
        )

    def _results(self) -> tuple[bridge.FromAgent, bytes]:
        rng = self._rng
        ids = [*(t.id for t in self._own), *self._some(3), b""]
        call = encode(Call(VERSION, rng.choice(self._functions), rng.choice((NAME, "ep0")), "me", "f"))
        ends = [
            Ended(
                rng.choice(ids) or rng.randbytes(rng.choice((0, 15, 16))),
                rng.choice((1, 1, 1, rng.choice(ODD))),
                rng.choice((OK, OK, rng.randrange(8), 99, -1)),
                rng.choice((0, self._clock.now_us, rng.choice(ODD))),
                rng.choice((0, self._clock.now_us, rng.choice(ODD))),
                LIE,
                b"",
            )
            for _ in range(rng.randrange(4))
        ]
        seq = rng.choice((rng.randrange(10), rng.choice(ODD)))
        raw = call if rng.random() < 0.9 else rng.randbytes(9)
        message = bridge.Results(seq, rng.choice((len(ends), rng.choice(ODD))), raw, 1, rng.choice((5, *ODD)))
        return message, encode(ends)

    def _inventory(self) -> tuple[bridge.FromAgent, bytes]:
        rng = self._rng
        ids = [*self._some(5), *(rng.randbytes(16) for _ in range(3))]
        body = bridge.pack_inventory([(i, rng.randrange(3)) for i in ids])
        return bridge.Inventory(rng.random() < 0.3), body[: rng.choice((len(body), len(body) - 1))]

    def _report(self) -> tuple[bridge.FromAgent, bytes]:
        rng = self._rng
        task = (rng.choice([*self._others(), b"x"]), 1, rng.choice(ODD))
        reports = (
            encode(Started(VERSION, rng.choice((NAME, "ep0")), (task,))),
            encode(Output(VERSION, "ep0", task[0], 1, rng.choice(ODD), b"text")),
            encode(Usage(VERSION, NAME, *(rng.choice(ODD) for _ in range(5)))),
            rng.randbytes(20),
        )
        return bridge.ReportFrame(), rng.choice(reports)

    def _other(self) -> tuple[bridge.FromAgent, bytes]:
        rng = self._rng
        sha = rng.choice(("ab" * 32, "", "../../etc/passwd", *self._functions))
        return rng.choice(
            (
                (bridge.Credit(rng.choice((3, *ODD))), b""),
                (bridge.FetchPart(sha, rng.choice(ODD)), b""),
                (bridge.UploadPart(sha, rng.choice((0, *ODD)), rng.choice((3, *ODD))), b"abc"),
                (bridge.Heartbeat(rng.choice(ODD)), b""),
                (bridge.Bye("\x00" * 100), b""),
            )
        )

    def _some(self, most: int) -> list[bytes]:
        others = self._others()
        return self._rng.sample(others, min(most, len(others)))

    def _say(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        n = self._n if self._rng.random() < 0.9 else self._rng.choice(ODD)
        self._n += 1
        with contextlib.suppress(OverflowError):
            head = bridge.encode(bridge.AgentEnvelope(self._session, n, self._epoch, message))
            self._post([head, body] if body else [head])

    def _post(self, parts: list[bytes]) -> None:
        self.frames += 1
        self._sent = [*self._sent[-20:], parts]
        self._clock.after(self._rng.randrange(2_000), lambda: self._send(parts))
