"""Runs a scheduler's command for submissions, and tells how it failed.

Refused, away or unclear is read from the exit code and the message, since no scheduler has exit
codes for them. What is not known to be a passing trouble counts as refused: the user reads why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from oncue.endpoint.providers.commands import CommandHung, Commands
from oncue.endpoint.providers.jobs import SchedulerAway, SubmissionRefused, SubmissionUnclear

# The scheduler cannot be asked, or has enough of our jobs: the same may succeed later.
_AWAY = re.compile(
    r"(unable|cannot|can't|could not|failed)( to)? (contact|connect|communicate|send|find address)"
    r"|connection (refused|reset)|temporarily (unable|unavailable)|not responding|shutting down|backup mode|munge"
    r"|MaxSubmit|would exceed .*limit|limit on (the )?number of jobs|too many jobs|Please wait|LSF is down"
    r"|batch system.*(down|initiali[sz]ing)|no such .*daemon",
    re.IGNORECASE,
)
# The request went out, and no answer came back.
_LOST = re.compile(
    r"timed? ?out|zero bytes were transmitted|unexpected message received|message (send|receive) failure"
    r"|end of file|premature end|lost connection",
    re.IGNORECASE,
)


def submitted(commands: Commands, command: Sequence[str], job_id: re.Pattern[str], stdin: str = "") -> str:
    """Run a command that submits a job; return its id, a group of `job_id`.

    Raises SubmissionRefused, SubmissionUnclear, SchedulerAway.
    """
    name = command[0]
    try:
        done = commands.run(*command, stdin=stdin)
    except CommandHung as e:
        raise SubmissionUnclear(e.message, command=name) from None
    found = job_id.search(done.out) if done.code == 0 else None
    if found is not None:
        return found[1]
    if done.code <= 0 or _LOST.search(done.err):
        raise SubmissionUnclear(done.why, command=name)
    if _AWAY.search(done.err):
        raise SchedulerAway(done.why, command=name)
    raise SubmissionRefused(done.why, command=name, remedy="correct `provider:` in endpoint.yaml")
