"""`make services` where it cannot install anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "services"


@pytest.mark.parametrize(("environ", "code"), [({}, 0), ({"CI": "false"}, 0), ({"CI": "true"}, 1)])
def test_what_cannot_be_installed_fails_in_ci_only(tmp_path: Path, environ: dict[str, str], code: int) -> None:
    nothing = {"PATH": str(tmp_path)}  # no dpkg, no apt-get
    done = subprocess.run(["/bin/sh", SCRIPT], env=nothing | environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert "install by hand: chromium" in done.stdout
