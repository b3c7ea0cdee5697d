"""What a deploy refuses, through the real server: arguments that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.functions import pack_file
from oncue.resources import FunctionRequest
from tests.e2e.running import System, system_in

RULES = """
rules:
  - name: NAME
    on: {type: NAME}
    run: {function: FUNCTION, endpoint: local, args: ARGS}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Nothing here needs a worker."""
    with system_in(tmp_path_factory.mktemp("deploys"), "--no-endpoint") as found:
        found.oncue("endpoint", "register", "local")
        found.write("tomo.py", "def reconstruct(path, size=0):\n    return path\n")
        yield found


def rules(system: System, name: str, function: str, args: str) -> Path:
    text = RULES.replace("NAME", name).replace("FUNCTION", function).replace("ARGS", args)
    return system.write(f"{name}.yaml", text)


def deployed(system: System, label: str) -> int:
    """Its version; 0: none."""
    answer = system.http("GET", f"/v1/deployments/{label}")
    return int(answer.json[0]["version"]) if answer.status == 200 else 0


# ---------------------------------------------------------------- arguments


def test_arguments_that_do_not_fit_are_refused_by_all_that_read_the_file(system: System) -> None:
    rules(system, "misfit", "tomo.py:reconstruct", "{pth: 1}")
    for words in (["rules", "test"], ["deploy", "--dry-run"], ["deploy", "--yes"]):
        said = system.oncue(*words, "misfit.yaml", code=2).stderr
        assert "misfit.yaml:5:66: args: reconstruct() has no parameter 'pth'" in said
        assert "did you mean 'path'?" in said.partition("→")[2]
    assert deployed(system, "misfit") == 0
    assert system.json("functions", "list") == []  # nothing was sent
    rules(system, "misfit", "tomo.py:reconstruct", '{path: "${data.path}"}')
    system.oncue("rules", "test", "misfit.yaml")
    system.oncue("deploy", "misfit.yaml", "--yes")
    assert deployed(system, "misfit") == 1


def test_the_server_checks_what_it_is_sent_and_functions_by_their_names(system: System) -> None:
    system.write("named.py", "def measure(path, *, unit):\n    return path\n")
    system.oncue("functions", "register", "named.py:measure")
    known = system.http("GET", "/v1/functions/measure").json["parameters"]
    assert known == [
        {"name": "path", "kind": "positional_or_keyword", "required": True},
        {"name": "unit", "kind": "keyword_only", "required": True},
    ]
    path = rules(system, "named", "measure", "{path: 1, unit: mm, size: 2}")
    answer = system.http(
        "POST", "/v1/rules", {"files": [{"label": "named", "text": path.read_text(), "path": "n.yaml"}]}
    )
    assert (answer.status, answer.json["code"]) == (422, "rule-file")
    assert answer.json["detail"] == "args: measure() has no parameter 'size'"
    assert (answer.json["details"]["line"], answer.json["details"]["column"]) == (5, 73)
    system.oncue("rules", "test", "named.yaml")  # offline nobody knows what `measure` is
    for args, words in (("{path: 1}", "needs 'unit'"), ("[1, 2]", "takes 1 argument by place")):
        rules(system, "named", "measure", args)
        assert words in system.oncue("deploy", "named.yaml", "--yes", code=2).stderr
    rules(system, "named", "measure", "{path: 1, unit: mm}")
    system.oncue("deploy", "named.yaml", "--yes")
    # A later version is checked when the rule is deployed with it.
    system.write("named.py", "def measure(path, *, unit, side):\n    return path\n")
    system.oncue("functions", "register", "named.py:measure")
    assert "needs 'side'" in system.oncue("deploy", "named.yaml", "--yes", code=2).stderr
    assert deployed(system, "named") == 1


def test_a_function_whose_parameters_nobody_told_is_not_checked(system: System) -> None:
    """As those that were registered by a client that did not look."""
    packed = pack_file(system.write("old.py", "def ancient(path):\n    return path\n"), "ancient")
    with system.client() as client:
        client.functions.register(FunctionRequest(name="ancient", body=packed.body))
    assert system.http("GET", "/v1/functions/ancient").json["parameters"] is None
    rules(system, "ancients", "ancient", "{pth: 1}")
    system.oncue("deploy", "ancients.yaml", "--yes")
    assert deployed(system, "ancients") == 1


def test_decorated_functions_and_functions_that_take_anything(system: System) -> None:
    system.write(
        "deco.py",
        "import functools\n"
        "def twice(f):\n"
        "    @functools.wraps(f)\n"
        "    def inner(*args, **kwargs):\n"
        "        f(*args, **kwargs)\n"
        "        return f(*args, **kwargs)\n"
        "    return inner\n"
        "def with_camera(f):\n"
        "    @functools.wraps(f)\n"
        "    def inner(*args, **kwargs):\n"
        "        return f('camera', *args, **kwargs)\n"
        "    return inner\n"
        "@twice\ndef doubled(path): pass\n"
        "@with_camera\ndef snapped(camera, path): pass\n"
        "def anything(*args, **kwargs): pass\n",
    )
    for function, args in (("doubled", "{path: 1}"), ("snapped", "{path: 1}"), ("anything", "{a: 1}")):
        rules(system, function, f"deco.py:{function}", args)
        system.oncue("rules", "test", f"{function}.yaml")
        system.oncue("deploy", f"{function}.yaml", "--yes")
    rules(system, "doubled", "deco.py:doubled", "{pth: 1}")
    assert "did you mean 'path'?" in system.oncue("deploy", "doubled.yaml", "--yes", code=2).stderr


def test_a_file_that_cannot_be_imported_here(system: System) -> None:
    """`rules test` reads it, and says so; what has to be shipped has to be imported."""
    system.write("heavy.py", "import nowhere_to_be_found\ndef solve(path): pass\n")
    rules(system, "heavies", "heavy.py:solve", "{path: 1}")
    assert "its text was read instead" in system.oncue("rules", "test", "heavies.yaml").stderr
    rules(system, "heavies", "heavy.py:solve", "{pth: 1}")
    assert "has no parameter 'pth'" in system.oncue("rules", "test", "heavies.yaml", code=2).stderr
    assert "nowhere_to_be_found" in system.oncue("deploy", "heavies.yaml", "--yes", code=2).stderr
