"""Resources of the API: client.tasks, client.rules and so on.

Each method is one request, with the types of oncue.protocol.api. All raise Unreachable,
Unauthorized, Forbidden, and the errors named in their docstrings. Long lists are fetched page by
page while you iterate.
"""

from __future__ import annotations

import builtins
import codecs
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from oncue import ids
from oncue.client.files import OutputFile
from oncue.client.http import MSGPACK, in_path, register_function
from oncue.client.resource import PAGE, Resource, flags, query_text
from oncue.errors import Invalid, MethodNotAllowed
from oncue.protocol import api as r
from oncue.protocol.cloudevents import check_data
from oncue.protocol.run_options import TaskFile


def _event_json(event: Mapping[str, Any]) -> bytes:
    try:
        check_data(event.get("data"))
        return msgspec.json.encode(event)
    except (TypeError, ValueError, ArithmeticError, RecursionError, msgspec.MsgspecError) as e:
        raise Invalid(
            f"the event cannot be written as JSON: {e}", remedy="give plain values: str, numbers, lists, dicts"
        ) from None


def _retried(t: r.TaskInfo) -> r.RetriedTask:
    return r.RetriedTask(
        retry_of=t.retry_of, id=t.id, name=t.name, function=t.function, endpoint=t.endpoint, rule=t.rule
    )


class Tasks(Resource):
    """Tasks, their output and timeline."""

    def list(
        self,
        *,
        state: str = "",
        endpoint: str = "",
        function: str = "",
        rule: str = "",
        owner: str = "",
        since_us: int = 0,
        until_us: int = 0,
        not_retried: bool = False,
        limit: int | None = 50,
    ) -> Iterator[r.TaskInfo]:
        """Yield tasks, newest first.

        `state`: states with commas, or "open" or "closed"; `since_us`, `until_us`: accepted at or
        after, and before; `not_retried`: only those that no retry by hand has replaced;
        `limit=None`: all.
        """
        return self._pages(
            r.TaskInfo,
            "/v1/tasks",
            limit,
            state=state,
            endpoint=endpoint,
            function=function,
            rule=rule,
            owner=owner,
            since_us=since_us or "",
            until_us=until_us or "",
            not_retried="1" if not_retried else "",
        )

    def page(
        self, *, cursor: str = "", limit: int = 50, **filters: Any
    ) -> tuple[builtins.list[r.TaskInfo], str | None]:
        """Return tasks, newest first, and the next cursor; None at the end.

        `filters`: as of `list`.
        """
        return self._up_to(r.TaskInfo, "/v1/tasks", cursor, limit, flags(filters))

    def count(self, **filters: Any) -> r.TaskCount:
        """Count tasks, up to 10,000. `filters`: as of `list`."""
        return self._get(r.TaskCount, "/v1/tasks/count", **flags(filters))

    def find(self, text: str, limit: int = 10) -> builtins.list[r.TaskInfo]:
        """Return the tasks whose id begins so, newest first. Raises Invalid.

        `text`: the first digits, or the first and last ones with ".." between.
        """
        page = self._get(r.Page, "/v1/tasks", id=text, limit=limit)
        return msgspec.convert(page.items, builtins.list[r.TaskInfo])

    def get(self, task_id: str, wait: float = 0.0) -> r.TaskInfo:
        """Return a task. Raises NotFound.

        `wait`: seconds to wait for its end, up to 60.
        """
        return self._get(r.TaskInfo, f"/v1/tasks/{in_path(task_id)}", wait_ms=round(wait * 1000) or "")

    def submit(self, request: r.TaskRequest) -> r.TaskInfo:
        """Submit one call with JSON values.

        A request without a key gets one, so that it can be repeated after a lost answer.
        """
        if not request.key:
            request = msgspec.structs.replace(request, key=uuid.uuid4().hex)
        return self._post(r.TaskInfo, "/v1/tasks", request, repeat=True)

    def cancel(self, task_ids: Sequence[str], *, waiting: bool = False) -> builtins.list[str]:
        """Request cancellation; return the ids of open tasks. Raises NotFound.

        `waiting`: cancel only tasks that have not been sent to their endpoint, and return the
        ids of those that will not run (any more).
        """
        request = r.CancelRequest(tasks=list(task_ids), waiting=waiting)
        found: builtins.list[str] = self._post(dict[str, Any], "/v1/tasks/cancel", request, repeat=True)["tasks"]
        return found

    def cancel_selected(self, **filters: Any) -> Iterator[builtins.list[str]]:
        """Request the cancellation of the open tasks that filters select, page by page.

        Yield the ids of each page, once the requests are durable. `filters`: as of `list`.
        """
        request = r.CancelRequest(filter=r.TaskSelection(**filters))
        while True:
            page = self._post(dict[str, Any], "/v1/tasks/cancel", request, repeat=True)
            yield page["tasks"]
            if not page.get("next"):
                return
            request = msgspec.structs.replace(request, cursor=page["next"])

    def retry(self, task_id: str, *, same_version: bool = False) -> r.TaskInfo:
        """Run the same call as a new task. Raises NotFound, Conflict (it is open).

        It runs the function's version that is in force, or the `same_version`.
        """
        body = {"same_version": True} if same_version else {}
        return self._post(r.TaskInfo, f"/v1/tasks/{in_path(task_id)}/retry", body)

    def retry_many(
        self, task_ids: Sequence[str], *, same_version: bool = False, dry_run: bool = False
    ) -> Iterator[r.Retried]:
        """Run closed tasks again, PAGE at a time; yield the answers. Raises NotFound."""
        for at in range(0, len(task_ids), PAGE):
            request = r.RetryRequest(
                tasks=list(task_ids[at : at + PAGE]),
                same_version=same_version,
                dry_run=dry_run,
                key=ids.new_uuid7().hex(),
            )
            try:
                yield self._post(r.Retried, "/v1/tasks/retry", request, repeat=True)
            except MethodNotAllowed:  # a server of an older version
                made = [self.retry(task) for task in request.tasks]
                yield r.Retried(tasks=[_retried(task) for task in made])

    def retry_selected(
        self, *, again: bool = False, same_version: bool = False, dry_run: bool = False, **filters: Any
    ) -> Iterator[r.Retried]:
        """Run the closed tasks that filters select again, page by page; yield the answers.

        A task that was retried before is left out, unless `again`. `filters`: as of `list`.
        """
        request = r.RetryRequest(
            filter=r.TaskSelection(**filters),
            again=again,
            same_version=same_version,
            dry_run=dry_run,
            key=ids.new_uuid7().hex(),
        )
        while True:
            answer = self._post(r.Retried, "/v1/tasks/retry", request, repeat=True)
            yield answer
            if not answer.next:
                return
            request = msgspec.structs.replace(request, cursor=answer.next)

    def timeline(self, task_id: str) -> builtins.list[r.TimelineEntry]:
        return self._list(r.TimelineEntry, f"/v1/tasks/{in_path(task_id)}/timeline")

    def files(self, task: r.TaskInfo) -> builtins.list[OutputFile]:
        """Return the files that a task has left."""
        made = [TaskFile(f.name, f.sha256, f.size_bytes, f.stream) for f in task.files]
        return [OutputFile(file, self._stream) for file in made]

    def logs(self, task_id: str, *, follow: bool = False) -> Iterator[str]:
        """Yield its printed output in pieces."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for part in self._stream(f"/v1/tasks/{in_path(task_id)}/logs" + ("?follow=1" if follow else "")):
            if text := decoder.decode(part):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def live(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """Yield (kind, data) of live events.

        Kinds: task, outcome, event, rule, endpoint, trigger, dead. ("", None) is a keep-alive.
        Raises Unreachable when the server goes away.
        """
        path = "/v1/live" + query_text({"kinds": ",".join(kinds)})
        kind, data, rest = "", [], b""
        for part in self._stream(path):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                field, _, value = line.rstrip(b"\r").partition(b":")
                value = value.removeprefix(b" ")
                if field == b"event":
                    kind = value.decode()
                elif field == b"data":
                    data.append(value)
                elif not line.strip() and data:
                    yield kind, msgspec.json.decode(b"\n".join(data))
                    kind, data = "", []
                elif line.startswith(b":"):
                    yield "", None


class Functions(Resource):
    """Registered functions."""

    def list(self, limit: int | None = None) -> Iterator[r.FunctionInfo]:
        return self._pages(r.FunctionInfo, "/v1/functions", limit)

    def get(self, name: str) -> r.FunctionInfo:
        """Return a function by content hash, name, or name@version. Raises NotFound."""
        return self._get(r.FunctionInfo, f"/v1/functions/{in_path(name)}")

    def register(self, request: r.FunctionRequest) -> r.FunctionInfo:
        """Register a function by its content; idempotent."""
        answer = register_function(self._http, request)
        decode = msgspec.msgpack.decode if answer.header(b"content-type") == MSGPACK else msgspec.json.decode
        return decode(answer.body, type=r.FunctionInfo)


class Endpoints(Resource):
    """Registered endpoints."""

    def list(self) -> builtins.list[r.EndpointInfo]:
        return self._list(r.EndpointInfo, "/v1/endpoints")

    def get(self, name: str) -> r.EndpointInfo:
        """Return an endpoint by name or id. Raises NotFound."""
        return self._get(r.EndpointInfo, f"/v1/endpoints/{in_path(name)}")

    def register(self, request: r.EndpointRequest) -> r.Registered:
        return self._post(r.Registered, "/v1/endpoints", request, repeat=True)

    def revoke(self, name: str) -> None:
        """Invalidate its key and close its connection. Raises NotFound."""
        self._delete(f"/v1/endpoints/{in_path(name)}")


class Rules(Resource):
    """Rules and their deployments."""

    def list(self) -> builtins.list[r.RuleInfo]:
        return self._list(r.RuleInfo, "/v1/rules")

    def get(self, name: str) -> r.RuleInfo:
        return self._get(r.RuleInfo, f"/v1/rules/{in_path(name)}")

    def deploy(self, request: r.DeployRequest) -> builtins.list[r.Deployed]:
        """Deploy a rule file as a whole. Raises RuleFileError."""
        return self._post(builtins.list[r.Deployed], "/v1/rules", request, repeat=True)

    def enable(self, name: str, why: str = "") -> r.RuleInfo:
        return self._post(r.RuleInfo, f"/v1/rules/{in_path(name)}/enable", {"why": why}, repeat=True)

    def disable(self, name: str, why: str = "") -> r.RuleInfo:
        return self._post(r.RuleInfo, f"/v1/rules/{in_path(name)}/disable", {"why": why}, repeat=True)

    def explain(
        self, name: str, *, event: Mapping[str, Any] | None = None, offset: int | None = None, task: str = ""
    ) -> r.Explanation:
        """Explain why a rule fires or not.

        For an event (CloudEvents JSON), the one at an offset, or the outcome of a task.
        """
        if task:
            return self._get(r.Explanation, f"/v1/tasks/{in_path(task)}/rules/{in_path(name)}")
        body = {"event": event} if event is not None else {"offset": offset}
        return self._post(r.Explanation, f"/v1/rules/{in_path(name)}/explain", body, repeat=True)

    def replay(self, name: str, request: r.ReplayRequest) -> r.ReplayPage:
        """Test a rule with a page of stored events again. Raises Conflict, NotFound."""
        return self._post(r.ReplayPage, f"/v1/rules/{in_path(name)}/replay", request, repeat=True)

    def simulate(self, label: str, request: r.SimulateRequest) -> r.SimulationPage:
        return self._post(r.SimulationPage, f"/v1/deployments/{in_path(label)}/simulate", request, repeat=True)

    def history(self, label: str) -> builtins.list[dict[str, Any]]:
        return self._get(builtins.list[dict[str, Any]], f"/v1/deployments/{in_path(label)}")

    def rollback(self, label: str, version: int, *, dry_run: bool = False) -> r.Deployed:
        """Deploy an old version as a new one. dry_run: only return the changes."""
        request = {"version": version, "dry_run": dry_run}
        return self._post(r.Deployed, f"/v1/deployments/{in_path(label)}/rollback", request)

    def remove(self, label: str) -> r.Deployed:
        """Remove all rules and triggers of this label."""
        return msgspec.json.decode(self._delete(f"/v1/deployments/{in_path(label)}"), type=r.Deployed)


class Events(Resource):
    """Events: emit one, look them up."""

    def list(
        self, *, type: str = "", source: str = "", limit: int | None = 50, **filters: Any
    ) -> Iterator[r.EventInfo]:
        """Yield events, newest first.

        `filters`: `id` (or its beginning), `since_us`, `until_us`; and `rule`, `endpoint`, `state`
        of a task that the event caused.
        """
        return self._pages(r.EventInfo, "/v1/events", limit, type=type, source=source, **flags(filters))

    def page(
        self, *, cursor: str = "", limit: int = 50, **filters: Any
    ) -> tuple[builtins.list[r.EventInfo], str | None]:
        """Return events, newest first, and the next cursor; None at the end."""
        return self._up_to(r.EventInfo, "/v1/events", cursor, limit, flags(filters))

    def count(self, **filters: Any) -> r.EventCount:
        """Count events, up to 10,000. `filters`: as of `list`."""
        return self._get(r.EventCount, "/v1/events/count", **flags(filters))

    def get(self, offset: int) -> r.EventInfo:
        return self._get(r.EventInfo, f"/v1/events/{offset}")

    def trace(self, offset: int | None = None, *, task: str = "") -> r.Trace:
        """Return what the event at an offset has caused, or the event of a task's chain.

        Raises NotFound.
        """
        return self._get(r.Trace, f"/v1/tasks/{in_path(task)}/trace" if task else f"/v1/events/{offset}/trace")

    def report(self, **filters: Any) -> Iterator[r.ReportItem]:
        """Yield what became of each event, oldest first: `since_us`, `rule` ..."""
        return self._pages(r.ReportItem, "/v1/report", None, **flags(filters))

    def emit(self, event: Mapping[str, Any]) -> r.Emitted:
        """Emit an event (CloudEvents JSON with an id).

        It is sent again after a lost answer; the id makes its effects the same.
        Raises Invalid for data that JSON cannot hold.
        """
        content = _event_json(event)
        answer = self._http.request("POST", "/v1/events", content, kind="application/cloudevents+json", repeat=True)
        found = msgspec.json.decode(answer.body, type=r.Emitted)
        return msgspec.structs.replace(found, id=str(event.get("id", found.id)))


class Triggers(Resource):
    """Deployed triggers."""

    def list(self) -> builtins.list[r.TriggerInfo]:
        return self._list(r.TriggerInfo, "/v1/triggers")

    def get(self, name: str) -> r.TriggerShown:
        """Return a trigger with its state. Raises NotFound."""
        return self._get(r.TriggerShown, f"/v1/triggers/{in_path(name)}")

    def explain(self, name: str, path: str) -> r.TriggerFile:
        """Explain why a file fired or not.

        `path`: absolute, or relative to the watched folder. Raises NotFound, TriggerFailed; Invalid
        for another kind of trigger and a path that is not UTF-8.
        """
        if not path:
            raise Invalid("no file is named", remedy="give its path: absolute, or relative to the watched folder")
        try:
            path.encode()
        except UnicodeEncodeError:  # Python holds such bytes as surrogates, which JSON lacks
            raise Invalid(
                f"the path {path!r} is not UTF-8, which events cannot hold: no trigger fires for it",
                remedy="rename the file",
            ) from None
        return self._get(r.TriggerFile, f"/v1/triggers/{in_path(name)}/file{query_text({'path': path})}")

    def backfill(
        self, name: str, *, glob: str = "", since_us: int = 0, until_us: int = 0, dry_run: bool = False
    ) -> r.Backfilled:
        """Let files fire that existed before the trigger.

        Those that `glob` selects and that were modified in the period, in unix µs. With `dry_run`
        count them only. Raises NotFound, TriggerFailed, Invalid.
        """
        request = r.BackfillRequest(glob=glob, since_us=since_us, until_us=until_us, dry_run=dry_run)
        return self._post(r.Backfilled, f"/v1/triggers/{in_path(name)}/backfill", request)


class Dead(Resource):
    """Dead letters: retry or dismiss them."""

    def list(self, limit: int | None = 50, *, all: bool = False) -> Iterator[r.DeadInfo]:
        """Yield dead letters, newest first. all: include retried and dismissed ones."""
        return self._pages(r.DeadInfo, "/v1/dead", limit, all="1" if all else "")

    def get(self, letter: int) -> r.DeadInfo:
        """Return a dead letter. Raises NotFound."""
        return self._get(r.DeadInfo, f"/v1/dead/{letter}")

    def retry(self, letter: int) -> None:
        """Process its record again. Raises NotFound; Conflict without a record."""
        self._post(Any, f"/v1/dead/{letter}/retry", {})

    def dismiss(self, letters: Sequence[int], reason: str = "") -> int:
        """Dismiss these letters; return how many were open. Raises NotFound.

        All or none are dismissed. Idempotent.
        """
        return self._dismiss(r.DismissRequest(letters=[*letters], reason=reason))

    def dismiss_all(self, reason: str = "") -> int:
        """Dismiss all that are open now; return how many."""
        return self._dismiss(r.DismissRequest(all=True, reason=reason))

    def _dismiss(self, request: r.DismissRequest) -> int:
        return self._post(r.Dismissed, "/v1/dead/dismiss", request, repeat=not request.all).count


class Tokens(Resource):
    """Access tokens."""

    def list(self) -> builtins.list[r.TokenInfo]:
        return self._list(r.TokenInfo, "/v1/tokens")

    def create(self, request: r.TokenRequest) -> r.TokenInfo:
        """Create a token. Only this answer contains its secret, in `token`."""
        return self._post(r.TokenInfo, "/v1/tokens", request)

    def revoke(self, token_id: str, *, endpoints: bool = False) -> r.RevokedToken:
        """Revoke a token and those made by it. Raises NotFound.

        `endpoints`: also the endpoints that they registered.
        """
        answer = self._delete(f"/v1/tokens/{in_path(token_id)}{'?endpoints=1' if endpoints else ''}")
        if not answer:  # of a server of an older version
            return r.RevokedToken(tokens=[], endpoints=[])
        return msgspec.json.decode(answer, type=r.RevokedToken)
