"""The command line `oncue`.

A command's module is imported when the command is used, so that `oncue --help` is fast and the
server's process does not load the other commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code.

    0: success; `exit_code` of the error's class; 2: wrong usage; 130: Ctrl-C.
    """
    import click

    from oncue.cli.root import root
    from oncue.errors import OncueError

    try:
        code = root.main(
            args=list(arguments) if arguments is not None else None, prog_name="oncue", standalone_mode=False
        )
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except OncueError as e:
        if os.environ.get("ONCUE_DEBUG"):
            raise
        from oncue.cli.output import show_error

        show_error(e)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # as in `oncue tasks list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except TimeoutError as e:
        if os.environ.get("ONCUE_DEBUG"):
            raise
        click.echo(f"error: {e}", err=True)
        sys.exit(1)
    except OSError as e:  # as in `oncue tasks list > /dev/full`
        if os.environ.get("ONCUE_DEBUG"):
            raise
        where = f": {e.filename}" if e.filename else ""
        click.echo(f"error: {e.strerror or e}{where} (ONCUE_DEBUG=1 shows where)", err=True)
        _drop_unwritable_output()
        sys.exit(1)


def _drop_unwritable_output() -> None:
    """Drop buffered output that cannot be written.

    Otherwise the interpreter would print a traceback when it flushes at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
