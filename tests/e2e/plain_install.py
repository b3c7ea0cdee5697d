"""An environment as `pip install oncue` without extras makes it.

Only the required packages are linked, from the environment of the tests. No network is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

import oncue


class PlainInstall:
    """A virtual environment with few packages.

    `left_out`: required distributions that are missing. `extras`: extras of oncue that are
    installed.
    """

    def __init__(self, folder: Path, extras: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "venv" / "lib" / version / "site-packages"
        (site / "oncue").symlink_to(Path(oncue.__file__).parent)
        for found in closure("oncue", extras):
            if found.name not in left_out:
                link(found, site)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ONCUE_", "PYTHON"))}
        self.env["ONCUE_DATA"] = str(folder / "data")

    def oncue(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-m", "oncue", *words],
            cwd=self.folder,
            env=self.env | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def closure(name: str, extras: tuple[str, ...]) -> list[Distribution]:
    """Return the distribution and everything that it requires."""
    found: dict[str, Distribution] = {}
    todo = [(name, extras)]
    while todo:
        name, extras = todo.pop()
        known = distribution(name)
        found[known.name] = known
        for text in known.requires or ():
            needed = Requirement(text)
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *extras))
            if wanted and needed.name not in found:
                todo.append((needed.name, tuple(needed.extras)))
    return list(found.values())


def link(found: Distribution, site: Path) -> None:
    """Link a distribution's top-level files, folders and metadata.

    Folders that several distributions share (`ruamel`) are linked whole.
    """
    homes = {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        for home in homes:
            if (home / top).exists() and not (site / top).exists() and not top.startswith("__editable__"):
                (site / top).symlink_to(home / top)
