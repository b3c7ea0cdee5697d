"""Materialized view of the log: the server's query database. See view.py."""

from __future__ import annotations

from oncue.view.event_lists import EventFilter, EventRow
from oncue.view.lists import TaskFilter
from oncue.view.lookups import ClaimRow, DeadRow, SkippedRow
from oncue.view.projector import Applied
from oncue.view.queries import OpenRow, TaskRun
from oncue.view.schema import ViewError
from oncue.view.tasks import ClosedTask
from oncue.view.view import View

__all__ = [
    "Applied",
    "ClaimRow",
    "ClosedTask",
    "DeadRow",
    "EventFilter",
    "EventRow",
    "OpenRow",
    "SkippedRow",
    "TaskFilter",
    "TaskRun",
    "View",
    "ViewError",
]
