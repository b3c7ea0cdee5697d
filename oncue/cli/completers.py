"""Shell completion of arguments with names from the server.

Completes nothing, without an error, if the server cannot be reached.

    @click.argument("name", shell_complete=rules)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from oncue.client import Client

ANSWER_S = 1.0  # longest wait after Tab
NEWEST = 50  # tasks and dead letters
STATES = (
    *("open", "closed", "waiting", "retrying", "running", "cancelling"),
    *("succeeded", "failed", "lost", "timed_out", "cancelled", "expired", "refused"),
)
Source = Callable[["Client"], Iterator[tuple[str, str]]]  # -> (word, description)
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _from_server(source: Source) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from oncue.client import Client

        client = Client(patience=ANSWER_S)
        client.http.timeout_s = ANSWER_S
        try:
            words = dict(source(client))
        except Exception:  # no server, no token, a late response ...: a shell cannot show it
            return []
        finally:
            client.close(flush=False)
        return [CompletionItem(word, help=text) for word, text in words.items() if word.startswith(incomplete)]

    return complete


def _functions(client: Client) -> Iterator[tuple[str, str]]:
    return ((f.name, f.signature) for f in client.functions.list(limit=200))


def _task_ids(client: Client) -> Iterator[tuple[str, str]]:
    return ((t.id, f"{t.state} {t.name}") for t in client.tasks.list(limit=NEWEST))


def _open_task_ids(client: Client) -> Iterator[tuple[str, str]]:
    return ((t.id, f"{t.state} {t.name}") for t in client.tasks.list(state="open", limit=NEWEST))


endpoints = _from_server(lambda client: ((e.name, e.state) for e in client.endpoints.list() if e.state != "revoked"))
rules = _from_server(lambda client: ((r.name, r.state) for r in client.rules.list()))
triggers = _from_server(lambda client: ((t.name, t.state) for t in client.triggers.list()))
labels = _from_server(lambda client: ((r.label, "") for r in client.rules.list()))
functions = _from_server(_functions)
task_ids = _from_server(_task_ids)
open_task_ids = _from_server(_open_task_ids)
dead_letters = _from_server(lambda client: ((str(d.id), d.reason) for d in client.dead.list(limit=NEWEST)))
tokens = _from_server(lambda client: ((t.id, t.name) for t in client.tokens.list() if not t.revoked))


def functions_or_files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a registered function, or the file of one."""
    return [*functions(context, parameter, incomplete), *files(context, parameter, incomplete)]


def states(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a state of tasks."""
    done, _, last = incomplete.rpartition(",")
    given = done + "," if done else ""
    return [CompletionItem(given + word) for word in STATES if word.startswith(last)]


def presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a preset of an `endpoint.yaml`."""
    from oncue.endpoint.options.presets import PRESETS

    return [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]


def local_endpoints(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an endpoint that has a folder on this machine."""
    from oncue.config import default_data

    names = sorted(path.parent.name for path in default_data().glob("endpoints/*/agent.json"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
