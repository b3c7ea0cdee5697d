"""Options of a call, and its retry policy."""

from __future__ import annotations

from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.api import RetryPolicy
from oncue.protocol.exceptions import class_name
from oncue.protocol.priority import PRIORITY_WORDS
from oncue.protocol.run_options import Resources
from oncue.protocol.stated_options import checked_resources, run_options


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Retry policy of a call. Durations in seconds."""

    max: int = 3
    backoff: str = "exponential"  # or "constant"
    base: float = 2.0
    cap: float = 300.0
    #: Ends that are retried: lost, error, timeout, exit:75; classes of exceptions, or their names.
    on: tuple[Any, ...] = ("lost", "error")
    never: tuple[Any, ...] = ()  # ends that are not, whatever `on` says
    max_age: float | None = None  # seconds after which a task is not retried any more; None: no limit

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            max=self.max,
            backoff=self.backoff,
            base_ms=round(self.base * 1000),
            cap_ms=round(self.cap * 1000),
            on=list(map(_word, self.on)),
            never=list(map(_word, self.never)),
            max_age_ms=None if self.max_age is None else round(self.max_age * 1000),
        )


def _word(end: Any) -> str:
    """Return an end of attempts as a policy names it. Raises Invalid."""
    if isinstance(end, type) and issubclass(end, BaseException):
        name = class_name(end)
        return name.rpartition(".")[2] if "<locals>" in name else name
    if not isinstance(end, str):
        raise Invalid(
            f"retry on {end!r}: neither a text nor a class of exceptions", remedy='write "lost" or ValueError'
        )
    return end


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a call.

    `timeout` (longest run) and `expires` (latest start from now) are in seconds; None is no limit.
    Raises Invalid for a limit that is not above 0, and for a negative number of retries.
    """

    endpoint: str = "local"
    retry: Retry | int | None = None  # a number: so many retries, with the default backoff
    timeout: float | None = None
    expires: float | None = None
    #: cores, memory, gpus, nodes, ranks, walltime that a task needs: {"cores": 4, "memory": "8GB"}.
    resources: Any = None
    sandbox: Any = False  # True: a folder of the task's own; "keep": it stays if the task fails
    outputs: Any = ()  # globs of files in it that come back
    affinity: Any = ""  # a text: tasks with the same key prefer the worker, or the node, that had it
    priority: str = "normal"  # live, normal, low: which waiting tasks go first

    def __post_init__(self) -> None:
        if self.timeout is not None:
            _check_limit("timeout", self.timeout)
        if self.expires is not None:
            _check_limit("expires", self.expires)
        found = run_options({}, self.sandbox, self.outputs, self.affinity)
        if not isinstance(self.resources, Resources | None):
            msgspec.structs.force_setattr(self, "resources", checked_resources(self.resources))
        msgspec.structs.force_setattr(self, "outputs", found.outputs if found else ())
        if self.priority not in PRIORITY_WORDS:
            raise Invalid(f"there is no priority {self.priority!r}", remedy=f"there are {', '.join(PRIORITY_WORDS)}")
        most = self.retry.max if isinstance(self.retry, Retry) else self.retry
        if most is not None and most < 0:
            raise Invalid(
                f"retry is {most}; it is how often to try again: 0 or more", remedy="leave retry out for no retries"
            )

    def policy(self) -> RetryPolicy | None:
        if self.retry is None:
            return None
        return (Retry(max=self.retry) if isinstance(self.retry, int) else self.retry).policy()

    def replace(self, changes: dict[str, Any]) -> Options:
        """Return a copy with `changes`. Raises Invalid for wrong names or types."""
        unknown = set(changes) - set(Options.__struct_fields__)
        if unknown:
            raise Invalid(
                f"there is no option {sorted(unknown)[0]!r}",
                remedy=f"options: {', '.join(Options.__struct_fields__)}",
            )
        try:
            return msgspec.convert(msgspec.structs.asdict(self) | changes, Options)
        except msgspec.ValidationError as e:
            raise Invalid(
                f"an option is not right: {e}", remedy="timeout and expires are seconds, retry is a number"
            ) from None


def _check_limit(name: str, seconds: float) -> None:
    """Raise Invalid below 1 ms. Limits are sent as whole milliseconds; 0 is none."""
    if not 0.001 <= seconds < float("inf"):
        raise Invalid(f"{name} is {seconds:g} s; a limit is at least 0.001 s", remedy=f"leave {name} out for no limit")
