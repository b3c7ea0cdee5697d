"""`oncue restore`."""

from __future__ import annotations

from pathlib import Path

import click

from oncue.cli.backup_progress import progress_bar
from oncue.cli.output import as_json, json_option, say, when
from oncue.config import load_settings
from oncue.disk.private_files import make_files_private
from oncue.disk.space import NO_SPACE
from oncue.errors import DiskFull, OncueError
from oncue.extras import need


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(file_okay=False), help="Data folder to restore to (default: ~/.oncue).")
@click.option("--force", is_flag=True, help="Also if a server has used that folder: its files are moved to aside/.")
@click.option("--damaged", is_flag=True, help="Also if the backup is damaged: as far as it goes.")
@click.option("--check", is_flag=True, help="Read and check the backup; restore nothing.")
@json_option
def restore(folder: Path, data: str | None, force: bool, damaged: bool, check: bool, json_: bool) -> None:
    """Restore the backup in FOLDER to a data folder. Its server must be stopped.

    \b
    Example:
      oncue restore /backups/beamline7 --data ~/.oncue-new
      oncue restore /backups/beamline7 --check
    """
    need("a restore")
    from oncue.backup.restore import restore as put_back
    from oncue.backup.restore import verify

    make_files_private()
    folder, target = folder.absolute(), load_settings({"data": data}).data_path
    with progress_bar(quiet=json_) as progress:
        if check:
            found = verify(folder, progress)
            if json_:
                as_json(found)
            else:
                say(f"the backup of {when(int(found.at * 1e6))} in {folder} is sound")
            return
        try:
            done = put_back(folder, target, progress, force=force, damaged=damaged)
        except OSError as e:
            kind = DiskFull if e.errno in NO_SPACE else OncueError
            raise kind(f"the restore failed: {e}", remedy="mend that and run it again: it goes on") from e
    if json_:
        as_json(done)
        return
    say(f"restored the backup of {when(int(done.backup_at * 1e6))} to {done.data}")
    if done.kept:
        say(f"  what was there before: {done.kept}")
    for text in done.left_out:
        say(f"  not in it: {text}")
    say(f"  start it: oncue up --data {done.data}")
    say(
        "  Agents connect by themselves if they find the server at its former address. What was accepted after the"
        " backup is gone: tasks of that time are unknown, but an agent that has run one still delivers its result."
        " Tasks that were open then are sent again, unless their agent has them. Endpoints that were registered later"
        " have to be registered again. Files that fired later fire again."
    )
