"""AsyncClient: a client for programs with an event loop.

    async with AsyncClient() as client:
        task = await client.submit(square, 3)
        print(await task)

Its methods wait for the server in threads, so that the loop goes on. `await task` also works with
tasks of a Client: that one's calls hold the loop only while they send a new function or large
arguments.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, overload

from oncue.client.client import Client
from oncue.client.files import ShellResult
from oncue.client.options import Options
from oncue.client.session import ClientOptions
from oncue.client.task import Task
from oncue.client.task_list import TaskList
from oncue.protocol.api import Emitted

P = ParamSpec("P")
R = TypeVar("R")


class AsyncClient:
    """Client whose methods are coroutines. The arguments are those of Client.

    `client` is the Client beneath it; `in_thread` calls whatever else it has.
    """

    def __init__(self, url: str = "", token: str = "", **options: Unpack[ClientOptions]) -> None:
        self.client = Client(url, token, **options)

    def __repr__(self) -> str:
        return repr(self.client).replace("client", "async client", 1)

    def _repr_html_(self) -> str:
        return self.client._repr_html_()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.client.__exit__, kind, e, tb)

    async def in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method of the Client in a thread.

        For instance, `await c.in_thread(c.client.endpoints.list)`.
        """
        return await asyncio.to_thread(call, *args, **kwargs)

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Task[R]]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Task[R]]: ...
    @overload
    def submit(  # type: ignore[overload-cannot-match]  # as in BoundClient
        self, fn: Callable[..., R], /, *args: Any, endpoint: str, **kwargs: Any
    ) -> Coroutine[Any, Any, Task[R]]: ...
    @overload
    def submit(
        self, fn: str, /, *args: Any, endpoint: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Task[Any]]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Task[Any]]:
        """Submit a call; see Client.submit. Await the task for its value."""
        return asyncio.to_thread(self.client.submit, fn, *args, **kwargs)

    async def shell(self, script: str, /, **given: Any) -> Task[ShellResult]:
        """Run a shell script; see Client.shell."""
        return await asyncio.to_thread(self.client.shell, script, **given)

    async def mpi(self, script: str, /, **given: Any) -> Task[ShellResult]:
        """Run a script in each rank of an MPI program; see Client.mpi."""
        return await asyncio.to_thread(self.client.mpi, script, **given)

    async def map(self, fn: Any, /, *iterables: Iterable[Any], endpoint: str | None = None) -> TaskList[Any]:
        """Submit a call for each item; see Client.map. The items are read in a thread."""
        return await asyncio.to_thread(self.client.map, fn, *iterables, endpoint=endpoint)

    async def call(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options | None = None
    ) -> Task[Any]:
        """Submit a call with other options; see Client.call."""
        return await asyncio.to_thread(self.client.call, fn, args, kwargs, options)

    @overload
    async def gather(self, tasks: Iterable[Task[R]], *, return_exceptions: Literal[False] = False) -> list[R]: ...
    @overload
    async def gather(self, tasks: Iterable[Task[R]], *, return_exceptions: bool) -> list[R | BaseException]: ...
    async def gather(
        self, tasks: Iterable[Task[R]], *, return_exceptions: bool = False
    ) -> list[R | BaseException] | list[R]:
        """Wait for all tasks; return their results in order. asyncio.timeout() limits it."""
        found: list[R | BaseException] = []
        for task in tasks:
            try:
                found.append(await task)
            except asyncio.CancelledError:
                raise
            except BaseException as e:  # also a function's exit
                if not return_exceptions:
                    raise
                found.append(e)
        return found

    async def as_completed(self, tasks: Iterable[Task[R]]) -> AsyncIterator[Task[R]]:
        """Yield the tasks in the order in which they end, however they end."""
        wanted = list(tasks)
        ended: asyncio.Queue[Task[R]] = asyncio.Queue()

        async def watch(task: Task[R]) -> None:
            try:
                await task
            except asyncio.CancelledError:
                raise
            except BaseException:
                pass
            ended.put_nowait(task)

        watching = [asyncio.create_task(watch(task)) for task in wanted]
        try:
            for _ in wanted:
                yield await ended.get()
        finally:
            for each in watching:
                each.cancel()

    async def emit(self, **event: Any) -> Emitted:
        """Send a CloudEvent; see Client.emit."""
        return await asyncio.to_thread(lambda: self.client.emit(**event))

    async def put(self, value: Any) -> Any:
        """Store a value once, for many calls; see Client.put."""
        return await asyncio.to_thread(self.client.put, value)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has accepted what was submitted; see Client.flush."""
        await asyncio.to_thread(self.client.flush, timeout)

    async def close(self, flush: bool = True) -> None:
        """Flush, then close; see Client.close."""
        await asyncio.to_thread(self.client.close, flush)
