"""Names of the log's topics, and the topic of each endpoint's tasks."""

from __future__ import annotations

import zlib

import msgspec

EVENTS = "oncue.events"
RESULTS = "oncue.results"  # attempts that ended, and fences
CONTROL = "oncue.control"  # claims of servers, cancel requests
REPORTS = "oncue.reports"  # progress of running tasks; may be lost
MATCHES = "oncue.matches"  # events for stateful rules, and ticks
REGISTRY = "oncue.registry"  # functions, endpoints, deployments, tokens; compacted by key
DEAD = "oncue.dead"  # dead letters and their resolutions
TASKS_PREFIX = "oncue.tasks."
SHARED_TASKS = TASKS_PREFIX + "shared-"
WINDOWS = "oncue.windows"  # changelog of the states of stateful rules, on Kafka
STREAM = "oncue.stream"  # reports of the stream workers, on Kafka
FILES = "oncue.files"  # replicated state of triggers; empty where one server alone has the log
UNVIEWED = frozenset((MATCHES, WINDOWS, STREAM, FILES))  # topics that the view does not read

SHARED_CONTROL_PARTITIONS = 64  # of oncue.control, where several servers divide it


class TaskTopics(msgspec.Struct, frozen=True):
    """Maps an endpoint to the topic of its tasks.

    Each endpoint has a topic of its own, or `shared` topics serve all endpoints: for clusters where
    the server may not create topics, or where thousands are too many. Each topic has one partition,
    so the records of an endpoint are in order.
    """

    shared: int = 0

    def of(self, endpoint: str) -> str:
        return (
            f"{SHARED_TASKS}{zlib.crc32(endpoint.encode()) % self.shared}" if self.shared else TASKS_PREFIX + endpoint
        )

    def names(self) -> list[str]:
        """Topics that exist whatever endpoints there are, the last one first.

        Once the last topic is created, the number of shared topics is known.
        """
        return [f"{SHARED_TASKS}{n}" for n in reversed(range(self.shared))]
