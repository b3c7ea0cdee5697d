"""Run other systems on the same no-op work (`python -m bench --peers`).

They run in a venv of their own in the user's cache folder. A peer that does not install within a
minute, or does not run, is skipped, and the report states the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

INSTALL_S = 60.0
RUN_S = 180.0
PACKAGES = {
    "Parsl HTEX": ["parsl", "numpy"],
    "Dask distributed": ["distributed", "numpy"],
    "Ray": ["ray", "numpy"],
    "Celery on Redis": ["celery[redis]"],
}


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "oncue" / f"bench-peers-{sys.version_info[0]}.{sys.version_info[1]}"


def run(tasks: int = 10_000) -> dict[str, dict[str, Any]]:
    """Return name -> {version, tasks, tasks_per_s, p50_ms, large_s} or {skipped: reason}."""
    return {name: run_one(name, tasks) for name in PACKAGES}


def run_one(name: str, tasks: int) -> dict[str, Any]:
    """Return the figures of one system, or {skipped: reason}."""
    where = folder()
    python = where / "bin" / "python"
    if not python.exists():
        venv.create(where, with_pip=True)
    return _peer(python, name, PACKAGES[name], tasks)


def _peer(python: Path, name: str, packages: list[str], tasks: int) -> dict[str, Any]:
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    try:
        subprocess.run(install, timeout=INSTALL_S, check=True, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"skipped": f"it did not install within {INSTALL_S:g} s"}
    except subprocess.CalledProcessError as e:
        return {"skipped": f"it did not install: {_last(e.stderr)}"}
    root = Path(__file__).parent.parent
    # A session of its own, so that what a peer leaves behind can be ended by its group.
    process = subprocess.Popen(
        [str(python), "-m", "bench.peer_programs", name, str(tasks)],
        cwd=root,
        # Parsl starts its programs by name.
        env=os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        _end(process)
        process.communicate()
        return {"skipped": f"it did not end within {RUN_S:g} s"}
    finally:
        _end(process)
    if process.returncode:
        return {"skipped": f"it failed: {_last(err)}"}
    return dict(json.loads(out.strip().splitlines()[-1]))


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, 9)
    except (ProcessLookupError, PermissionError):
        return


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
