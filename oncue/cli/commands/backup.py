"""`oncue backup`."""

from __future__ import annotations

from pathlib import Path

import click

from oncue.cli.backup_progress import progress_bar
from oncue.cli.output import as_json, json_option, say
from oncue.config import load_settings
from oncue.disk.private_files import make_files_private
from oncue.errors import OncueError
from oncue.extras import need


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(file_okay=False), help="Data folder of the server (default: ~/.oncue).")
@json_option
def backup(folder: Path, data: str | None, json_: bool) -> None:
    """Copy a server's data to FOLDER, while it runs or not.

    Again to the same FOLDER, only what is new is copied. If it is interrupted, the former backup
    stays good. FOLDER has keys and secrets: it gets mode 700.

    \b
    Example:
      oncue backup /backups/beamline7
    """
    need("a backup")
    from oncue.backup.backup import back_up

    make_files_private()
    settings = load_settings({"data": data})
    with progress_bar(quiet=json_) as progress:
        done = back_up(settings, folder.expanduser().absolute(), progress)
    if json_:
        as_json(done)
    else:
        say(
            f"backed up {settings.data_path} to {done.folder} in {done.seconds:.1f} s: the log up to record"
            f" {done.log_records:,}, {done.files} files, {done.blobs:,} blobs"
            f" ({done.new_blobs:,} new, {done.new_blobs_bytes / 1e6:.1f} MB)"
        )
        for text in done.left_out:
            say(f"  not in it: {text}")
    if done.damaged_blobs:
        raise OncueError(
            f"{len(done.damaged_blobs)} blobs are damaged and not in the backup: {', '.join(done.damaged_blobs[:5])}",
            remedy="the disk may be failing: check it; tasks that name these blobs fail",
        )
