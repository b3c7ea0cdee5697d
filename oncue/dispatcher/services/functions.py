"""Registers and looks up functions: packed bodies, named by their hash."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec

from oncue import functions
from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import off_loop_if
from oncue.errors import Conflict, Invalid, NotFound, TooLarge, Undecodable
from oncue.protocol import api as r
from oncue.protocol.records import FUNCTION_BYTES, INLINE_BYTES, NAME_CHARS, VERSION, FunctionRecord, Parameter
from oncue.protocol.run_options import NO_OPTIONS

FUNCTIONS = 100_000  # of one owner, with all versions: they are kept for good
SOURCE_CHARS = 1 << 20  # of a function's source in an answer
MOST_FILES = 1_000  # of a function's files in an answer


class FunctionService:
    """Functions of all owners. Bodies above INLINE_BYTES are blobs."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def register(self, caller: Caller, request: r.FunctionRequest) -> r.FunctionInfo:
        """Register a body under a name, as its next version.

        Repeating a registration changes nothing. Raises Invalid, TooLarge, Conflict, NotReady,
        DiskFull.
        """
        context = self._context
        context.check_accepting()
        # Of 64 MB, both take a tenth of a second and more.
        python, sha = await off_loop_if(len(request.body) > INLINE_BYTES, _checked, request)
        if entry := await self._entry(caller, request, python, sha):
            await context.record([entry])
        return await self.get(caller, sha)

    async def _entry(
        self, caller: Caller, request: r.FunctionRequest, python: str, sha: str
    ) -> tuple[str, FunctionRecord] | None:
        """Return the registry's entry of a function; None if it has that already.

        A large body is stored meanwhile.
        """
        context = self._context
        known = await context.view.function(sha, owner=caller.subject)
        if known is not None and known.name == request.name and known.owner == caller.subject:
            return None
        await self._check_count(caller)
        inline = request.body
        if len(request.body) > INLINE_BYTES:
            await asyncio.to_thread(context.blob_quota.put, caller.quota_owner, sha, request.body)
            inline = b""
        newest = await context.view.function(request.name, owner=caller.subject)
        record = FunctionRecord(
            VERSION,
            sha,
            request.name,
            caller.subject,
            python,
            len(request.body),
            inline,
            request.signature[:1_000],
            request.doc[:4_000],
            request.file[:1_000],
            newest.version + 1 if newest else 1,
            now_us(),
            _parameters(request),
        )
        return f"function:{caller.subject}:{request.name}:{sha}", record

    async def register_scripts(self, caller: Caller, scripts: Sequence[functions.Packed]) -> None:
        """Register the scripts of a rule file. Raises as `register` does."""
        requests = [r.FunctionRequest(name=s.name, body=s.body, signature=s.signature, doc=s.doc) for s in scripts]
        found = [await self._entry(caller, request, *_checked(request)) for request in requests]
        if entries := [entry for entry in found if entry is not None]:
            await self._context.record(entries)

    async def _check_count(self, caller: Caller) -> None:
        """Raise Conflict if the caller has too many functions."""
        if caller.is_admin:
            return
        count = await self._context.view.function_count(caller.subject)
        if count >= FUNCTIONS:
            raise Conflict(
                f"you have {count:,} versions of functions; at most {FUNCTIONS:,} are kept",
                remedy="call one of those, with what changes as its arguments",
            )

    async def page(self, caller: Caller, cursor: str, limit: int) -> r.Page:
        """Return a page of the functions that the caller may see."""
        rows, following = await self._context.view.functions(cursor, limit, caller.only)
        return r.Page(items=[_function_info(f) for f in rows], next=following)

    async def get(self, caller: Caller, name: str) -> r.FunctionInfo:
        """Return a function by name (newest version) or hash, with its source.

        Raises NotFound.
        """
        found = await self._context.view.function(name, caller.subject, of_others=caller.sees_all)
        if found is None:
            raise NotFound(f"there is no function {name!r}", remedy="oncue functions list shows what there is")
        body = found.body
        if not body and found.size_bytes <= FUNCTION_BYTES:
            return _function_info(found, *await asyncio.to_thread(self._stored_body, found))
        described = functions.describe(body)
        return _function_info(found, described.source, _properties(described))

    def _stored_body(self, found: FunctionRecord) -> tuple[str, r.PropertiesInfo]:
        """Return source and properties; a long source is cut."""
        described = functions.describe(self._context.blobs.part(found.id, 0, found.size_bytes))
        source = described.source
        left_out = len(source) - SOURCE_CHARS
        source = source if left_out <= 0 else f"{source[:SOURCE_CHARS]}\n# ... and {left_out:,} more characters\n"
        return source, _properties(described)


def _checked(request: r.FunctionRequest) -> tuple[str, str]:
    """Return (Python version of the body, its SHA-256). Raises Invalid, TooLarge."""
    return _check(request), hashlib.sha256(request.body).hexdigest()


def _check(request: r.FunctionRequest) -> str:
    """Return the Python version of the body; "" for any. Raises Invalid, TooLarge."""
    if len(request.body) > FUNCTION_BYTES:
        raise TooLarge(
            f"the function has {len(request.body):,} bytes; at most {FUNCTION_BYTES:,} are taken",
            remedy="pass large data as an argument, or read it where the function runs",
        )
    if not request.name or len(request.name) > NAME_CHARS:
        raise Invalid(f"a function's name has 1 to {NAME_CHARS} characters", remedy="give it a shorter name")
    try:
        return functions.describe(request.body).python
    except Undecodable as e:
        raise Invalid(
            f"the function's body cannot be read: {e.message} - at `$.body`",
            remedy="send what oncue.functions.pack_function makes: `oncue functions register FILE.py:NAME`",
        ) from None


def _parameters(request: r.FunctionRequest) -> tuple[Parameter, ...] | None:
    if request.parameters is None:
        return None
    return tuple(Parameter(p.name[:NAME_CHARS], p.kind, p.required) for p in request.parameters)


def _properties(body: functions.FunctionBody) -> r.PropertiesInfo:
    run = body.run or NO_OPTIONS
    return r.PropertiesInfo(
        fresh=body.fresh,
        memory_bytes=body.memory_bytes,
        detached=body.detached,
        files=sorted(body.files)[:MOST_FILES],
        resources={name: value for name, value in msgspec.structs.asdict(run.resources).items() if value},
        sandbox=bool(run.sandbox),
        outputs=list(run.outputs),
    )


def _function_info(f: FunctionRecord, source: str = "", properties: r.PropertiesInfo | None = None) -> r.FunctionInfo:
    return r.FunctionInfo(
        id=f.id,
        name=f.name,
        version=f.version,
        owner=f.owner,
        python=f.python,
        size_bytes=f.size_bytes,
        signature=f.signature,
        doc=f.doc,
        file=f.file,
        at_us=f.at_us,
        source=source,
        parameters=r.parameter_infos(f.parameters),
        properties=properties,
    )
