"""Modules sent with a function."""

from __future__ import annotations

import sys
from pathlib import Path

from oncue.functions.siblings import activate, sibling_set


def test_installed_module_is_restored(tmp_path: Path) -> None:
    real = sys.modules["msgspec"]
    try:
        activate(sibling_set({"msgspec.py": b"X = 1\n"}))
        assert __import__("msgspec").X == 1
    finally:
        activate(sibling_set({}))
    assert sys.modules["msgspec"] is real
    assert __import__("msgspec") is real
