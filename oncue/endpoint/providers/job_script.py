"""Script of a job: directives, variables, launcher, exit code.

The launcher runs beside the shell, which hands TERM on to it: schedulers send a job's end to the
shell alone, to its process group, or to all its processes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

import msgspec

from oncue.endpoint.nodes.block_secret import BEGAN
from oncue.endpoint.options.providers import Launcher
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.jobs import JobRequest, SubmissionRefused
from oncue.endpoint.providers.launchers import ONE_NODE, launched, needs_script

_BODY = """export {began}=$(date +%s)
{variables}
{worker_init}

ended() {{
  {{ echo "$1" >{exit}.new && mv -f {exit}.new {exit}; }} 2>/dev/null
  exit "$1"
}}
{check}
child= told=
trap 'told=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT USR1 USR2 XCPU
{launched} &
child=$!
[ -z "$told" ] || kill -TERM "$child" 2>/dev/null
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
if [ "$code" -gt 128 ]; then # of a signal that interrupted wait, or of the launcher
  wait "$child"; last=$?
  case "$last" in -*|127) ;; *) code=$last ;; esac # it is known already
fi
{cleanup}
ended "$code"
"""
_CHECK = """command -v {launcher} >/dev/null || {{
  echo "oncue: there is no {launcher} on $(uname -n): load its module in worker_init, or choose another launcher," \
    "both in endpoint.yaml" >&2
  ended 127
}}
"""


class LaunchOptions(msgspec.Struct, frozen=True):
    """Start of the command on a job's nodes, as the endpoint's file says it."""

    worker_init: str = ""
    launcher: Launcher = "simple"
    launcher_options: str = ""


def write_script(
    files: JobFiles,
    request: JobRequest,
    directives: Iterable[str],
    options: LaunchOptions,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Write the job's script; return its path. `variables` are the scheduler's own.

    Raises SubmissionRefused if the launcher cannot start so many nodes, or the disk refuses.
    """
    if request.nodes > 1 and options.launcher in ONE_NODE:
        raise SubmissionRefused(
            f"launcher {options.launcher} starts one node only, and a block has {request.nodes}",
            remedy="choose another launcher in endpoint.yaml, or blocks of one node",
        )
    try:
        files.prune()
        if needs_script(options.launcher):
            exports = _exports(dict(variables or {}) | dict(request.environment))
            # exec: TERM is for the command, and bash would end without handing it on.
            command = f"exec /bin/bash -c {shlex.quote(request.command)}"
            files.write(request.mark, ".node", f"{exports}\n{options.worker_init}\n{command}\n")
        files.path(request.mark, ".exit").unlink(missing_ok=True)
        lines = ["#!/bin/bash", *directives, "", script_body(files, request, options, variables)]
        return str(files.write(request.mark, ".sh", "\n".join(lines)))
    except OSError as e:
        raise SubmissionRefused(
            f"the job's script cannot be written: {files.folder}: {e.strerror}",
            remedy="make room on that disk, or make the folder writable",
        ) from None


def script_body(
    files: JobFiles, request: JobRequest, options: LaunchOptions, variables: Mapping[str, str] | None = None
) -> str:
    """Return the script without its first line and directives."""
    node_script = str(files.path(request.mark, ".node"))
    return _BODY.format(
        variables=_exports(dict(variables or {}) | dict(request.environment)),
        worker_init=options.worker_init,
        check=_CHECK.format(launcher=options.launcher) if options.launcher not in ONE_NODE else "",
        launched=launched(options.launcher, request.command, node_script, request.nodes, options.launcher_options),
        began=BEGAN,
        cleanup=request.cleanup,
        exit=shlex.quote(str(files.path(request.mark, ".exit"))),
    )


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def clock(seconds: int) -> str:
    """Return a time limit as HH:MM:SS."""
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
