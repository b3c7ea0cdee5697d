"""Runs tasks that have a folder: sandboxes, output files, shell scripts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from oncue.endpoint.pool.task_folders import (
    MARK,
    SANDBOX,
    STDERR,
    STDOUT,
    TASKS,
    TASKS_VARIABLE,
    failure_with_folder,
    folder_of,
    keep_sandbox,
    remove,
)
from oncue.endpoint.refusal import refused
from oncue.endpoint.worker.blob_files import BLOBS
from oncue.endpoint.worker.children import Children
from oncue.endpoint.worker.failure import failure
from oncue.endpoint.worker.mpi_run import (
    HOSTFILE,
    LAUNCHER,
    launch_words,
    layout_of,
    layout_variables,
    missing_launcher,
    rank_script,
    ranks_environment,
    shared_folder,
    use_all_cores,
    work_folder,
)
from oncue.endpoint.worker.shell_run import head_of, interpreter_of, run_script, tail_of, thread_variables
from oncue.endpoint.worker.values import arguments, packed
from oncue.errors import Invalid, MissingOutput
from oncue.functions.body import FunctionBody
from oncue.functions.shell.spec import command_of
from oncue.globs import glob_regex, max_depth
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import pack_with_files
from oncue.protocol.records import ERROR, OK, REFUSED, Failure, TaskRecord
from oncue.protocol.run_options import KEEP, MOST_FILES, RunOptions, TaskFile

FILES_BYTES = 96 * 1024  # of the list of files in a result
VALUE_BYTES = 128 * 1024  # of a result beside it; a larger one becomes a blob
Call = Callable[[], tuple[int, bytes]]


def needs_folder(body: FunctionBody, options: RunOptions) -> bool:
    """Return True if tasks of this function, with these options, have a folder."""
    return body.script is not None or bool(options.sandbox or options.outputs or options.hosts)


class FolderCalls:
    """Calls in folders. `children`: those of the worker's tasks."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def call(
        self, body: FunctionBody, options: RunOptions, task: TaskRecord, attempt: int, call: Call
    ) -> tuple[int, bytes]:
        """Run a task in its folder; return (status, value or Failure as bytes).

        `call` runs a Python function. A task that is stopped leaves its folder to the pool.
        """
        folder = place = folder_of(Path(os.environ[TASKS_VARIABLE]), os.getpid(), task.id, attempt)
        try:
            if options.hosts and options.sandbox:
                place = folder_of(shared_folder(os.environ) / TASKS, os.getpid(), task.id, attempt)
            work = _make(folder, place, options)
            if body.script is not None:
                status, value = self._run_script(body, options, task, attempt, folder, work)
            else:
                if options.hosts:
                    os.environ.update(layout_variables(layout_of(options, os.environ), folder / HOSTFILE))
                status, value = _run_in(work, call, options)
                os.chdir(folder.parents[2])  # out of the folder that is removed
            if status != OK and (kept := keep_sandbox(place)):
                value = encode_with_folder(value, kept)
        except Exception as e:
            status, value = ERROR, encode_with_folder(encode(failure(e)), keep_sandbox(place))
        for left in {folder, place}:
            remove(left)
        return status, value

    def _run_script(
        self, body: FunctionBody, options: RunOptions, task: TaskRecord, attempt: int, folder: Path, work: Path
    ) -> tuple[int, bytes]:
        spec = body.script
        assert spec is not None
        launcher = os.environ.get(LAUNCHER, "")
        if body.mpi is not None and (why := missing_launcher(launcher)):
            return REFUSED, encode(refused(why))
        args, values = arguments(task.args)
        if args:
            raise Invalid(
                f"{body.name} was given {len(args)} positional arguments",
                remedy="a shell function takes keywords: path=... for ${path}",
            )
        command = command_of(spec, values)
        cwd = work / os.path.expanduser(command.cwd) if command.cwd else work
        variables = {"ONCUE_TASK": task.id.hex(), "ONCUE_ATTEMPT": str(attempt)}
        variables |= thread_variables(options.resources.cores)
        words, env = interpreter_of(spec.interpreter), dict(os.environ)
        if body.mpi is not None or options.hosts:
            layout = layout_of(options, os.environ)
            variables |= layout_variables(layout, folder / HOSTFILE)
            cpus = int(env.get("SLURM_CPUS_ON_NODE", "0"))
            env = ranks_environment(env)
            launch = launch_words(launcher, layout, folder / HOSTFILE, (*variables, *command.env), cpus)
            variables["ONCUE_LAUNCH"] = shlex.join(launch)
            use_all_cores()
        if body.mpi is not None:
            words = [*launch, *words, "-c", rank_script(command.script)]
        else:
            words += ["-c", command.script]
        code = run_script(words, env | variables | command.env, cwd, folder)
        self._children.end()  # what it has left in the background may still write
        streams = tuple(BLOBS.put_streams(folder))
        if code:
            return ERROR, encode(_exited(body, code, folder, streams))
        result = {"returncode": 0, "stdout": head_of(folder / STDOUT), "stderr": head_of(folder / STDERR)}
        return OK, pack_with_files(packed(result), (*_outputs(cwd, options), *streams), shell=True)


def _make(folder: Path, place: Path, options: RunOptions) -> Path:
    """Make the folder, and that of the sandbox. Return the working directory."""
    for path in (folder, place):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not options.sandbox:
        return work_folder(os.environ) if len(options.hosts) > 1 else Path.cwd()
    work = place / SANDBOX
    work.mkdir()
    if options.sandbox == KEEP:
        (place / MARK).touch()
    return work


def _run_in(work: Path, call: Call, options: RunOptions) -> tuple[int, bytes]:
    """Run a Python function in a working directory, and store its outputs."""
    os.chdir(work)
    status, value = call()
    if status != OK or not options.outputs:
        return status, value
    files = _outputs(work, options)
    return OK, pack_with_files(value if len(value) <= VALUE_BYTES else BLOBS.put(value), files)


def _exited(body: FunctionBody, code: int, folder: Path, streams: tuple[TaskFile, ...]) -> Failure:
    """Return the failure of a script that ended with an exit code."""
    stderr = tail_of(folder / STDERR)
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    why = f"exit:{code}" + (f" (signal {code - 128})" if code > 128 else "")
    shown = f"{body.name} ended with {why}" + (f": {last[:500]}" if last else "")
    remedy = "its output says more: oncue tasks logs"
    if code == 127:
        remedy = "127 is a command that was not found: state its path, or load its module in the script"
    elif code == 137:
        remedy = "137 is a kill: out of memory, or a limit of the batch system"
    return Failure("oncue.ShellFailed", shown, stderr, remedy, exit_code=code & 0xFF, files=streams)


def encode_with_folder(value: bytes, folder: str) -> bytes:
    """Return an encoded Failure that names the kept sandbox."""
    if not folder:
        return value
    return encode(failure_with_folder(decode(Failure, value), folder))


# ---------------------------------------------------------------- files


def _outputs(folder: Path, options: RunOptions) -> tuple[TaskFile, ...]:
    """Store the files that the globs select. Raises MissingOutput, Invalid, OSError."""
    if not options.outputs:
        return ()
    patterns = {pattern: re.compile(glob_regex(pattern.rstrip("/"))) for pattern in options.outputs}
    depths = [max_depth(pattern) for pattern in options.outputs]
    depth = None if None in depths else max(d for d in depths if d is not None)
    selected: dict[str, Path] = {}
    missing = set(patterns)
    for name, path in _files(folder, depth, [p.fullmatch for p in patterns.values()]):
        found = [pattern for pattern, regex in patterns.items() if _matches(regex, name)]
        missing.difference_update(found)
        if found:
            selected[name] = path
    if missing:
        raise MissingOutput(
            f"no file of the task matches the output {sorted(missing)[0]!r}",
            remedy="the function must write it to its working directory; or take the glob out of `outputs`",
        )
    if len(selected) > MOST_FILES:
        raise Invalid(f"{len(selected):,} output files; at most {MOST_FILES:,}", remedy="pack them: tar")
    files = tuple(TaskFile(name, *BLOBS.put_file(str(path))) for name, path in sorted(selected.items()))
    if len(encode(files)) > FILES_BYTES:
        raise Invalid(f"the names of {len(files):,} output files are too long to be listed", remedy="pack them: tar")
    return files


def _matches(regex: re.Pattern[str], name: str) -> bool:
    """Return True if the glob selects the file, or a folder that it is in."""
    parts = name.split("/")
    return any(regex.fullmatch("/".join(parts[:n])) for n in range(len(parts), 0, -1))


def _files(folder: Path, depth: int | None, whole: list[Callable[[str], object]]) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to the folder, path) of the regular files in it.

    No deeper than `depth` parts, except in folders that a glob selects as a `whole`.
    """
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        parts = len(here.parts)
        inside = any(match(here.as_posix()) for match in whole)
        if depth is not None and parts + 1 >= depth and not inside:
            folders[:] = [f for f in folders if any(match((here / f).as_posix()) for match in whole)]
        for name in files:
            path = Path(place, name)
            if path.is_file():
                yield (here / name).as_posix(), path
