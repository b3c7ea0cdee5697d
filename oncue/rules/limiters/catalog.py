"""The limiters that a rule may have, in the order in which a firing passes them.

A firing that waits for `rate` counts as running for `limit`: so both hold for what starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.codec import DECODE_ERRORS
from oncue.rules.limiters.base import AnyLimiter, LimitsState, PlaceState
from oncue.rules.limiters.failures import FailuresLimiter
from oncue.rules.limiters.pause import PauseLimiter
from oncue.rules.limiters.rate import RateLimiter
from oncue.rules.limiters.running import RunningLimiter
from oncue.rules.operators.base import OperatorState

LIMITERS: tuple[type[AnyLimiter], ...] = (PauseLimiter, FailuresLimiter, RunningLimiter, RateLimiter)
PAUSE = PauseLimiter.name()
MEMBERS = {member.name(): member for member in LIMITERS}
#: Those that are a mapping in the rule file.
SECTIONS = {name: member for name, member in MEMBERS.items() if member.OPTIONS}
RANK = {name: rank for rank, name in enumerate(MEMBERS)}
STATES: tuple[type[OperatorState], ...] = (LimitsState, PlaceState, *(member.STATE for member in LIMITERS))
_limiters: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(reduce(or_, LIMITERS))


@lru_cache(maxsize=4096)
def resolve_limiters(packed: tuple[bytes, ...]) -> Sequence[AnyLimiter]:
    """Decode the limiters of a rule. Raises Undecodable: a newer version wrote one."""
    try:
        return [_limiters.decode(each) for each in packed]
    except DECODE_ERRORS as e:
        raise Undecodable(f"a limit of the rule cannot be read: {e}") from None
