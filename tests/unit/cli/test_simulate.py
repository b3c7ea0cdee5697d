"""`oncue rules simulate` sends the text that a deploy of the file would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from oncue.cli.commands.reporting import simulate
from oncue.errors import Invalid, RuleFileError
from oncue.protocol.api import SimulateRequest, SimulationPage

PYTHON = """import oncue

@oncue.rule(on={"type": "scan"}, endpoint="${var:site}")
def tomo():
    pass
"""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[SimulateRequest]:
    """Return the requests of a command whose server has no events."""
    found: list[SimulateRequest] = []

    def answer(label: str, request: SimulateRequest) -> SimulationPage:
        found.append(request)
        return SimulationPage()

    @contextlib.contextmanager
    def connected() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(rules=SimpleNamespace(simulate=answer))

    monkeypatch.setattr(simulate, "connected", connected)
    return found


def run(*words: str) -> None:
    CliRunner().invoke(simulate.simulate, [*words, "--json"], catch_exceptions=False)


def test_rules_in_python_are_simulated(tmp_path: Path, sent: list[SimulateRequest]) -> None:
    (tmp_path / "tomo.py").write_text(PYTHON)

    run(str(tmp_path / "tomo.py"), "--set", "site=polaris")

    assert '"endpoint": "polaris"' in sent[0].text
    assert "def tomo" not in sent[0].text


def test_a_variable_without_a_value_and_a_value_without_a_variable_are_errors(
    tmp_path: Path, sent: list[SimulateRequest]
) -> None:
    file = tmp_path / "tomo.py"
    file.write_text(PYTHON)

    with pytest.raises(RuleFileError, match="the variable site has no value"):
        run(str(file))
    with pytest.raises(Invalid, match="no file uses the variable 'cite'"):
        run(str(file), "--set", "site=a", "--set", "cite=b")

    assert sent == []
