"""Failure of tasks that can never run on an endpoint."""

from __future__ import annotations

from oncue.protocol.records import Failure


def refused(why: str) -> Failure:
    """Return the failure of a task that can never run on this endpoint."""
    return Failure("oncue.TaskRefused", why, remedy="state less in `resources`, or choose another endpoint")
