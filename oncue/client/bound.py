"""BoundClient: a client with call options preset."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from oncue.client.calls import Call, submit_call, submit_calls
from oncue.client.files import ShellResult
from oncue.client.options import Options
from oncue.client.session import Session
from oncue.client.task import Task
from oncue.client.task_list import TaskList
from oncue.errors import Invalid

if TYPE_CHECKING:
    from oncue.client.executor import OncueExecutor
    from oncue.functions.body import Packed

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class BoundClient:
    """A client's calls with preset options; made by `client.with_options(...)`.

    `endpoint=` of a call overrides theirs; every other keyword is passed to the function. A type
    checker compares arguments with the function's parameters; it does not for a call with
    `endpoint=`, which no Python type can say.
    """

    def __init__(self, session: Session, options: Options) -> None:
        self.session, self.options = session, options

    def __repr__(self) -> str:
        return f"<oncue client of {self.session.http.address()} with {self.options}>"

    def with_options(self, **options: Any) -> BoundClient:
        """Return a client with preset options.

        They are endpoint, retry (a number or Retry), timeout and expires (seconds), resources
        ({"cores": 4, "memory": "8GB"}), sandbox, outputs, affinity (a text), priority (live,
        normal or low). Raises Invalid for other names.
        """
        return BoundClient(self.session, self.options.replace(options))

    @overload
    def submit(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Task[R]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Task[R]: ...
    @overload
    def submit(  # type: ignore[overload-cannot-match]  # it is, where `endpoint` is no parameter of fn
        self, fn: Callable[..., R], /, *args: Any, endpoint: str, **kwargs: Any
    ) -> Task[R]: ...
    @overload
    def submit(self, fn: str, /, *args: Any, endpoint: str | None = None, **kwargs: Any) -> Task[Any]: ...
    def submit(  # type: ignore[misc]  # `endpoint` of fn itself: see `call`
        self, fn: Any, /, *args: Any, endpoint: str | None = None, **kwargs: Any
    ) -> Task[Any]:
        """Run fn(*args, **kwargs) on the endpoint.

        `fn` may be the name or hash of a registered function. Returns before the server has
        accepted the task: see Client.flush(). A function is packed at its first submission, with
        the values that it closes over at that time. Raises CannotPack; Unreachable if there is no
        server. Rejections by the server (NotFound, Forbidden ...) are raised by result().
        """
        return submit_call(self.session, fn, args, kwargs, self._at(endpoint))

    @overload
    def map(
        self, fn: Callable[[A], Coroutine[Any, Any, R]], items: Iterable[A], /, *, endpoint: str | None = None
    ) -> TaskList[R]: ...
    @overload
    def map(self, fn: Callable[[A], R], items: Iterable[A], /, *, endpoint: str | None = None) -> TaskList[R]: ...
    @overload
    def map(
        self, fn: Callable[[A, B], R], items: Iterable[A], more: Iterable[B], /, *, endpoint: str | None = None
    ) -> TaskList[R]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B, C], R],
        items: Iterable[A],
        more: Iterable[B],
        most: Iterable[C],
        /,
        *,
        endpoint: str | None = None,
    ) -> TaskList[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., R],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        fourth: Iterable[Any],
        /,
        *others: Iterable[Any],
        endpoint: str | None = None,
    ) -> TaskList[R]: ...
    @overload
    def map(self, fn: str, /, *iterables: Iterable[Any], endpoint: str | None = None) -> TaskList[Any]: ...
    def map(self, fn: Any, /, *iterables: Iterable[Any], endpoint: str | None = None) -> TaskList[Any]:
        """Submit a call for each item, in batches while the items are read.

        With several iterables, a call takes an item of each; the shortest ends it, as in Python's
        own map().
        """
        if not iterables:
            raise TypeError("map() needs a function and at least one iterable")
        return self.call_many(fn, ((args, {}) for args in zip(*iterables, strict=False)), self._at(endpoint))

    def starmap(
        self, fn: Callable[..., R] | str, iterable: Iterable[Iterable[Any]], /, *, endpoint: str | None = None
    ) -> TaskList[R]:
        """Submit a call for each item, which holds the arguments of the call."""
        return self.call_many(fn, ((tuple(item), {}) for item in iterable), self._at(endpoint))

    def call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options | None = None) -> Task[Any]:
        """Submit fn(*args, **kwargs); its keywords cannot collide with options."""
        return submit_call(self.session, fn, args, kwargs, options or self.options)

    def call_many(self, fn: Any, calls: Iterable[Call], options: Options | None = None) -> TaskList[Any]:
        """Submit a call for each (args, kwargs)."""
        return TaskList(submit_calls(self.session, fn, calls, options or self.options))

    def shell(
        self,
        script: str,
        /,
        *,
        endpoint: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        interpreter: str = "",
        sandbox: bool | str = False,
        outputs: Sequence[str] = (),
        name: str = "",
        **values: Any,
    ) -> Task[ShellResult]:
        """Run a shell script on the endpoint.

            client.shell("wc -l ${path}", path="/data/a.txt").result().stdout

        `${path}` is the value of that keyword: always one word, never code. The other options are
        those of oncue.shell, which also takes values with their names. Raises Invalid, also for a
        value that the script does not use, and what submit() raises.
        """
        from oncue.functions.shell.pack import shell  # imports much that an emit does not need

        packed = shell(script, env=env, cwd=cwd, interpreter=interpreter, sandbox=sandbox, outputs=outputs, name=name)
        return self._submit_script(packed, values, endpoint)

    def mpi(
        self,
        script: str,
        /,
        *,
        nodes: int = 0,
        ranks: int = 0,
        endpoint: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        interpreter: str = "",
        sandbox: bool | str = False,
        outputs: Sequence[str] = (),
        name: str = "",
        **values: Any,
    ) -> Task[ShellResult]:
        """Run a script in each rank of an MPI program on the endpoint.

            client.mpi("./solver ${input}", nodes=2, ranks=64, input="/data/a.h5")

        The endpoint's launcher starts it, on `nodes` whole nodes of one block if that is more than
        1. In all else it is as `shell`. Raises Invalid, and what submit() raises.
        """
        from oncue.functions.shell.mpi import mpi

        packed = mpi(
            script, nodes=nodes, ranks=ranks, env=env, cwd=cwd, interpreter=interpreter, sandbox=sandbox,
            outputs=outputs, name=name,
        )  # fmt: skip
        return self._submit_script(packed, values, endpoint)

    def _submit_script(self, packed: Packed, values: dict[str, Any], endpoint: str | None) -> Task[ShellResult]:
        from oncue.functions.shell.pack import used_names

        if unused := sorted(set(values) - used_names(packed, values)):
            raise Invalid(
                f"the script does not use {unused[0]!r}", remedy=f"write ${{{unused[0]}}} in it, or leave the value out"
            )
        return submit_call(self.session, packed, (), values, self._at(endpoint))

    def executor(self, endpoint: str | None = None) -> OncueExecutor:
        """Return a concurrent.futures.Executor of the endpoint, with these options."""
        from oncue.client.executor import OncueExecutor

        return OncueExecutor(self, endpoint=endpoint)

    def _at(self, endpoint: str | None) -> Options:
        return self.options if endpoint is None else self.options.replace({"endpoint": endpoint})
