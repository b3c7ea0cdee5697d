"""`oncue endpoint configure` and `init`: write and check an `endpoint.yaml`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.endpoint.folder import dir_option, folder_of
from oncue.cli.endpoint.register import Registration, register_here, registration_options
from oncue.cli.output import as_json, facts, json_option, plain, say, table
from oncue.errors import Conflict, Invalid, NotFound

#: Commands that the agent calls, by kind of provider.
NEEDED = {
    "slurm": ("sbatch", "squeue", "scancel"),
    "pbspro": ("qsub", "qstat", "qdel"),
    "torque": ("qsub", "qstat", "qdel"),
    "lsf": ("bsub", "bjobs", "bkill"),
    "gridengine": ("qsub", "qstat", "qdel"),
    "condor": ("condor_submit", "condor_q", "condor_rm"),
    "kubernetes": ("kubectl",),
}
_preset = click.option(
    "--preset",
    metavar="PRESET",
    shell_complete=completers.presets,
    help="Scheduler or site; `configure --presets` lists them. Default: as found.",
)


@click.command()
@click.argument("name", required=False, shell_complete=completers.local_endpoints)
@dir_option
@_preset
@click.option("--presets", "list_presets", is_flag=True, help="List the presets.")
@click.option("--check", is_flag=True, help="Check the file and write nothing.")
@click.option("--force", is_flag=True, help="Replace the file; the old one is kept as endpoint.yaml.old.")
@json_option
def configure(
    name: str | None, folder: str | None, preset: str | None, list_presets: bool, check: bool, force: bool, json_: bool
) -> None:
    """Write a commented endpoint.yaml, or check it.

    Without --preset it is for the batch scheduler whose commands are on this machine, or else for
    workers on this machine. Values that only you know have the placeholder CHANGE-ME.

    \b
    Example:
      oncue endpoint configure polaris --preset polaris
      oncue endpoint configure polaris --check
    """
    from oncue.endpoint.options.presets import PRESETS

    if list_presets:
        rows = [{"preset": name, "for": what} for name, what in PRESETS.items()]
        as_json(rows) if json_ else table(("PRESET", "FOR"), list(PRESETS.items()), "")
        return
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    place = folder_of(folder, name)
    if check:
        _check(place, name, json_)
        return
    chosen, path, lines = write_options(place, name, preset, force)
    if json_:
        as_json({"name": name, "file": str(path), "preset": chosen, "to_complete": lines})
        return
    tell_written(name, chosen, path, lines, "" if preset else " (found on this machine)")


def write_options(place: Path, name: str, preset: str | None, force: bool) -> tuple[str, Path, list[int]]:
    """Write the folder's `endpoint.yaml`.

    Return the preset, the path, and the numbers of the lines to complete. Raises Invalid, Conflict.
    """
    from oncue.disk.durable_files import replace_file
    from oncue.endpoint.options.file import NAME
    from oncue.endpoint.options.presets import detect, placeholders, preset_text

    path, chosen = place / NAME, preset or detect()
    text = preset_text(chosen, name)
    if path.exists():
        if not force:
            raise Conflict(f"{path} exists", remedy=f"check it: oncue endpoint configure {name} --check (or --force)")
        path.replace(path.with_name(f"{NAME}.old"))
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, text.encode())
    return chosen, path, placeholders(text)


def tell_written(name: str, preset: str, path: Path, lines: list[int], how: str = "") -> None:
    """Say what was written, and what comes next."""
    say(f"{path} is written, from the preset {preset}{how}")
    for number in lines:
        say(f"  complete line {number}: {path.read_text().splitlines()[number - 1].strip()}")
    say(f"  check it: oncue endpoint configure {name} --check")


def _check(place: Path, name: str, json_: bool) -> None:
    """Report the options in force. Raises EndpointFileError, NotFound, Invalid."""
    from oncue.endpoint.options.file import NAME, load_options
    from oncue.endpoint.options.providers import ParslOptions, kind_of
    from oncue.endpoint.providers.parsl_check import parsl_faults

    path = place / NAME
    if not path.exists():
        raise NotFound(f"{path} does not exist", remedy=f"write one: oncue endpoint configure {name}")
    options = load_options(place)
    kind = kind_of(options.provider)
    if isinstance(options.provider, ParslOptions) and (faults := parsl_faults(options.provider)):
        raise Invalid(f"{path}: provider: {'; '.join(faults)}", remedy="correct `provider:` there, and check again")
    missing = [command for command in NEEDED.get(kind, ()) if shutil.which(command) is None]
    if json_:
        as_json({"name": name, "file": str(path), "options": options, "missing_commands": missing})
        return
    say(f"{path} is valid")
    shown = [("provider", ", ".join(filter(None, (kind, _line(options.provider)))))]
    if kind != "local":
        shown += [(name, _line(getattr(options, name)) or "defaults") for name in ("blocks", "limits", "network")]
    facts([*shown, ("workers", _line(options.workers) or "one per core")])
    if missing:
        say(f"  not on this machine's PATH: {', '.join(missing)}; is the scheduler's module loaded?", err=True)


def _stated(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, in the words of the file."""
    from oncue.quantities import quantity_text

    found = {f.encode_name: (f, getattr(options, f.name)) for f in msgspec.structs.fields(options)}
    return {
        name: msgspec.to_builtins(quantity_text(value, f.type))
        for name, (f, value) in found.items()
        if value != f.default
    }


def _line(options: Any) -> str:
    """Return the options that differ from their defaults, on one line."""
    return ", ".join(f"{k}: {v if isinstance(v, str | int) else plain(v)}" for k, v in _stated(options).items())


@click.command()
@click.argument("name")
@dir_option
@_preset
@registration_options
@json_option
def init(name: str, folder: str | None, preset: str | None, json_: bool, **given: Any) -> None:
    """Register an endpoint and write its endpoint.yaml.

    This is `register` and `configure` in one. A file that exists stays as it is.

    \b
    Example:
      oncue endpoint init perlmutter --preset perlmutter
    """
    from oncue.endpoint.options.file import NAME

    place = folder_of(folder, name)
    registered, bridge, _ = register_here(place, name, Registration(**given))
    existed = (place / NAME).exists()
    chosen, path, lines = ("", place / NAME, []) if existed else write_options(place, name, preset, False)
    if json_:
        written = {"file": str(path), "preset": chosen, "to_complete": lines}
        as_json({"id": registered.id, "name": registered.name, "dir": str(place), "bridge": bridge} | written)
        return
    say(f"{registered.name} is registered ({registered.id}); its agent will connect to {bridge}")
    if existed:
        say(f"{path} stays as it is; check it: oncue endpoint configure {name} --check")
    else:
        tell_written(name, chosen, path, lines)
    say(f"  then: oncue endpoint start {name} --detach")
