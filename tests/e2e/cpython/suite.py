"""Find CPython's tests, and a Python to run them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.services import missing
from tests.unit.functions.other_process import other_pythons

NAME = "test_concurrent_futures"
PACKAGES = ("msgspec", "cloudpickle", "pyzmq", "psutil", "click", "rich", "aiohttp")  # of an endpoint
REMEDY = (
    "`make services` installs them on Debian 12 (libpython3.11-testsuite); a Python built from source has its own; "
    "ONCUE_CPYTHON_TESTS names folders that have them (separated by colons)"
)


def copied(version: str, python: str, folder: Path) -> Path:
    """Copy the tests of that version to a folder of the user's. Skip the test without them."""
    stdlib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    given = os.environ.get("ONCUE_CPYTHON_TESTS", "").split(":")
    for place in (*filter(None, given), f"{stdlib}/test", f"/usr/lib/python{version}/test"):
        found = Path(place) / NAME
        if (found / "executor.py").is_file() and version != "3.11":
            shutil.copytree(found, folder / NAME, ignore=shutil.ignore_patterns("__pycache__"))
            return folder
        if found.with_suffix(".py").is_file() and version == "3.11":
            shutil.copy(found.with_suffix(".py"), folder)
            return folder
    missing(f"CPython's tests of {version} are not here. {REMEDY}")


def python_of(version: str, folder: Path) -> str:
    """Return a Python of that version that has an endpoint's packages; skip the test without one."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    for python in other_pythons():
        shown = subprocess.run([python, "-V"], capture_output=True, text=True, check=False).stdout
        if shown.startswith(f"Python {version}."):
            return _with_packages(python, folder)
    missing(f"there is no Python {version} here: put one on the PATH, or name it: ONCUE_TEST_PYTHONS")


def _with_packages(python: str, folder: Path) -> str:
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    made = str(folder / "bin" / "python")
    done = subprocess.run([made, "-m", "pip", "install", "-q", *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{python} cannot get {' '.join(PACKAGES)} by pip: {done.stderr.strip()[-200:]}")
    return made
