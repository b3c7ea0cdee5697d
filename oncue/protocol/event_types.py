"""Types and sources of the events that oncue itself makes."""

from __future__ import annotations

FILE_EVENT = "oncue.file.ready"  # of file triggers
OUTCOME_TYPE = "oncue.task."  # begins the types of outcomes of tasks; the state follows
OUTCOME_SOURCE = "/oncue/tasks"  # of these; their ids are those of the tasks
