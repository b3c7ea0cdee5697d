"""Run options of tasks: resources, sandbox folder, output files, affinity.

A function has run options, and so has a call. Those of the call come first, field by field.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from oncue.protocol.codec import build_decoders

Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
MOST_PATTERNS = 100  # of `outputs`
MOST_FILES = 1_000  # of one task
KEY_CHARS = 200  # of an affinity key
SANDBOX, KEEP = 1, 2  # a folder of the task's own; kept if the task fails


class Resources(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Resources of one task on its node, and its time. 0: not stated.

    `cores`, `memory_bytes` and `gpus` are of each node; `nodes` and `ranks` of the task.
    """

    cores: Natural = 0
    memory_bytes: Natural = 0
    gpus: Natural = 0
    nodes: Natural = 0
    ranks: Natural = 0
    walltime_ms: Natural = 0

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node, at most."""
        return -(-self.ranks // max(1, self.nodes))

    def over(self, other: Resources) -> Resources:
        """Return these resources, and the other's where these are not stated."""
        return Resources(*[mine or theirs for mine, theirs in zip(_values(self), _values(other), strict=True)])


class RunOptions(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run options of a function or a call."""

    resources: Resources = Resources()
    sandbox: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0  # 0: not stated; SANDBOX or KEEP
    #: Globs of files below the task's folder that come back by reference.
    outputs: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_PATTERNS)] = ()
    #: Of a call: tasks with the same key prefer the worker, or the node, that had it. "": none.
    affinity: Annotated[str, msgspec.Meta(max_length=KEY_CHARS)] = ""
    #: Nodes that the agent has reserved for the task; it runs on the first. Users state none.
    hosts: tuple[str, ...] = ()

    def over(self, other: RunOptions) -> RunOptions:
        """Return these options, and the other's where these are not stated."""
        return RunOptions(
            self.resources.over(other.resources),
            self.sandbox or other.sandbox,
            self.outputs or other.outputs,
            self.affinity or other.affinity,
            self.hosts or other.hosts,
        )


class TaskFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file that a task has left, as a blob."""

    name: Annotated[str, msgspec.Meta(max_length=4_096)]  # relative to the task's folder, with /
    sha256: Annotated[str, msgspec.Meta(max_length=64)]
    size_bytes: Natural
    stream: Annotated[str, msgspec.Meta(max_length=10)] = ""  # stdout or stderr; "": an output


TaskFiles = Annotated[tuple[TaskFile, ...], msgspec.Meta(max_length=MOST_FILES + 2)]
NO_OPTIONS = RunOptions()


def affinity_of(options: RunOptions | None) -> str:
    """Return the affinity key of a call; "" if it has none."""
    return "" if options is None else options.affinity


def without_affinity(options: RunOptions | None) -> RunOptions | None:
    """Return options that are equal for calls that differ in their affinity keys only."""
    if options is None or not options.affinity:
        return options
    rest = msgspec.structs.replace(options, affinity="")
    return None if rest == NO_OPTIONS else rest


def _values(resources: Resources) -> tuple[int, ...]:
    return msgspec.structs.astuple(resources)


def merged(call: RunOptions | None, function: RunOptions | None) -> RunOptions:
    """Return the options of a call over those of its function."""
    if call is None:
        return function or NO_OPTIONS
    return call if function is None else call.over(function)


build_decoders(globals())
