"""`oncue down`."""

from __future__ import annotations

import os
import signal

import click

from oncue.cli.local_server import alive, await_true, local_server
from oncue.config import load_settings
from oncue.errors import NotFound, OncueError


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="Data folder of the server (default: ~/.oncue).")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait until it has stopped.")
def down(data: str | None, timeout: float) -> None:
    """Stop the server on this machine, and its local endpoint.

    Accepted tasks and events are kept.

    \b
    Example:
      oncue down
    """
    from oncue.cli.agent_process import local_folder, running_agent, stop_agent

    folder = load_settings({"data": data}).data_path
    local = local_server(folder)
    if local is None:
        # The agent of a server that was killed goes on and waits for the next server.
        agent = running_agent(local_folder(folder))
        if not agent:
            raise NotFound(f"no server runs in {folder}", remedy="give its folder with --data, or ONCUE_DATA")
        stop_agent(agent, None, timeout)
        click.echo(f"no server runs in {folder}; the agent of its local endpoint (pid {agent}) has stopped")
        return
    pid = int(local["pid"])
    os.kill(pid, signal.SIGTERM)
    if not await_true(lambda: not alive(pid), timeout):
        raise OncueError(
            f"the server (pid {pid}) has not stopped in {timeout:g} s", remedy=f"see {folder / 'server.log'}"
        )
    click.echo(f"the server at {local['url']} (pid {pid}) has stopped")
