"""Registration of an endpoint: creates its keys and registers them.

If registration fails, no file is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from oncue.cli.agent_process import stop_agent
from oncue.client import Client
from oncue.curve import Keys, load_or_make_keys
from oncue.errors import Conflict, NotReady, Unreachable
from oncue.protocol.api import EndpointRequest, Registered

# The server may have registered the key all the same, so the next try needs it.
OUTCOME_UNKNOWN = (Unreachable, NotReady)


def register_endpoint(
    client: Client,
    folder: Path,
    name: str,
    *,
    lost_after_ms: int | None = None,
    labels: dict[str, str] | None = None,
) -> Registered:
    """Register the endpoint with the keys in this folder. Idempotent.

    Missing keys are created. If the endpoint was revoked, it gets new keys: its agent is stopped,
    and the old key and journal are renamed. Settings that are None stay as they are.
    """

    def send(keys: Keys) -> Registered:
        request = EndpointRequest(
            name=name, public_key=keys.public.decode(), lost_after_ms=lost_after_ms, labels=labels
        )
        return client.endpoints.register(request)

    _ = client.me  # raises before any file exists if the server is away or the token is wrong
    key, fresh = folder / "agent.key", folder / "agent.key.new"
    try:
        with _removed_on_error(key):
            return send(load_or_make_keys(key))
    except Conflict as e:
        if not e.details.get("revoked_key"):
            raise
    with _removed_on_error(fresh):
        registered = send(load_or_make_keys(fresh))
    _retire_revoked(folder)
    fresh.replace(key)
    return registered


def _retire_revoked(folder: Path) -> None:
    """Stop the revoked agent, and rename its key and journal.

    So its results are not sent.
    """
    stop_agent(folder)
    for name in ("agent.key", "journal"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).replace(folder / f"{name}.revoked")


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    """Remove the file and the folders that the block creates if the block raises."""
    existed = path.exists()
    folders = [p for p in path.parents if not p.exists()]  # the innermost first
    try:
        yield
    except OUTCOME_UNKNOWN:
        raise
    except BaseException:
        if not existed:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: it holds files of others
                for folder in folders:
                    folder.rmdir()
        raise
