"""Describe the machine, without names of hosts, people or folders."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": _system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_1min": round(os.getloadavg()[0], 1),
        "commit": _commit(),
    }


def _system() -> str:
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        return f"{platform.system()} {platform.release()}"
    return found.get("PRETTY_NAME", platform.system())


def _commit() -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
