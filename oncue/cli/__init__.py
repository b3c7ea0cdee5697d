"""The command line `oncue`.

A command's module is imported when the command is used, so that `oncue --help` is fast and the
server's process does not load the other commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

#: Exit codes beside those of errors (errors.py), for the documentation.
FAILED, USAGE, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code (docs/cli.md).

    Quiet where nobody listens: closed pipes, closed descriptors, Ctrl-C.
    """
    try:
        _open_standard_streams()
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # as in `oncue tasks list | head`
        code = CLOSED_PIPE
    except OSError as e:  # as in `oncue tasks list > /dev/full`
        code = _unwritable(e)
    _drop_unwritable_output()
    sys.exit(code)


def _run(words: list[str]) -> int:
    import click

    from oncue.cli.output import color, show_error
    from oncue.cli.root import root
    from oncue.errors import OncueError

    try:
        code = root.main(args=list(words), prog_name="oncue", standalone_mode=False, obj=words, color=color())
        return code if isinstance(code, int) else 0
    except SystemExit as e:
        if isinstance(e.code, str):
            click.echo(e.code, err=True)
        return e.code if isinstance(e.code, int) else FAILED if e.code else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except OncueError as e:
        if os.environ.get("ONCUE_DEBUG"):
            raise
        show_error(e)
        return e.exit_code
    except TimeoutError as e:
        if os.environ.get("ONCUE_DEBUG"):
            raise
        click.echo(f"error: {e}", err=True)
        return FAILED


def _unwritable(e: OSError) -> int:
    """Print an error of the system, and return the exit code."""
    if os.environ.get("ONCUE_DEBUG"):
        raise e
    import click

    where = f": {e.filename}" if e.filename else ""
    click.echo(f"error: {e.strerror or e}{where} (ONCUE_DEBUG=1 shows where)", err=True)
    return FAILED


def _open_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams, as of `oncue ... >&-`.

    Otherwise the next socket would become the standard output.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)  # inheritable
            if opened != number:
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _drop_unwritable_output() -> None:
    """Drop buffered output that cannot be written.

    Otherwise the interpreter would print a traceback when it flushes at exit.
    """
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
