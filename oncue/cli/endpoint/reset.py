"""`oncue endpoint reset`."""

from __future__ import annotations

import click

from oncue.cli.endpoint.folder import dir_option, folder_of, name_argument, registered
from oncue.cli.output import as_json, json_option, say
from oncue.errors import NotFound, NotReady

ANSWER_S = 15.0


@click.command()
@name_argument
@dir_option
@json_option
def reset(name: str, folder: str | None, json_: bool) -> None:
    """Let an endpoint ask for blocks again after several of them failed.

    It stops asking when blocks end before a worker has registered; `oncue endpoint status` shows
    their output. Mend the cause first.

    \b
    Example:
      oncue endpoint reset polaris
    """
    from oncue.cli.agent_process import running_agent
    from oncue.cli.local_server import await_true
    from oncue.endpoint.control_files import RESET_BLOCKS

    place = folder_of(folder, name)
    if not running_agent(place):
        registered(folder, name, NotFound)
        raise NotFound(f"no agent runs in {place}", remedy=f"start it: oncue endpoint start {name} --detach")
    request = place / RESET_BLOCKS
    request.touch()
    if not await_true(lambda: not request.exists(), ANSWER_S):
        request.unlink(missing_ok=True)
        raise NotReady("the agent did not answer", remedy=f"see its log: oncue endpoint logs {name}")
    as_json({"name": name, "reset": True}) if json_ else say(f"{name} may ask for blocks again")
