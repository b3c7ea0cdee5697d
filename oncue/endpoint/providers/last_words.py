"""Last words of a job: the line of its stderr that says why it ended.

Launchers append their own lines, which tell the exit code again. Indented lines, such as a remedy,
belong to the line before them.
"""

from __future__ import annotations

import re

#: Lines of srun, aprun, jsrun, Slurm, PBS, Hydra (mpiexec of MPICH), the shell.
_LAUNCHERS = re.compile(
    r"(srun|slurmstepd|mpiexec\S*|mpirun|prterun|jsrun|pbsdsh|blaunch|aprun|\[NID |\[mpiexec@|\[proxy|=|Terminated$)"
)
_RULE = re.compile(r"-{20,}$")  # Open MPI's texts stand between two such lines


MOST_LINES = 3


def last_words(stderr: str) -> str:
    """Return the last line that is not a launcher's; if all are, the very last."""
    lines = [line.rstrip() for line in stderr.strip().splitlines()]
    rules = [n for n, line in enumerate(lines) if _RULE.match(line)]
    own = lines[: rules[0]] + lines[rules[-1] + 1 :] if rules else lines
    said = ([line for line in own if line and not _LAUNCHERS.match(line)] or lines or [""])[-MOST_LINES:]
    first = max((n for n, line in enumerate(said) if not line[:1].isspace()), default=len(said) - 1)
    return "; ".join(line.strip() for line in said[first:])
