"""`oncue endpoint`: commands for the machine of an agent."""

from __future__ import annotations

import click

from oncue.cli.command_group import Group
from oncue.cli.endpoint.configure import configure, init
from oncue.cli.endpoint.doctor import doctor
from oncue.cli.endpoint.logs import logs
from oncue.cli.endpoint.register import register
from oncue.cli.endpoint.reset import reset
from oncue.cli.endpoint.service import install_service
from oncue.cli.endpoint.start import start
from oncue.cli.endpoint.status import status
from oncue.cli.endpoint.stop import restart, stop


@click.group(cls=Group)
def endpoint() -> None:
    """Set up, start and stop an endpoint on this machine.

    \b
    Example:
      oncue endpoint init polaris --preset polaris
      oncue endpoint start polaris --detach
    """


for _command in (init, register, configure, start, stop, restart, status, logs, doctor, reset, install_service):
    endpoint.add_command(_command)
