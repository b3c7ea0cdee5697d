"""Shell completion: the words that Tab offers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.e2e.running import System

SOURCE = "def complete_me(a):\n    return a\n"
RULES = """
triggers:
  - {name: completed-calls, kind: webhook, verify: none}
rules:
  - name: completed
    on: {type: nothing.of.this.type}
    run: {function: done.py:complete_me, endpoint: local, args: {a: 1}}
"""


def words(system: System, line: str) -> list[str]:
    """Return the words that bash gets with the cursor at the end of the line.

    "file" stands where file names are completed.
    """
    given = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(given) - 1), "_ONCUE_COMPLETE": "bash_complete"}
    done = system.oncue(env=asked)
    assert done.stderr == ""
    return [word if kind == "plain" else kind for kind, _, word in (t.partition(",") for t in done.stdout.split())]


@pytest.fixture(scope="module")
def known(shared: System) -> str:
    """Return the id of a task that has run."""
    shared.write("done.py", SOURCE)
    shared.write("completion.yaml", RULES)
    shared.oncue("deploy", "completion.yaml", "--yes")
    return str(shared.json("invoke", "done.py:complete_me", "--arg", "a:=1")["id"])


def test_names_from_the_server_are_completed(shared: System, known: str) -> None:
    assert words(shared, "oncue inv") == ["invoke"]
    assert "local" in words(shared, "oncue invoke f --endpoint lo")
    assert words(shared, "oncue invoke complete_") == ["complete_me", "file"]
    assert words(shared, "oncue functions show complete_") == ["complete_me"]
    assert words(shared, "oncue tasks list --function complete_") == ["complete_me"]
    assert words(shared, "oncue tasks list --state succ") == ["succeeded"]
    assert words(shared, f"oncue tasks show {known[:-1]}") == [known]
    assert known not in words(shared, f"oncue tasks cancel {known[:-1]}")  # it has ended
    assert words(shared, "oncue rules show complet") == ["completed"]
    assert words(shared, "oncue triggers show complet") == ["completed-calls"]
    assert words(shared, "oncue triggers backfill complet") == ["completed-calls"]
    assert words(shared, "oncue rules history complet") == ["completion"]
    assert words(shared, "oncue endpoints show loc") == ["local"]
    assert words(shared, "oncue endpoint status loc") == ["local"]
    assert words(shared, "oncue endpoint configure loc") == ["local"]
    assert words(shared, "oncue endpoint init new --preset per") == ["perlmutter"]
    (token,) = words(shared, "oncue tokens revoke tok_loc")
    assert token.startswith("tok_local")


@pytest.mark.parametrize(
    "line", ["oncue deploy ", "oncue rules test ", "oncue events emit --file ", "oncue functions register "]
)
def test_file_names_are_completed(shared: System, line: str) -> None:
    assert words(shared, line) == ["file"]


def test_without_a_server_nothing_is_printed(tmp_path: Path) -> None:
    nobody = System(tmp_path)
    assert words(nobody, "oncue tasks show ") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and never answers
        away = System(tmp_path, ONCUE_URL=f"http://127.0.0.1:{silent.getsockname()[1]}", ONCUE_TOKEN="t")
        assert words(away, "oncue tasks show ") == []
        assert words(away, "oncue invoke tomo") == ["file"]
