"""BoundClient: a client with call options preset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from oncue.client.calls import submit_call, submit_calls
from oncue.client.options import Options
from oncue.client.session import Session
from oncue.client.task import Task

if TYPE_CHECKING:
    from oncue.client.executor import OncueExecutor

R = TypeVar("R")


class BoundClient:
    """A client's calls with preset options; made by `client.with_options(...)`.

    `endpoint=` of a call overrides theirs; every other keyword is passed to the function.
    """

    def __init__(self, session: Session, options: Options) -> None:
        self._session, self.options = session, options

    def with_options(self, **changes: Any) -> BoundClient:
        """Return a client with these options changed; see Options."""
        return BoundClient(self._session, self.options.replace(changes))

    def submit(self, fn: Callable[..., R] | str, /, *args: Any, endpoint: str | None = None, **kwargs: Any) -> Task[R]:
        """Submit one call; see Client.submit."""
        return submit_call(self._session, fn, args, kwargs, self._at(endpoint))

    def map(
        self, fn: Callable[[Any], R] | str, iterable: Iterable[Any], /, *, endpoint: str | None = None
    ) -> list[Task[R]]:
        """Submit a call for each item; see Client.map."""
        return submit_calls(self._session, fn, (((item,), {}) for item in iterable), self._at(endpoint))

    def starmap(
        self, fn: Callable[..., R] | str, iterable: Iterable[Iterable[Any]], /, *, endpoint: str | None = None
    ) -> list[Task[R]]:
        """Submit a call for each item, which holds its arguments; see Client.starmap."""
        return submit_calls(self._session, fn, ((tuple(item), {}) for item in iterable), self._at(endpoint))

    def executor(self, endpoint: str | None = None) -> OncueExecutor:
        """Return a concurrent.futures.Executor with these options."""
        from oncue.client.executor import OncueExecutor

        return OncueExecutor(self._session, self._at(endpoint))

    def _at(self, endpoint: str | None) -> Options:
        return self.options if endpoint is None else self.options.replace({"endpoint": endpoint})
