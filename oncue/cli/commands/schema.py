"""`oncue schema rules`."""

from __future__ import annotations

import click

from oncue.cli.command_group import Group
from oncue.extras import need


@click.group(cls=Group)
def schema() -> None:
    """Print schemas of files that you write.

    \b
    Example:
      oncue schema rules > rules.schema.json
    """


@schema.command()
def rules() -> None:
    """Print the JSON Schema of rule files of this version.

    A server has its own at /v1/schemas/rules.

    \b
    Example:
      oncue schema rules > rules.schema.json
    """
    need("the schema of rule files")
    from oncue.rules.schema.rule_file import schema_text
    from oncue.triggers.catalog import OptionStructs

    click.echo(schema_text(OptionStructs()), nl=False)
