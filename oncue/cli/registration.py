"""An endpoint's keys and its registration: both are made, or nothing is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from oncue.client import Client
from oncue.curve import Keys, load_or_make_keys
from oncue.errors import Conflict, NotReady, Unreachable
from oncue.protocol.api import EndpointRequest, Registered

UNSURE = (Unreachable, NotReady)  # the server may have taken the key: it is kept for the next try


def enrol(
    client: Client,
    folder: Path,
    name: str,
    *,
    lost_after_ms: int | None = None,
    labels: dict[str, str] | None = None,
) -> Registered:
    """Register the endpoint with the keys in this folder. They are made when there are none, and made anew when their
    endpoint was revoked: what the revoked one kept is put aside, and its agent is ended. Again is harmless: what is None
    stays as it is."""

    def tell(keys: Keys) -> Registered:
        request = EndpointRequest(
            name=name, public_key=keys.public.decode(), lost_after_ms=lost_after_ms, labels=labels
        )
        return client.endpoints.register(request)

    _ = client.me  # a server that cannot be reached, or a wrong token: before anything is made
    key, fresh = folder / "agent.key", folder / "agent.key.new"
    try:
        with _made(key):
            return tell(load_or_make_keys(key))
    except Conflict as e:
        if not e.details.get("revoked_key"):
            raise
    with _made(fresh):
        found = tell(load_or_make_keys(fresh))
    _put_aside(folder)
    fresh.replace(key)
    return found


def _put_aside(folder: Path) -> None:
    """What was the revoked endpoint's: its results would be told in the new one's name."""
    from oncue.cli.local_agent import end, running_agent

    pid = running_agent(folder)
    if pid:
        end(pid, None)
    for name in ("agent.key", "journal"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).replace(folder / f"{name}.revoked")


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """The file, and the folders, that are made in here are removed again when it fails."""
    there = path.exists()
    folders = [p for p in path.parents if not p.exists()]  # the innermost first
    try:
        yield
    except UNSURE:
        raise
    except BaseException:
        if not there:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: someone else's as well
                for folder in folders:
                    folder.rmdir()
        raise
