"""The Python client: submit functions, emit events, look at everything. One per program is enough; all threads may use it.

    client = Client()                                  # the local server, or ONCUE_URL and ONCUE_TOKEN
    task = client.submit(fn, 1, 2, endpoint="local")   # registers fn by its content if it is new
    task.result(timeout=60)
    results = client.gather(client.map(fn, range(1000)))

Every keyword but `endpoint` goes to the function. The other options of a call are set beforehand, so that they cannot
collide with the function's own keywords; `client.call` takes a function whose own keyword is `endpoint`:

    careful = client.with_options(endpoint="polaris", retry=3, timeout=600)
    careful.submit(fn, 1)
    careful.submit(fn, 2, endpoint="aurora")           # with the same retries and timeout
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from oncue.client import resources
from oncue.client.batch import BATCH_BYTES, BATCH_TASKS, Options, Retry
from oncue.client.blobs import fetch_blob, put_blob
from oncue.client.bound import BoundClient, changed
from oncue.client.discovery import find_server
from oncue.client.found import FoundTask
from oncue.client.gather import as_completed, gather
from oncue.client.http import Http
from oncue.client.submission import Courier
from oncue.client.task import Task
from oncue.client.unaccepted import exit_with
from oncue.config import default_data
from oncue.errors import Forbidden, Invalid, NotFound, NotReady, OncueError, RateLimited, TaskError, Unreachable
from oncue.ids import parse
from oncue.protocol import payload
from oncue.protocol.api import Emitted, FunctionRequest, Me, parameter_infos
from oncue.protocol.cloudevents import time_text

if TYPE_CHECKING:
    from oncue.client.executor import OncueExecutor
    from oncue.functions import Packed, Watch

R = TypeVar("R")
KNOWN_FUNCTIONS = 1_024
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_encode = msgspec.msgpack.Encoder().encode
__all__ = ["BoundClient", "Client", "Options", "Retry", "Task", "as_completed"]


class Client:
    """See the module.

    url, token: of the server; "": ONCUE_URL and ONCUE_TOKEN, else the server that `oncue up` started on this machine.
    data: the local server's data folder, where it is not the usual one.
    trust: names of other people's endpoints whose pickled results may be loaded (that runs code of their choice).
    patience: seconds that a server may be away before those who wait get Unreachable.
    linger: seconds that the client's end waits for a server that accepts nothing of what was submitted.

    Making one asks nothing of the server. `submit` and `map` return before the server has accepted the tasks: they are
    sent by a thread. Accepted means durable: the task goes on, whatever becomes of this program. To wait for that,
    `flush()`; to wait for the outcome, result().

    Use it as a context manager, or `close()` it; at the program's end it closes itself. Each of them waits as flush() does
    and raises Unreachable, which names what was not accepted; at the program's end it is written to stderr, and the
    program's exit code is 120 then."""

    def __init__(
        self,
        url: str = "",
        token: str = "",
        *,
        data: str | os.PathLike[str] = "",
        trust: Iterable[str] = (),
        patience: float = 60.0,
        linger: float = 30.0,
    ) -> None:
        folder = Path(data) if data else default_data()
        target = functools.partial(find_server, url, token, folder)
        self.http = http = Http(target)
        self.courier = courier = Courier(http, patience, linger)
        self._trust = set(trust)
        self._owned: dict[str, bool] = {}
        self._functions: OrderedDict[int, tuple[Any, str, str, Watch]] = OrderedDict()  # by id(fn): fn, hash, name
        self._registered: set[str] = set()
        self._lock = threading.Lock()
        self._finalize = weakref.finalize(self, _at_end, courier)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """As close(). An exception of the block is not hidden: it has a note of what was not accepted. One that is no
        Exception (KeyboardInterrupt, SystemExit) waits for nothing."""
        if e is None:
            self.close()
            return
        try:
            self.close(flush=isinstance(e, Exception))
        except OncueError as unaccepted:
            e.add_note(str(unaccepted))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has accepted what was submitted before (not: until it is done).

        timeout: seconds in all; None: as long as the server accepts something every `linger` seconds. Raises Unreachable
        with the number of tasks that are not accepted, `details["tasks"]` their first ids, and they are sent on while the
        client is open; what the server says against tasks (NotFound, Forbidden ...), unless a handle has said it."""
        self.courier.flush(timeout)

    def close(self, flush: bool = True) -> None:
        """Wait as flush() does, then end. Raises as it does, of tasks that are given up then; who wants no wait is not told
        of them. Again is harmless."""
        self._finalize.detach()
        self.courier.close(flush)

    @property
    def me(self) -> Me:
        """Who the token is."""
        return self.courier.me()

    # ------------------------------------------------------------ collections
    # Made when asked for: they keep the client, and the client does not keep them, so that `Client().tasks.list()` works
    # and a forgotten client is closed at once.

    @property
    def tasks(self) -> resources.Tasks:
        return resources.Tasks(self)

    @property
    def functions(self) -> resources.Functions:
        return resources.Functions(self)

    @property
    def endpoints(self) -> resources.Endpoints:
        return resources.Endpoints(self)

    @property
    def rules(self) -> resources.Rules:
        return resources.Rules(self)

    @property
    def events(self) -> resources.Events:
        return resources.Events(self)

    @property
    def triggers(self) -> resources.Triggers:
        return resources.Triggers(self)

    @property
    def dead(self) -> resources.Dead:
        return resources.Dead(self)

    @property
    def tokens(self) -> resources.Tokens:
        return resources.Tokens(self)

    # ------------------------------------------------------------ calls

    def with_options(self, **options: Any) -> BoundClient:
        """endpoint, retry (a number or Retry), timeout and expires (seconds), for the calls made with what this returns.
        Raises Invalid for other names."""
        return BoundClient(self, changed(Options(), options))

    def submit(self, fn: Callable[..., R] | str, /, *args: Any, endpoint: str = "local", **kwargs: Any) -> Task[R]:
        """Run fn(*args, **kwargs) on the endpoint. `fn` may be the name or hash of a registered function. Returns before the
        server has accepted the task: see flush().

        A function is packed at its first submission, with what it closes over then. Raises CannotPack; Unreachable when
        there is no server. What the server says against the call (NotFound, Forbidden ...) its result() raises."""
        return self.call(fn, args, kwargs, Options(endpoint=endpoint))

    def map(
        self, fn: Callable[[Any], R] | str, iterable: Iterable[Any], /, *, endpoint: str = "local"
    ) -> list[Task[R]]:
        """A task for each item, sent in batches while the items are read."""
        return self.with_options(endpoint=endpoint).map(fn, iterable)

    def starmap(
        self, fn: Callable[..., R] | str, iterable: Iterable[Iterable[Any]], /, *, endpoint: str = "local"
    ) -> list[Task[R]]:
        """As map, but each item holds the arguments of one call."""
        return self.with_options(endpoint=endpoint).starmap(fn, iterable)

    def executor(self, endpoint: str = "local") -> OncueExecutor:
        """A concurrent.futures.Executor."""
        return self.with_options(endpoint=endpoint).executor()

    def call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Task[Any]:
        """As submit, with nothing between the function's keywords and the call's options."""
        function, name = self._function(fn)
        content = self._payload(args, kwargs)
        return Task(*self.courier.submit(self, function, name, options, content))

    def call_many(
        self, fn: Any, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], options: Options
    ) -> list[Task[Any]]:
        """As call, for many (args, kwargs)."""
        function, name = self._function(fn)
        tasks: list[Task[Any]] = []
        payloads: list[bytes] = []
        size = 0

        def send() -> None:
            batch = self.courier.submit_many(self, function, name, options, payloads)
            tasks.extend([Task(batch, i) for i in range(len(payloads))])

        for args, kwargs in calls:
            content = self._payload(args, kwargs)
            payloads.append(content)
            size += len(content)
            if len(payloads) >= BATCH_TASKS or size >= BATCH_BYTES:
                send()
                payloads, size = [], 0
        if payloads:
            send()
        return tasks

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        content = _packed(args, kwargs)
        if payload.needs_blob(content):
            return payload.pack_ref(put_blob(self.http, content))
        return content

    def _function(self, fn: Any) -> tuple[str, str]:
        """(hash or name for the request, name for people); registers what is new."""
        if isinstance(fn, str):
            return fn, fn
        if not callable(fn) and hasattr(fn, "body"):  # a functions.Packed, as the command line makes them
            return self.register(fn), str(fn.name)
        known = self._functions.get(id(fn))
        if known is not None and known[0] is fn and known[3].same():
            return known[1], known[2]
        if not callable(fn):
            raise Invalid(
                f"a {type(fn).__name__} cannot be run", remedy="give a function, or the name of a registered one"
            )
        from oncue.functions import Watch, pack_function  # imports much that an emit does not need

        packed, watch = pack_function(fn), Watch(fn)
        self._register_soon(packed)
        with self._lock:
            self._functions[id(fn)] = (fn, packed.id, packed.name, watch)  # the reference keeps id(fn) its own
            while len(self._functions) > KNOWN_FUNCTIONS:
                self._functions.popitem(last=False)
        return packed.id, packed.name

    def register(self, packed: Packed) -> str:
        """Register what pack_function or pack_file gave. Returns its hash. Raises Unreachable, TooLarge."""
        if packed.id not in self._registered:
            self.functions.register(_request(packed))
            self._registered.add(packed.id)
        return packed.id

    def _register_soon(self, packed: Packed) -> None:
        """As register; while the server is away the courier does it, before the first batch that needs it. Raises Unreachable
        before anything is known of the server."""
        try:
            self.register(packed)
        except (Unreachable, NotReady, RateLimited):
            if not self.courier.met:
                raise
            self.courier.unregistered[packed.id] = _request(packed)

    # ------------------------------------------------------------ results

    def task(self, task_id: str) -> Task[Any]:
        """A handle of any task that you may see. Raises Invalid when it is no id. Asks nothing yet: of a task that does not
        exist its result() raises NotFound."""
        try:
            return FoundTask(self, parse(task_id))
        except ValueError as e:
            raise Invalid(f"{task_id!r} is not a task's id: {e}", remedy="it has 32 hex digits") from None

    def gather(
        self,
        tasks: Iterable[Task[R]],
        timeout: float | None = None,
        *,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[R | TaskError]:
        """Wait for all; their results in order. progress: a bar on stderr. Raises the first task's error in order
        (unless return_exceptions), TimeoutError."""
        tasks = list(tasks)
        if not progress:
            return gather(tasks, timeout, return_exceptions=return_exceptions)
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            line = bar.add_task("tasks", total=len(tasks))
            return gather(
                tasks,
                timeout,
                return_exceptions=return_exceptions,
                each=lambda done, _: bar.update(line, completed=done),
            )

    def fetch(self, ref: payload.Ref) -> bytes:
        """A large value's bytes. Raises BlobMissing when it is gone or not what it should be."""
        return fetch_blob(self.http, ref)

    def trusts(self, endpoint: str, endpoint_id: str | None = None) -> bool:
        """Whether a pickle from this endpoint may be loaded: it is yours, or named in `trust`. With an id, that says whose
        it is: a name is another endpoint for another person."""
        if endpoint in self._trust:
            return True
        key = endpoint if endpoint_id is None else endpoint_id
        owned = self._owned.get(key)
        if owned is None:
            if not key:
                return False
            try:
                owned = self._owned[key] = self.endpoints.get(key).owner == self.me.subject
            except (NotFound, Forbidden):
                return False
        return owned

    # ------------------------------------------------------------ events

    def emit(
        self,
        *,
        type: str,
        source: str,
        data: Any = None,
        subject: str | None = None,
        id: str = "",
        time: datetime | str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Emitted:
        """Send a CloudEvent; returns when it is durable, with its `id`. `data`: what JSON can hold, or bytes. `time`: when it
        happened (default: now). Raises Invalid, TooLarge."""
        event: dict[str, Any] = {"specversion": "1.0", "id": id or uuid.uuid4().hex, "type": type, "source": source}
        event["time"] = time if isinstance(time, str) else time_text(time)
        if subject is not None:
            event["subject"] = subject
        if isinstance(data, bytes):
            event |= {"datacontenttype": "application/octet-stream", "data_base64": data}  # (encoded as such)
        elif data is not None:
            event |= {"datacontenttype": "application/json", "data": data}
        return self.events.emit(event | dict(extensions or {}))

    def live(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """What happens, as it happens; see nouns.Tasks.live."""
        return self.tasks.live(*kinds)


def _request(packed: Packed) -> FunctionRequest:
    return FunctionRequest(
        name=packed.name,
        body=packed.body,
        signature=packed.signature,
        doc=packed.doc,
        file=packed.file,
        parameters=parameter_infos(packed.parameters),
    )


def _packed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """As payload.pack_args, with a short way for the usual call: a few plain values."""
    if not kwargs:
        for arg in args:
            if type(arg) not in _PLAIN:
                break
        else:
            try:
                return payload.MSGPACK + _encode((args, kwargs))
            except (OverflowError, UnicodeEncodeError):  # an int over 64 bits, a lone surrogate: pickle has them
                pass
    return payload.pack_args(args, kwargs)


def _at_end(courier: Courier) -> None:
    """The client was forgotten, or the program ends: what was submitted still gets to the server, or somebody is told."""
    try:
        courier.close(flush=True)
    except (OncueError, KeyboardInterrupt) as e:
        error = e if isinstance(e, OncueError) else courier.untold.take()
        if error is not None:
            exit_with(error)
