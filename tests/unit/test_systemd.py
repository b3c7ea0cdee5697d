"""Check the units of systemd/: their syntax, commands and settings."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from oncue.cli.root import root
from oncue.config import load_settings
from tests.services import missing

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted(FOLDER.rglob("*.service"))
SPECIFIERS = {"%i": "site", "%S": "/var/lib", "%E": "/etc", "%d": "/run/credentials/x", "%h": "/home/somebody"}


def plain(text: str) -> str:
    for short, value in SPECIFIERS.items():
        text = text.replace(short, value)
    assert "%" not in text, text
    return text


def lines(unit: Path, key: str) -> list[str]:
    return [plain(value) for value in re.findall(rf"^{key}=(.+)$", unit.read_text(), re.MULTILINE)]


def commands(unit: Path) -> list[list[str]]:
    """Return the `oncue ...` commands of a unit, also those inside `sh -c`."""
    found = []
    for text in [*lines(unit, "ExecStart"), *lines(unit, "ExecStartPre")]:
        words = shlex.split(text)
        if words[0] == "/bin/sh":
            words = shlex.split(words[-1].replace("$$", "$"))
        at = next(n for n, word in enumerate(words) if word == "oncue" or word.endswith("/oncue"))
        found.append(words[at + 1 :])
    return found


def understood(words: list[str]) -> None:
    """Parse a command with click, without running it. Raises click.UsageError."""
    command: click.Command = root
    context = click.Context(root, info_name="oncue")
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(FOLDER)))
def test_the_commands_are_ones_that_oncue_has(unit: Path) -> None:
    found = commands(unit)
    assert found
    for words in found:
        understood(words)
    with pytest.raises(click.UsageError):
        understood([*found[0], "--no-such-option"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(FOLDER)))
def test_the_settings_are_ones_that_oncue_has(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("")
    given = dict(pair.split("=", 1) for pair in [*lines(unit, "Environment"), *lines(unit, "# *Environment")])
    ours = {name: value for name, value in given.items() if name.startswith("ONCUE_")}
    if "ONCUE_CONFIG" in ours:
        ours["ONCUE_CONFIG"] = str(tmp_path / "site.toml")
    load_settings(environ=ours)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(FOLDER)))
def test_it_ends_in_order_and_starts_again(unit: Path) -> None:
    text = unit.read_text()
    assert "\nRestart=always\n" in text
    codes = lines(unit, "RestartPreventExitStatus")[0].split()
    assert "2" in codes, "wrong settings are not mended by a start"
    assert ("5" in codes) == ("endpoint" in unit.name), "nor is an agent that the server refuses"
    (stop,) = lines(unit, "TimeoutStopSec")
    assert int(stop) >= 30, "longer than a server or an agent takes at most"
    assert "\nKillMode=mixed\n" in text, "the agent ends its workers itself"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(FOLDER)))
def test_systemd_takes_it(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze: make services")
    here = tmp_path / unit.name.replace("@", "@site")
    program = Path(sys.executable).parent / "oncue"
    here.write_text(unit.read_text().replace("/opt/oncue/bin/oncue", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
