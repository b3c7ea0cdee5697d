"""Client: submit functions, emit events, manage the server.

One client per program is enough.

    client = Client()                                 # local server, or ONCUE_URL and ONCUE_TOKEN
    task = client.submit(fn, 1, 2, endpoint="local")  # registers fn by its content if it is new
    task.result(timeout=60)
    results = client.gather(client.map(fn, range(1000)))

Every keyword but `endpoint` is passed to the function. The other options of a call are preset, so
that they cannot collide with the function's own keywords; `client.call` takes a function that has a
keyword `endpoint` itself:

    careful = client.with_options(endpoint="polaris", retry=3, timeout=600)
    careful.submit(fn, 1)
    careful.submit(fn, 2, endpoint="aurora")           # with the same retries and timeout
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from oncue.client import resources
from oncue.client.bound import BoundClient
from oncue.client.calls import put_object
from oncue.client.display import notebook
from oncue.client.display.progress import progress_bar
from oncue.client.gather import as_completed, gather
from oncue.client.options import Options, Retry
from oncue.client.session import LINGER_S, PATIENCE_S, open_session
from oncue.client.task import Task, TaskById
from oncue.errors import OncueError
from oncue.protocol.api import Emitted, Me
from oncue.protocol.cloudevents import time_text
from oncue.protocol.payload import Ref

if TYPE_CHECKING:
    from oncue.functions import Packed

R = TypeVar("R")
__all__ = ["BoundClient", "Client", "Options", "Retry", "Task", "as_completed"]


class Client(BoundClient):
    """Client of an oncue server. All threads may use it.

    url, token: of the server; "": ONCUE_URL and ONCUE_TOKEN, else the server that `oncue up`
        started on this machine.
    data: the local server's data folder, if it is not the default one.
    trust: names of other people's endpoints whose pickled results may be loaded (this runs code of
        their choice).
    patience: seconds for which a server may be away before callers that wait get Unreachable.
    linger: seconds for which closing waits for a server that accepts none of the submitted tasks.

    The constructor sends no request. `submit` and `map` return before the server has accepted the
    tasks: a thread sends them. Accepted means durable: the task goes on, whatever becomes of this
    program. Wait for that with `flush()`, for the outcome with `result()`.

    Use it as a context manager, or call `close()`; it also closes itself at the end of the program.
    Each of these waits as flush() does and raises Unreachable, which names the tasks that were not
    accepted. At the end of the program they are written to stderr, and the exit code is 120.
    """

    def __init__(
        self,
        url: str = "",
        token: str = "",
        *,
        data: str | os.PathLike[str] = "",
        trust: Iterable[str] = (),
        patience: float = PATIENCE_S,
        linger: float = LINGER_S,
    ) -> None:
        session = open_session(url, token, data=data, trust=trust, patience=patience, linger=linger)
        super().__init__(session, Options())
        self.http = self.session.http

    def __repr__(self) -> str:
        return f"<oncue client of {self.session.http.address()}>"

    def _repr_html_(self) -> str:
        return notebook.client_table(self.session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """Close. An exception of the block gets a note of the unaccepted tasks.

        After a BaseException that is no Exception (KeyboardInterrupt, SystemExit) nothing is waited
        for.
        """
        if e is None:
            self.close()
            return
        try:
            self.close(flush=isinstance(e, Exception))
        except OncueError as unaccepted:
            e.add_note(str(unaccepted))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has accepted what was submitted so far.

        Accepted tasks may still be running: result() waits for those.
        timeout: seconds in all; None: as long as the server accepts something every `linger`
        seconds.
        Raises Unreachable with the number of unaccepted tasks, `details["tasks"]` their first ids;
        they are still sent while the client is open. Also raises the server's rejections (NotFound,
        Forbidden ...) that no handle has raised yet.
        """
        self.session.sender.flush(timeout)

    def close(self, flush: bool = True) -> None:
        """Flush, then close. Idempotent.

        Raises as flush() does for tasks that are abandoned now; with flush=False they are not
        reported.
        """
        self.session.close(flush)

    @property
    def me(self) -> Me:
        """Identity of the token: its subject and scopes."""
        return self.session.sender.me()

    # ------------------------------------------------------------ resources

    @property
    def tasks(self) -> resources.Tasks:
        return resources.Tasks(self.session)

    @property
    def functions(self) -> resources.Functions:
        return resources.Functions(self.session)

    @property
    def endpoints(self) -> resources.Endpoints:
        return resources.Endpoints(self.session)

    @property
    def rules(self) -> resources.Rules:
        return resources.Rules(self.session)

    @property
    def events(self) -> resources.Events:
        return resources.Events(self.session)

    @property
    def triggers(self) -> resources.Triggers:
        return resources.Triggers(self.session)

    @property
    def dead(self) -> resources.Dead:
        return resources.Dead(self.session)

    @property
    def tokens(self) -> resources.Tokens:
        return resources.Tokens(self.session)

    # ------------------------------------------------------------ functions and values

    def register(self, packed: Packed) -> str:
        """Register a function from pack_function or pack_file; return its hash.

        Raises Unreachable, TooLarge.
        """
        return self.session.functions.register(packed)

    # ------------------------------------------------------------ results

    def task(self, task_id: str) -> Task[Any]:
        """Return a handle of a task by its id. Raises Invalid for a malformed id.

        Sends no request: if you may see no such task, its result() raises NotFound.
        """
        return TaskById.from_hex(self.session, task_id)

    @overload
    def gather(
        self,
        tasks: Iterable[Task[R]],
        timeout: float | None = None,
        *,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...
    @overload
    def gather(
        self,
        tasks: Iterable[Task[R]],
        timeout: float | None = None,
        *,
        progress: bool = False,
        return_exceptions: bool,
    ) -> list[R | BaseException]: ...
    def gather(
        self,
        tasks: Iterable[Task[R]],
        timeout: float | None = None,
        *,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[R | BaseException] | list[R]:
        """Wait for all tasks and return their results in order.

        progress: show a bar, on stderr or in the notebook. Raises TimeoutError and, unless
        return_exceptions, what result() of a task raises, in the order of the tasks.
        """
        __tracebackhide__ = True  # IPython and pytest show the caller's frames
        tasks = list(tasks)
        if not progress:
            return gather(tasks, timeout, return_exceptions=return_exceptions)
        with progress_bar("tasks", len(tasks)) as update:
            return gather(tasks, timeout, return_exceptions=return_exceptions, each=lambda done, _: update(done))

    def put(self, value: Any) -> Any:
        """Store a value once, for many calls; return an ObjectRef once it is durable.

        Give the reference as an argument, or inside of one: at the worker it is the value. An
        endpoint fetches it once. It is kept as long as results are. Raises CannotPack, Unreachable.
        The type is Any, so that a type checker takes it for the value.
        """
        return put_object(self.http, value)

    def fetch(self, ref: Ref) -> bytes:
        """Return a large value's bytes. Raises BlobMissing if it is gone or corrupt."""
        return self.session.fetch(ref)

    def trusts(self, endpoint: str, endpoint_id: str | None = None) -> bool:
        """True if pickles of this endpoint may be loaded.

        They may if it is yours, or named in `trust`. Its owner is looked up by the id where that is
        given: other people's endpoints may have the same name.
        """
        return self.session.trusts(endpoint, endpoint_id)

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
        """Send a CloudEvent; return its `id` and position once it is durable.

        data: JSON data or bytes. time: when it happened (default: now).
        Raises Invalid, TooLarge.
        """
        event: dict[str, Any] = {"specversion": "1.0", "id": id or uuid.uuid4().hex, "type": type, "source": source}
        event["time"] = time if isinstance(time, str) else time_text(time)
        if subject is not None:
            event["subject"] = subject
        if isinstance(data, bytes):
            event |= {"datacontenttype": "application/octet-stream", "data_base64": data}
        elif data is not None:
            event |= {"datacontenttype": "application/json", "data": data}
        return self.events.emit(event | dict(extensions or {}))

    def live(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """Yield live events of the server; see resources.Tasks.live."""
        return self.tasks.live(*kinds)
