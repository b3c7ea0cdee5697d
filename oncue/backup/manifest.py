"""The manifest of a backup.

It is written last, so that a killed backup leaves the former one.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec

from oncue.disk.durable_files import replace_file
from oncue.errors import Invalid, NotFound

NAME = "backup.json"
VERSION = 1


class FileEntry(msgspec.Struct, frozen=True):
    """A copied file."""

    sha256: str
    size: int


class LogEntry(msgspec.Struct, frozen=True):
    """The copied log; not there if the log is on Kafka."""

    identity: str
    ends: dict[str, int]  # "topic/partition" -> next offset


class Manifest(msgspec.Struct, frozen=True):
    """Content of a backup."""

    v: int
    at: float  # unix s, when it was begun
    oncue: str
    data: str  # folder that was copied
    files_folder: str
    files: dict[str, FileEntry]
    blobs: int
    blobs_bytes: int
    left_out: list[str]  # in words
    log: LogEntry | None = None


def check_apart(folder: Path, data: Path) -> None:
    """Raise Invalid if one of the two folders is in the other."""
    backup, live = folder.resolve(), data.resolve()
    if backup.is_relative_to(live) or live.is_relative_to(backup):
        raise Invalid(
            f"the backup's folder {folder} and the data folder {data} contain each other", remedy="name another"
        )


def load(folder: Path) -> Manifest | None:
    """Return the manifest; None if there is none. Raises Invalid."""
    path = folder / NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as e:
        raise Invalid(f"{path} cannot be read: {e}", remedy="make the backup again, in another folder") from None
    if found.v > VERSION:
        raise Invalid(f"{path} was written by a newer oncue ({found.oncue})", remedy="upgrade oncue on this machine")
    for place in (found.files_folder, *found.files):
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise Invalid(f"{path} names a file outside the backup: {place}", remedy="use another backup")
    return found


def need(folder: Path) -> Manifest:
    """Return the manifest. Raises NotFound, Invalid."""
    found = load(folder)
    if found is None:
        raise NotFound(f"there is no backup in {folder}", remedy="make one: oncue backup DIR")
    return found


def store(folder: Path, manifest: Manifest) -> None:
    replace_file(folder / NAME, msgspec.json.format(msgspec.json.encode(manifest)))
