"""`oncue history export` and `query`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from oncue.cli.backup_progress import progress_bar
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, json_option, number_of, say
from oncue.cli.query_output import print_csv, print_json, print_table
from oncue.errors import Invalid
from oncue.extras import HISTORY, PARQUET, need

DATABASE = "history.db"  # in a folder of Parquet files


@click.group(cls=Group)
def history() -> None:
    """Export events and tasks for analysis, and query them.

    \b
    Example:
      oncue history export runs.db
      oncue history query "select state, count(*) from tasks group by state"
    """


@history.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--parquet", is_flag=True, help="PATH is a folder: write Parquet files too. So it is if PATH ends so.")
@click.option("--full", is_flag=True, help="Read everything again, not only what is new.")
@json_option
def export(path: Path, parquet: bool, full: bool, json_: bool) -> None:
    """Write the server's events and tasks to a SQLite file.

    Also attempts, outcomes, files and rules; all that you may see. Again to the same PATH, what has
    come since is added, and tasks that were open are brought up to date. The file keeps what the
    server forgets. If it is interrupted, type it again.

    \b
    Example:
      oncue history export runs.db
      oncue history export runs/ --parquet
    """
    parquet = parquet or path.suffix == ".parquet"
    need("an export", {**HISTORY, **PARQUET} if parquet else HISTORY)
    from oncue.history.database import HistoryFile
    from oncue.history.export import export as export_history

    database = _database(path, parquet)
    began = time.monotonic()
    with connected() as client, progress_bar(quiet=json_) as progress:
        file = HistoryFile(database)
        try:
            before = file.counts()
            export_history(client, file, progress, full=full)
            counts = file.counts()
        finally:
            file.close()
        files = _parquet_files(database, path) if parquet else []
    added = {name: count - before[name] for name, count in counts.items()}
    if json_:
        paths = [str(file) for file in files]
        as_json({"path": str(path), "database": str(database), "tables": counts, "added": added, "parquet": paths})
        return
    news = ", ".join(number_of(count, name.removesuffix("s")) for name, count in added.items() if count)
    say(f"exported to {path} in {time.monotonic() - began:.1f} s: {news or 'nothing new'}")


def _database(path: Path, parquet: bool) -> Path:
    """Return the SQLite file of an export. Raises Invalid."""
    if parquet and path.exists() and not path.is_dir():
        raise Invalid(f"{path} is a file", remedy="with --parquet, give a folder")
    if not parquet and path.is_dir():
        raise Invalid(f"{path} is a folder", remedy=f"give a file: {path / 'runs.db'}, or add --parquet")
    return path / DATABASE if parquet else path


def _parquet_files(database: Path, folder: Path) -> list[Path]:
    from oncue.history.parquet import write_parquet

    return write_parquet(database, folder)


@history.command()
@click.argument("sql")
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    default="runs.db",
    envvar="ONCUE_HISTORY",
    show_default=True,
    help="The exported file; also ONCUE_HISTORY.",
)
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--table", "form", flag_value="table", default="table", help="Print a table (the default).")
@json_option
def query(sql: str, db: Path, form: str, json_: bool) -> None:
    """Run one SELECT on an exported file. It only reads.

    \b
    Example:
      oncue history query "select state, count(*) from tasks group by state"
      oncue history query "select * from outcomes" --csv > outcomes.csv
      oncue history query "select rowid from outcomes_fts where outcomes_fts match 'memory'"
    """
    from oncue.history.query import query as run_query

    columns, rows = run_query(db / DATABASE if db.is_dir() else db, sql)
    show = print_json if json_ else print_csv if form == "csv" else print_table
    show(columns, rows)
