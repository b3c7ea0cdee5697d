"""The pinned packages are those that pyproject.toml wants, each with hashes, and from no registry in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "server.txt": ("server", "kafka", "demo"),
    "dev.txt": ("server", "kafka", "demo", "hpc", "history", "parquet", "dev"),
}
PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\\n]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def wanted(file: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for e in EXTRAS[file] for line in PROJECT["optional-dependencies"][e])]
    return [r for r in map(Requirement, lines) if r.name != "oncue"]


@pytest.mark.parametrize("file", EXTRAS)
def test_every_package_is_pinned_with_hashes(file: str) -> None:
    text = (ROOT / "requirements" / file).read_text()
    pins: dict[str, list[str]] = {}
    for name, version, _ in PIN.findall(text):
        pins.setdefault(canonicalize_name(name), []).append(version)

    assert not [line for line in text.splitlines() if not line.startswith(" ") and not re.match(r"\S+==\S+", line)]
    assert len(re.findall(r"(?m)^\S+==", text)) == sum(len(found) for found in pins.values()), "one without hashes"
    for r in wanted(file):
        found = pins.get(canonicalize_name(r.name), [])
        assert any(r.specifier.contains(v) for v in found), f"{r}: pinned is {found or 'nothing'}; run: make lock"


@pytest.mark.parametrize("file", EXTRAS)
def test_no_registry_is_named(file: str) -> None:
    text = (ROOT / "requirements" / file).read_text()

    assert not re.findall(r"(?m)https?://|^-", text)
