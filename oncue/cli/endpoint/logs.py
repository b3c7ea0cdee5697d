"""`oncue endpoint logs`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from oncue.cli.endpoint.folder import LOG, dir_option, folder_of, last_lines, name_argument, registered
from oncue.cli.output import say
from oncue.errors import NotFound

POLL_S = 0.2
AT_ONCE = 1 << 20


@click.command()
@name_argument
@dir_option
@click.option("--follow", "-f", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(0), default=100, show_default=True, help="Begin with the last N.")
def logs(name: str, folder: str | None, follow: bool, lines: int) -> None:
    """Print the log of an agent that runs in the background.

    An agent that was started in a terminal, or by `oncue up`, has no log of its own.

    \b
    Example:
      oncue endpoint logs polaris -f
    """
    path = folder_of(folder, name) / LOG
    if not path.exists():
        registered(folder, name, NotFound)
        raise NotFound(
            f"{path} does not exist",
            remedy=f"agents started in the background write it: oncue endpoint start {name} --detach",
        )
    end = path.stat().st_size
    if lines and (text := last_lines(path, lines)):
        say(text)
    if follow:
        for added in _added(path, end):
            click.echo(_shown(added), nl=False)


def _shown(data: bytes) -> str:
    from oncue.text.escape import escaped

    return escaped(data.decode("utf-8", "replace"), lines=True)


def _added(path: Path, at: int) -> Iterator[bytes]:
    """Yield whole lines that are appended, also to a file that replaces the first one."""
    rest = b""
    while True:
        with path.open("rb") as f:
            inode = os.fstat(f.fileno()).st_ino
            f.seek(at)
            while True:
                data = f.read(AT_ONCE)
                if data:
                    whole, newline, rest = (rest + data).rpartition(b"\n")
                    if newline:
                        yield whole + newline
                    continue
                if not path.exists() or path.stat().st_ino != inode or path.stat().st_size < f.tell():
                    break
                time.sleep(POLL_S)
        while not path.exists():
            time.sleep(POLL_S)
        at = 0
