"""One call of a provider of Parsl, in a process of its own.

    stdin: Question as JSON ──► python -m oncue.endpoint.providers.parsl_call ──► stdout: Answer

A call that hangs is ended. Parsl keeps its jobs in memory: what it knew of them comes back with
the answer, and is given to the next process.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any

import msgspec

REFUSED, FAILED = 3, 4  # exit codes


class Question(msgspec.Struct):
    """A call. `known`: what Parsl knew of the jobs `ids`."""

    call: str  # submit, status, cancel
    name: str  # of the class
    options: dict[str, Any]
    launcher: str
    folder: str  # for Parsl's scripts
    ids: list[str] = []
    known: dict[str, dict[str, Any]] = {}
    command: str = ""
    mark: str = ""
    nodes: int = 1
    walltime: str = ""


class Answer(msgspec.Struct):
    """Result of a call. `states`: by job Parsl's state, message, exit code."""

    job: str = ""
    known: dict[str, Any] = {}
    states: dict[str, tuple[str, str, int | None]] = {}


def answer(question: Question) -> Answer:
    """Make the call. Raises whatever Parsl raises."""
    provider = _provider(question)
    if question.call == "submit":
        job = provider.submit(question.command, 1, question.mark)
        if not job:
            raise ValueError(f"{question.name} submitted nothing and gave no reason")
        return Answer(str(job), _plain(provider.resources.get(job, {})))
    from parsl.jobs.states import JobState, JobStatus

    for job in question.ids:
        known = question.known.get(job, {"job_id": job, "job_stdout_path": None, "job_stderr_path": None})
        provider.resources[job] = known | {"status": JobStatus(JobState.RUNNING)}
    if question.call == "cancel":
        provider.cancel(question.ids)
        return Answer()
    states = zip(question.ids, provider.status(question.ids), strict=True)
    return Answer(states={job: (s.state.name, s.message or "", s.exit_code) for job, s in states})


def _provider(question: Question) -> Any:
    import parsl.launchers
    import parsl.providers

    made = getattr(parsl.providers, question.name, None)
    if question.name not in parsl.providers.__all__ or made is None:
        names = ", ".join(sorted(parsl.providers.__all__))
        raise TypeError(f"Parsl has no provider {question.name!r}; it has {names}")
    ours = {
        "launcher": getattr(parsl.launchers, question.launcher)(),
        "nodes_per_block": question.nodes,
        "walltime": question.walltime,
    }
    accepted = inspect.signature(made).parameters
    provider = made(**{k: v for k, v in ours.items() if k in accepted and v} | question.options)
    provider.script_dir = question.folder
    return provider


def _plain(known: dict[str, Any]) -> dict[str, Any]:
    """Return what can be written as JSON."""
    return {k: v for k, v in known.items() if v is None or isinstance(v, str | int | float)}


def main() -> int:
    os.umask(0o077)  # the scripts have the block's secret
    try:
        text = msgspec.json.encode(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Question)))
    except Exception as e:
        refused = isinstance(e, TypeError | ValueError | AttributeError) or getattr(e, "retcode", None) is not None
        said = f"{e} {getattr(e, 'stderr', None) or ''}".strip() or type(e).__name__
        sys.stderr.write(f"{said}\n")
        return REFUSED if refused else FAILED
    sys.stdout.buffer.write(b"\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
