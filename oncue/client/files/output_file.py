"""OutputFile: a file that a task has left, fetched when it is needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from oncue.errors import BlobMissing, Invalid, NotFound
from oncue.protocol.run_options import TaskFile

Stream = Callable[[str], Iterator[bytes]]  # path of the API -> parts of its body
_MOST_READ = 1 << 30


class OutputFile:
    """A file that a task has left: an output, or its whole stdout or stderr.

    `name` is relative to the task's folder. `stream` is stdout, stderr, or "" for an output.
    """

    def __init__(self, file: TaskFile, stream: Stream) -> None:
        self.name, self.sha256, self.size_bytes, self.stream = file.name, file.sha256, file.size_bytes, file.stream
        self._parts = stream

    def __repr__(self) -> str:
        return f"<output file {self.name!r}, {self.size_bytes:,} bytes>"

    def read(self) -> bytes:
        """Return the content.

        Raises BlobMissing, Unreachable; Invalid if it is over 1 GiB.
        """
        if self.size_bytes > _MOST_READ:
            raise Invalid(f"{self.name} has {self.size_bytes:,} bytes", remedy="save it to a file: save(path)")
        return b"".join(self.parts())

    def text(self) -> str:
        """Return the content as text."""
        return self.read().decode("utf-8", "replace")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the content to a file; return its path. It appears there when it is whole.

        Raises BlobMissing, Unreachable, OSError.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                for piece in self.parts():
                    file.write(piece)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def parts(self) -> Iterator[bytes]:
        """Yield the content in parts.

        Raises BlobMissing if it is gone, or at the end if it was another one; Unreachable.
        """
        digest, size = hashlib.sha256(), 0
        try:
            for part in self._parts(f"/v1/blobs/{self.sha256}"):
                digest.update(part)
                size += len(part)
                yield part
        except NotFound as e:
            raise BlobMissing(f"{self.name} is not there any more: {e.message}", remedy="run the task again") from None
        if digest.hexdigest() != self.sha256:
            raise BlobMissing(
                f"{self.name} came with other bytes ({size:,} of {self.size_bytes:,})", remedy="fetch it again"
            )


def save_all(files: Iterable[OutputFile], folder: str | os.PathLike[str]) -> list[Path]:
    """Save files below a folder, by their names; return their paths.

    A stream whose name an output has is saved as NAME.stream. Raises Invalid for a name that leads
    out of the folder, and what OutputFile.save raises.
    """
    root = Path(folder)
    found = list(files)
    outputs = {f.name for f in found if not f.stream}
    targets = [_target(root, f"{f.name}.stream" if f.stream and f.name in outputs else f.name) for f in found]
    return [file.save(target) for file, target in zip(found, targets, strict=True)]


def _target(root: Path, name: str) -> Path:
    """Return the path of a file below `root`. An endpoint chose its name."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise Invalid(f"the endpoint sent a file named {name[:200]!r}", remedy="save it by itself: save(path)")
    target = root.joinpath(*parts)
    if not target.parent.resolve().is_relative_to(root.resolve()):  # a link leads out
        raise Invalid(f"{target} is outside of {root}", remedy="save it to an empty folder")
    return target
