"""Rate limits of tokens, and of addresses without a token, in requests per second."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from oncue.dispatcher.token_bucket import TokenBucket
from oncue.errors import RateLimited

_KEPT = 10_000
OPEN_PER_S = 500.0  # requests without a token to open routes, of one address
REFUSED_PER_S = 200.0  # refused requests without a good token, of one address
REFUSAL_S = 1.0  # further ones are refused so late


class RateLimit:
    """Allows `rate_per_s` requests a second for each key; 0: no limit.

    A burst may have up to two seconds' worth of requests.
    """

    def __init__(
        self, rate_per_s: float, clock: Callable[[], float] = time.monotonic, whose: str = "with this token"
    ) -> None:
        self.rate = rate_per_s
        self.burst = max(1.0, 2 * rate_per_s)
        self._clock, self._whose = clock, whose
        self._buckets: dict[str, TokenBucket] = {}

    def count(self, key: str) -> None:
        """Count a request.

        Raises RateLimited, with `retry_after_s`, if the limit is exceeded.
        """
        if not self.rate:
            return
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._add(key, now)
        if not bucket.take(1, now):
            wait = math.ceil(bucket.wait_s(1))
            raise RateLimited(
                f"over {self.rate:g} requests a second {self._whose}",
                remedy=f"try again in {wait} s; POST /v1/tasks/batch sends many tasks in one request",
                retry_after_s=wait,
                rate_per_s=self.rate,
            )

    def _add(self, key: str, now: float) -> TokenBucket:
        """Add a bucket. If there are many, those that are full go, or the fullest half."""
        if len(self._buckets) >= _KEPT:
            kept = {k: v for k, v in self._buckets.items() if not v.is_full(now)}
            if len(kept) >= _KEPT:
                kept = dict(sorted(kept.items(), key=lambda kv: kv[1].left)[: _KEPT // 2])
            self._buckets = kept
        bucket = self._buckets[key] = TokenBucket(self.burst, self.rate)
        return bucket


class AddressLimit:
    """Limits of requests without a token, for each address.

    Refusals beyond the rate are delayed: nobody can try many tokens, or fill the server's time with
    refusals, and callers with a token at the same address are not concerned.
    """

    def __init__(self) -> None:
        whose = "without a token from this address"
        self._open = RateLimit(OPEN_PER_S, whose=whose)
        self._refused = RateLimit(REFUSED_PER_S, whose=whose)

    def count(self, address: str) -> None:
        """Count a request to an open route. Raises RateLimited."""
        self._open.count(address)

    async def refused(self, address: str) -> None:
        """Count a refusal, and wait if there are many."""
        try:
            self._refused.count(address)
        except RateLimited:
            await asyncio.sleep(REFUSAL_S)
