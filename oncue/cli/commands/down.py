"""`oncue down`."""

from __future__ import annotations

import os
import signal

import click

from oncue.cli.local_server import alive, await_true, local_server
from oncue.config import load_settings
from oncue.errors import NotFound, OncueError


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="The server's data folder (default: ~/.oncue).")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for its end.")
def down(data: str | None, timeout: float) -> None:
    """Stop the server that runs here, and its endpoint. What was accepted is kept.

    \b
    Example:
      oncue down
    """
    from oncue.cli.agent_process import local_folder, running_agent, stop_agent

    folder = load_settings({"data": data}).data_path
    local = local_server(folder)
    if local is None:
        # A server that was killed leaves its endpoint's agent: it goes on, and waits for the next server.
        agent = running_agent(local_folder(folder))
        if not agent:
            raise NotFound(f"no server runs in {folder}", remedy="name its folder with --data, or ONCUE_DATA")
        stop_agent(agent, None, timeout)
        click.echo(f"no server runs in {folder}; the agent of its local endpoint (pid {agent}) did, and has ended")
        return
    pid = int(local["pid"])
    os.kill(pid, signal.SIGTERM)
    if not await_true(lambda: not alive(pid), timeout):
        raise OncueError(
            f"the server (pid {pid}) has not ended in {timeout:g} s", remedy=f"look at {folder / 'server.log'}"
        )
    click.echo(f"the server at {local['url']} (pid {pid}) has ended")
