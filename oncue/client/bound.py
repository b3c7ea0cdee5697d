"""A client with the options of its calls set beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from oncue.client.batch import Options
from oncue.errors import Invalid

if TYPE_CHECKING:
    from oncue.client.client import Client
    from oncue.client.executor import OncueExecutor
    from oncue.client.task import Task

R = TypeVar("R")


class BoundClient:
    """What `client.with_options(...)` gives: the client's calls, with these options. `endpoint=` of a call goes before
    theirs; every other keyword goes to the function."""

    def __init__(self, client: Client, options: Options) -> None:
        self.client, self.options = client, options

    def with_options(self, **changes: Any) -> BoundClient:
        """These options changed; see Options."""
        return BoundClient(self.client, changed(self.options, changes))

    def submit(self, fn: Callable[..., R] | str, /, *args: Any, endpoint: str | None = None, **kwargs: Any) -> Task[R]:
        """As Client.submit."""
        return self.client.call(fn, args, kwargs, self._at(endpoint))

    def map(
        self, fn: Callable[[Any], R] | str, iterable: Iterable[Any], /, *, endpoint: str | None = None
    ) -> list[Task[R]]:
        """As Client.map."""
        return self.client.call_many(fn, (((item,), {}) for item in iterable), self._at(endpoint))

    def starmap(
        self, fn: Callable[..., R] | str, iterable: Iterable[Iterable[Any]], /, *, endpoint: str | None = None
    ) -> list[Task[R]]:
        """As Client.starmap."""
        return self.client.call_many(fn, ((tuple(item), {}) for item in iterable), self._at(endpoint))

    def executor(self, endpoint: str | None = None) -> OncueExecutor:
        """As Client.executor."""
        from oncue.client.executor import OncueExecutor

        return OncueExecutor(BoundClient(self.client, self._at(endpoint)))

    def _at(self, endpoint: str | None) -> Options:
        return self.options if endpoint is None else changed(self.options, {"endpoint": endpoint})


def changed(options: Options, changes: dict[str, Any]) -> Options:
    """Raises Invalid for an unknown option or a value of the wrong type."""
    unknown = set(changes) - set(Options.__struct_fields__)
    if unknown:
        raise Invalid(
            f"there is no option {sorted(unknown)[0]!r}", remedy=f"options: {', '.join(Options.__struct_fields__)}"
        )
    try:
        return msgspec.convert(msgspec.structs.asdict(options) | changes, Options)
    except msgspec.ValidationError as e:
        raise Invalid(
            f"an option is not right: {e}", remedy="timeout and expires are seconds, retry is a number"
        ) from None
