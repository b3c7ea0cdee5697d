"""Types and descriptions of the keys of rule files.

A key that is missing here is in the schema all the same, with any value: the keys come from the
parser. tests/unit/rules/schema demands an entry for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncue.protocol.priority import PRIORITY_WORDS
from oncue.protocol.records import NAME_CHARS
from oncue.protocol.retry_policy import RETRY_WORDS
from oncue.protocol.stated_options import RESOURCES
from oncue.rules.limiters.base import FULL
from oncue.rules.limiters.pause import MODES, RESUMES
from oncue.rules.limiters.running import OVERLAPS
from oncue.rules.operators.join import ENDS as JOIN_ENDS
from oncue.rules.operators.order_by import BLOCKS as ORDER_BLOCKS
from oncue.rules.outcomes.outcome_event import STATES

Schema = dict[str, Any]


def text(about: str, **more: Any) -> Schema:
    return {"type": "string", "description": about, **more}


def whole(about: str, least: int = 1) -> Schema:
    return {"type": "integer", "minimum": least, "description": about}


def flag(about: str) -> Schema:
    return {"type": "boolean", "description": about}


def duration(about: str) -> Schema:
    return {"type": ["string", "number"], "description": f"{about}: 30s, 10m, 2h, 5d; a number is seconds"}


def size(about: str) -> Schema:
    return {"type": ["string", "integer"], "description": f"{about}: 500kB, 2GB; a number is bytes"}


def one_or_more(item: Schema, about: str) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item}], "description": about}


NAME = text("Letters, digits and . _ -", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", maxLength=NAME_CHARS)
ENDS = {"anyOf": [{"enum": list(RETRY_WORDS)}, {"type": "string"}]}

RULE: Mapping[str, Schema] = {
    "name": NAME,
    "description": text("For people"),
    "on": {"$ref": "#/$defs/on"},
    "match": {"$ref": "#/$defs/match"},
    "when": text("A condition in CEL: data.exposure_s > 0.1"),
    "run": {
        "anyOf": [{"$ref": "#/$defs/run"}, {"type": "array", "items": {"$ref": "#/$defs/run"}, "minItems": 1}],
        "description": "The function or script to run, or a list of them",
    },
    "retry": {"$ref": "#/$defs/retry"},
    "timeout": duration("Limit of one attempt, or none"),
    "affinity": text('Tasks with the same key prefer the worker that had it: "${data.sample}"'),
    "expires": duration("Latest start after the event, or none"),
    "limits": {"$ref": "#/$defs/limits"},
    "priority": {
        "enum": [*PRIORITY_WORDS],
        "description": "live tasks go before normal ones, and these before low ones",
    },
    "enabled": flag("false: deployed, and fires for nothing"),
    "mode": {"enum": [*MODES], "description": "shadow: it is counted and runs nothing; paused: what fires waits"},
    "resume": {"enum": [*RESUMES], "description": "What runs of a paused rule later: all, or the latest"},
    "pause_on_failures": whole("After so many failures in a row, what fires waits until it is resumed", 1),
    "tests": {"type": "array", "items": {"$ref": "#/$defs/test"}, "description": "Run by each deploy"},
}
RUN: Mapping[str, Schema] = {
    "function": text("file.py:name beside this file, or a registered function"),
    "shell": text('A script; values stand in it as "${data.path}"'),
    "mpi": text("A script that runs in each rank"),
    "notify": {"$ref": "#/$defs/notify"},
    "endpoint": text("Name of the endpoint (local)"),
    "args": {"type": ["object", "array"], "description": 'Arguments; "${data.path}" is a value of the event'},
    "timeout": RULE["timeout"],
    "affinity": RULE["affinity"],
    "for_each": {
        "type": ["string", "array"],
        "minItems": 1,
        "description": 'A task for each item of a list: "${data.detectors}"; ${item} in `args` is the item',
    },
    "env": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
        "description": "Environment variables of the script",
    },
    "cwd": text("Working directory of the script"),
    "interpreter": text("Program that runs the script (/bin/sh)"),
    "resources": {
        "type": "object",
        "properties": {name: {"type": ["string", "number"]} for name in RESOURCES},
        "additionalProperties": False,
        "description": "What a task needs",
    },
    "sandbox": {"enum": [True, False, "keep"], "description": "A folder of the task's own"},
    "outputs": {"type": "array", "items": {"type": "string"}, "description": "Globs of files that come back"},
    "files": one_or_more({"type": "string"}, "Data files that travel with the function"),
    "fresh": flag("Each task in a new process"),
    "memory": size("Limit of a task"),
    "detached": flag("Child processes may outlive the task"),
}
NOTIFY: Mapping[str, Schema] = {
    "webhook": text("URL that gets the message as JSON"),
    "slack": text("URL of an incoming webhook of Slack, Mattermost or a service of that form"),
    "mail": {"$ref": "#/$defs/mail"},
    "text": text('The message: "${data.rule} failed: ${data.failure.message}"'),
    "subject": text("Subject of the mail (the first line of the text)"),
    "data": {"description": "More for a webhook: any values of the event"},
    "headers": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Headers of the request"},
}
MAIL: Mapping[str, Schema] = {
    "to": one_or_more({"type": "string"}, "Receivers"),
    "from": text("Sender"),
    "server": text("smtp://HOST:25, smtps://HOST or smtp+starttls://HOST (smtp://localhost)"),
    "user": text("Name for the login; the password is ONCUE_SMTP_PASSWORD of the endpoint"),
}
RETRY: Mapping[str, Schema] = {
    "max": whole("Retries (3)", 0),
    "backoff": {"enum": ["exponential", "constant"]},
    "base": duration("Wait before the first retry"),
    "cap": duration("Longest wait"),
    "on": one_or_more(ENDS, "Ends that are retried: lost, error, exit:75, mypkg.Retriable"),
    "never": one_or_more(ENDS, "Ends that are not retried"),
    "max_age": duration("No retry later than this after the task was accepted"),
}
LIMITS: Mapping[str, Schema] = {"node_hours": text("50/week: node-hours that its tasks may use")}
TEST: Mapping[str, Schema] = {
    "event": {"type": ["string", "object"], "description": "A file of JSON beside this one, or the event"},
    "events": {
        "type": "array",
        "items": {"$ref": "#/$defs/timed"},
        "minItems": 1,
        "description": "Several events on a virtual clock",
    },
    "takes": duration("Time from a firing to the outcomes of its tasks"),
    "expect": {"$ref": "#/$defs/expect"},
}
TIMED: Mapping[str, Schema] = {
    "at": duration("Time of the event, from 0s"),
    "event": TEST["event"],
}
EXPECT: Mapping[str, Schema] = {
    "fires": {"type": ["boolean", "integer"], "description": "true, false, or how often"},
    "args": {"type": ["object", "array", "null"], "description": "Arguments of the function"},
    "dead": text("Part of the reason of a dead letter that it must leave"),
}
DONE: Mapping[str, Schema] = {
    "done": one_or_more({"type": "string"}, "Rules whose outcomes start this one"),
    "state": one_or_more(
        {"anyOf": [{"enum": [*STATES]}, {"enum": ["ok", "error", "timeout", "canceled"]}]}, "States of the outcome"
    ),
}
OVERDUE: Mapping[str, Schema] = {
    "overdue": one_or_more({"type": "string"}, "Rules whose deadlines start this one"),
}
PATTERN: Schema = {"$ref": "#/$defs/pattern"}
#: Options of operators and limiters, by operator.option or option.
OPERATORS: Mapping[str, Schema] = {
    "key": text('Events with equal keys are decided together: "${data.scan}"'),
    "ttl": duration("It is forgotten after this time"),
    "count": whole("Number of events"),
    "per": duration("Length of a period"),
    "first": whole("Only so many of a key pass"),
    "every": whole("One in so many passes"),
    "quiet": duration("Time without another event"),
    "max": duration("It fires so long after the first event at the latest"),
    "tumbling": duration("Length of windows that follow one another"),
    "sliding": duration("Length of windows that overlap"),
    "window.every": duration("A sliding window ends every so often"),
    "session": duration("A window ends with such a pause"),
    "size": duration("Longest session"),
    "time": text('accepted, or where the event has its time: "${data.time}"'),
    "last": {"enum": [True], "description": "Only the last of a series passes"},
    "select": whole("So many of a series pass, evenly spaced"),
    "of": {"type": ["string", "integer"], "description": 'Number of events of a series: "${data.frames}"'},
    "order_by.by": {"type": ["string"], "description": 'Number of an event: "${data.scan}"'},
    "from": whole("Number of the first event", 0),
    "on_block": {"enum": [*ORDER_BLOCKS], "description": "What becomes of events that wait for a number"},
    "order_by.within": duration("How long they wait"),
    "delay": duration("Time that passes before the rule fires"),
    "late": duration("How long a window waits for events that arrive late"),
    "n": whole("Events that must come"),
    "within": duration("Time in which they must come"),
    "bytes": size("Sum of data.size"),
    "wait": duration("It closes so long after its first event"),
    "join.count": whole("Events with different names that must come"),
    "list": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "number"]}}],
        "description": "Names that must come, or where the event has them",
    },
    "by": text('Name of an event: "${data.detector}"'),
    "deadline": duration("It ends so long after its first event"),
    "join.all": {
        "type": "object",
        "additionalProperties": PATTERN,
        "minProperties": 1,
        "description": "One event of each pattern must come: {raw: scans, dark: {on: darks}}",
    },
    "steps": {
        "type": "array",
        "items": {"type": "object", "additionalProperties": PATTERN, "minProperties": 1, "maxProperties": 1},
        "minItems": 2,
        "description": "Patterns in the order in which they must come: [{opened: shutter}, {closed: {on: ...}}]",
    },
    "absent.after": {**PATTERN, "description": "The event that begins to wait"},
    "absent.expect": {**PATTERN, "description": "The event that must come"},
    "then": {"enum": [*JOIN_ENDS], "description": "At the deadline, if some are missing"},
    "running": whole("Firings that run at once"),
    "overlap": {"enum": [*OVERLAPS], "description": "The others wait, are skipped, or only the newest waits"},
    "queue": whole("Firings that may wait"),
    "full": {"enum": [*FULL], "description": "One that finds a full queue is a dead letter, or is dropped"},
}
