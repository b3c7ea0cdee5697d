"""`oncue down`."""

from __future__ import annotations

from pathlib import Path

import click

from oncue.config import default_data, load_settings
from oncue.errors import Invalid, NotFound, OncueError


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="Data folder of the server (default: ~/.oncue).")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait until it has stopped.")
@click.option("--force", is_flag=True, help="After that time, kill it. What was accepted is kept also then.")
def down(data: str | None, timeout: float, force: bool) -> None:
    """Stop the server on this machine, and its local endpoint.

    Accepted tasks and events are kept. The process is found by the lock of its folder, so a server
    that hangs, or is stopped (SIGSTOP), is found too.

    \b
    Example:
      oncue down
      oncue down --timeout 10 --force
    """
    from oncue.cli.agent_process import ENDED, local_folder, stop_agent
    from oncue.processes.lock_holder import lock_holder

    folder, wrong = _folder(data)
    holder = lock_holder(folder / "lock")
    if holder is None and wrong is not None:
        raise wrong
    if holder is None:
        # The agent of a server that was killed goes on and waits for the next server.
        agent, how = stop_agent(local_folder(folder), timeout)
        if not agent:
            raise NotFound(f"no server runs in {folder}", remedy="give its folder with --data, or ONCUE_DATA")
        click.echo(f"no server runs in {folder}; the agent of its local endpoint (pid {agent}) {ENDED[how]}")
        return
    with holder:
        how = holder.stop(timeout, kill=force)
    if not how:
        raise OncueError(
            f"the server (pid {holder.pid}) has not stopped in {timeout:g} s",
            remedy=f"see {folder / 'server.log'}"
            + ("; it waits for its disk" if force else "; to kill it: oncue down --force"),
        )
    click.echo(f"the server in {folder} (pid {holder.pid}) {ENDED[how]}")
    if how == "KILL":
        agent, how = stop_agent(local_folder(folder))
        if agent:
            click.echo(f"the agent of its local endpoint (pid {agent}) {ENDED[how]}")


def _folder(data: str | None) -> tuple[Path, Invalid | None]:
    """Return the data folder, and the error in the settings if there is one.

    A running server can be stopped although its settings have become wrong.
    """
    try:
        return load_settings({"data": data}).data_path, None
    except Invalid as e:
        return (Path(data).expanduser().absolute() if data else default_data().absolute()), e
