"""Deploys that are refused: arguments that do not fit, names of another file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from oncue.functions import pack_file
from oncue.protocol.api import FunctionRequest
from tests.e2e.running import System, system_in

RULES = """
rules:
  - name: NAME
    on: {type: NAME}
    run: {function: FUNCTION, endpoint: local, args: ARGS}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system without an agent; no test here needs a worker."""
    with system_in(tmp_path_factory.mktemp("deploys"), "--no-endpoint") as found:
        found.oncue("endpoint", "register", "local")
        found.write("tomo.py", "def reconstruct(path, size=0):\n    return path\n")
        yield found


def rules(system: System, name: str, function: str, args: str) -> Path:
    text = RULES.replace("NAME", name).replace("FUNCTION", function).replace("ARGS", args)
    return system.write(f"{name}.yaml", text)


def deployed(system: System, label: str) -> int:
    """Return the deployed version; 0 if there is none."""
    answer = system.http("GET", f"/v1/deployments/{label}")
    return int(answer.json[0]["version"]) if answer.status == 200 else 0


# ---------------------------------------------------------------- arguments


def test_wrong_arguments_are_refused_by_every_command_that_reads_the_file(system: System) -> None:
    rules(system, "misfit", "tomo.py:reconstruct", "{pth: 1}")
    for words in (["rules", "test"], ["deploy", "--dry-run"], ["deploy", "--yes"]):
        output = system.oncue(*words, "misfit.yaml", code=2).stderr
        assert "misfit.yaml:5:66: args: reconstruct() has no parameter 'pth'" in output
        assert "did you mean 'path'?" in output.partition("→")[2]
    assert deployed(system, "misfit") == 0
    assert system.json("functions", "list") == []  # nothing was sent
    rules(system, "misfit", "tomo.py:reconstruct", '{path: "${data.path}"}')
    system.oncue("rules", "test", "misfit.yaml")
    system.oncue("deploy", "misfit.yaml", "--yes")
    assert deployed(system, "misfit") == 1


def test_the_server_checks_arguments_of_functions_sent_and_named(system: System) -> None:
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
    system.oncue("rules", "test", "named.yaml")  # offline the parameters of `measure` are unknown
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


def test_a_function_without_recorded_parameters_is_not_checked(system: System) -> None:
    """Clients that do not inspect the signature register such functions."""
    packed = pack_file(system.write("old.py", "def ancient(path):\n    return path\n"), "ancient")
    with system.client() as client:
        client.functions.register(FunctionRequest(name="ancient", body=packed.body))
    assert system.http("GET", "/v1/functions/ancient").json["parameters"] is None
    rules(system, "ancients", "ancient", "{pth: 1}")
    system.oncue("deploy", "ancients.yaml", "--yes")
    assert deployed(system, "ancients") == 1


def test_decorated_functions_and_functions_with_variable_arguments(system: System) -> None:
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


def test_a_name_that_is_no_function_is_reported_offline(system: System) -> None:
    system.write("odd.py", "x = 5\ndef steps(path):\n    yield path\ndef size(path): pass\n")
    for function, why in (("x", "5 is a int, not something that can be called"), ("steps", "a generator function")):
        rules(system, "odd", f"odd.py:{function}", "{path: 1}")
        for words in (["rules", "test"], ["deploy", "--yes"]):
            output = system.oncue(*words, "odd.yaml", code=2).stderr
            assert "odd.yaml:5:21: odd.py:" in output
            assert why in output
            assert "no tests" not in output
    rules(system, "odd", "odd.py:size", "{path: 1}")
    assert "no tests in these files" in system.oncue("rules", "test", "odd.yaml").stderr


def test_a_file_that_cannot_be_imported_here(system: System) -> None:
    """`rules test` reports the failed import and goes on; deploy needs the import."""
    system.write("heavy.py", "import nowhere_to_be_found\ndef solve(path): pass\n")
    rules(system, "heavies", "heavy.py:solve", "{path: 1}")
    assert "its source was parsed instead" in system.oncue("rules", "test", "heavies.yaml").stderr
    rules(system, "heavies", "heavy.py:solve", "{pth: 1}")
    assert "has no parameter 'pth'" in system.oncue("rules", "test", "heavies.yaml", code=2).stderr
    output = system.oncue("deploy", "heavies.yaml", "--yes", code=2).stderr
    assert "heavies.yaml:5:21: heavy.py:solve: " in output
    assert "nowhere_to_be_found" in output


def test_missing_names_in_a_rule_are_reported_with_their_position(system: System) -> None:
    rules(system, "absent", "nobodys", "{path: 1}")
    assert "absent.yaml:5:21: the function 'nobodys' is not registered" in (
        system.oncue("deploy", "absent.yaml", "--yes", code=2).stderr
    )
    path = rules(system, "absent", "nobodys", "{path: 1}")
    text = path.read_text().replace("endpoint: local", "endpoint: mars")
    answer = system.http("POST", "/v1/rules", {"files": [{"label": "absent", "text": text, "path": "a.yaml"}]})
    assert (answer.status, answer.json["code"]) == (422, "rule-file")
    problems = answer.json["details"]["problems"]
    assert [(p["line"], p["column"]) for p in problems] == [(5, 21), (5, 40)]
    assert "there is no endpoint 'mars'" in problems[1]["message"]
    rules(system, "absent", "tomo.py:nothing_of_this_name", "{path: 1}")
    assert "absent.yaml:5:21: tomo.py:nothing_of_this_name: " in (
        system.oncue("deploy", "absent.yaml", "--yes", code=2).stderr
    )
    rules(system, "absent", "missing_file.py:f", "{path: 1}")
    assert "absent.yaml:5:21: missing_file.py:f: " in system.oncue("deploy", "absent.yaml", "--yes", code=2).stderr
    assert deployed(system, "absent") == 0


# ---------------------------------------------------------------- another file of the same name


def in_folder(system: System, folder: str, label: str, rule: str) -> Path:
    """Write a rule file of this name and its function into a folder."""
    system.write(f"{folder}/tomo.py", "def reconstruct(path, size=0):\n    return path\n")
    text = RULES.replace("NAME", rule).replace("FUNCTION", "tomo.py:reconstruct").replace("ARGS", "{path: 1}")
    return system.write(f"{folder}/{label}.yaml", text)


def rule_names(system: System) -> set[str]:
    return {rule["name"] for rule in system.http("GET", "/v1/rules").json}


def answered(system: System, answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command at a pseudo-terminal and answer its questions."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        return subprocess.run(
            [sys.executable, "-m", "oncue", *words],
            cwd=system.folder,
            env=system.env,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_from_another_folder_replaces_a_label_only_after_a_question(system: System) -> None:
    ours, theirs = in_folder(system, "a", "scans", "ours"), in_folder(system, "b", "scans", "theirs")
    system.oncue("deploy", str(ours), "--yes")
    warning = (
        f"ANOTHER FILE has this name: {os.uname().nodename}:{ours} is deployed, this is {os.uname().nodename}:{theirs}"
    )
    planned = system.oncue("deploy", str(theirs), "--dry-run").stdout
    assert warning in planned
    assert "removed: ours" in planned
    (plan,) = system.json("deploy", str(theirs), "--dry-run")
    assert plan["replaces"] == f"{os.uname().nodename}:{ours}"
    for words, code in ((["--yes"], 1), ([], 2)):  # nobody there to ask
        refused = system.oncue("deploy", str(theirs), *words, code=code)
        assert warning in refused.stdout
        assert "--replace" in refused.stderr.partition("→")[2]
    assert "--label NAME" in system.oncue("deploy", str(theirs), "--yes", code=1).stderr.partition("→")[2]
    assert "ours" in rule_names(system)
    assert deployed(system, "scans") == 1
    # The remedies: beside it, or in its place.
    system.oncue("deploy", str(theirs), "--yes", "--label", "scans-b")
    assert {"ours", "theirs"} <= rule_names(system)
    system.oncue("rules", "remove", "scans-b", "--yes")
    assert "scans@2 is in force" in system.oncue("deploy", str(theirs), "--yes", "--replace").stdout
    assert "theirs" in rule_names(system)
    assert "ours" not in rule_names(system)
    history = system.json("rules", "history", "scans")
    assert [(d["path"], d["host"]) for d in history] == [(str(p), os.uname().nodename) for p in (theirs, ours)]
    assert str(ours) in system.oncue("rules", "history", "scans").stdout
    # From the same place: as ever, without a word.
    in_folder(system, "b", "scans", "renamed")
    output = system.oncue("deploy", str(theirs), "--yes").stdout
    assert "ANOTHER FILE" not in output
    assert "scans@3 is in force" in output
    assert "no change" in system.oncue("deploy", "b/scans.yaml", "--yes").stdout
    # A name that is out of force is free.
    system.oncue("rules", "remove", "scans", "--yes")
    assert "ANOTHER FILE" not in system.oncue("deploy", str(ours), "--yes").stdout
    system.oncue("rules", "remove", "scans", "--yes")


def test_a_user_at_a_terminal_is_asked(system: System) -> None:
    ours, theirs = in_folder(system, "c", "asked", "asked-c"), in_folder(system, "d", "asked", "asked-d")
    system.oncue("deploy", str(ours), "--yes")
    no = answered(system, "n\n", "deploy", str(theirs))
    assert (no.returncode, deployed(system, "asked")) == (130, 1)
    assert "Replace the other file?" in no.stderr
    refused = answered(system, "y\n", "deploy", str(theirs), "--yes")  # --yes answers no question of this kind
    assert (refused.returncode, deployed(system, "asked")) == (1, 1)
    yes = answered(system, "y\n", "deploy", str(theirs))
    assert yes.returncode == 0, yes.stderr
    assert "asked@2 is in force" in yes.stdout
    assert "Deploy this?" in answered(system, "n\n", "deploy", str(ours), "--replace").stderr


def test_the_server_compares_hosts_and_paths(system: System) -> None:
    text = RULES.replace("NAME", "hosts").replace("FUNCTION", "hosts_f").replace("ARGS", "{path: 1}")
    system.write("hosts.py", "def hosts_f(path): pass\n")
    system.oncue("functions", "register", "hosts.py:hosts_f")

    def post(path: str, host: str, note: str = "", **more: Any) -> Any:
        file = {"label": "hosts", "text": text + f"# {note}\n", "path": path, "host": host}
        return system.http("POST", "/v1/rules", {"files": [file], **more})

    assert post("/x/hosts.yaml", "").json[0]["version"] == 1  # as programs that send no host
    assert post("/x/hosts.yaml", "beamline", "two").json[0]["replaces"] == ""
    for path, host in (("/x/hosts.yaml", "laptop"), ("/y/hosts.yaml", "beamline"), ("", ""), ("/y/hosts.yaml", "")):
        refused = post(path, host)
        assert (refused.status, refused.json["code"]) == (409, "conflict"), (path, host)
        assert refused.json["details"] == {"label": "hosts", "replaces": "beamline:/x/hosts.yaml"}
        assert "--label" in refused.json["remedy"]
        assert post(path, host, dry_run=True).json[0]["replaces"] == "beamline:/x/hosts.yaml"
    assert post("/x/hosts.yaml", "", "three").json[0]["version"] == 3
    moved = post("/z/hosts.yaml", "laptop", "three", replace=True).json[0]
    assert (moved["version"], moved["changed"], moved["replaces"]) == (4, True, "/x/hosts.yaml")
    # A version that is rolled back to brings its place with it.
    system.oncue("rules", "rollback", "hosts", "2", "--yes")
    assert post("/z/hosts.yaml", "laptop", dry_run=True).json[0]["replaces"] == "beamline:/x/hosts.yaml"


def test_one_of_two_concurrent_deploys_gets_a_conflict(system: System) -> None:
    system.write("once.py", "def once_f(): pass\n")
    system.oncue("functions", "register", "once.py:once_f")
    with ThreadPoolExecutor(2) as pool:
        for n in range(6):

            def post(folder: str, label: str = f"once{n}") -> int:
                text = RULES.replace("NAME", f"{folder}-{label}").replace("FUNCTION", "once_f").replace("ARGS", "{}")
                file = {"label": label, "text": text, "path": f"/{folder}/{label}.yaml", "host": "h"}
                return system.http("POST", "/v1/rules", {"files": [file]}).status

            assert sorted(pool.map(post, ("a", "b"))) == [200, 409]
            assert deployed(system, f"once{n}") == 1


def test_probable_mistakes_are_warned_of_and_impossible_ones_refused(system: System) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "scan.done", "data": {}}
    answer = system.http("POST", "/v1/events", event, {"Content-Type": "application/cloudevents+json"})
    assert answer.status == 202
    text = """
triggers:
  - {name: odd-frames, kind: file, path: incoming}
rules:
  - name: odd
    on: odd-frames
    match: {data.pth: {suffix: .h5}}
    run: {function: tomo.py:reconstruct, args: {path: "${data.pth}"}}
  - name: misspelt
    on: {type: oncue.task.faild}
    run: {function: tomo.py:reconstruct, args: {path: a}}
  - name: alike
    on: {type: scan.dnoe}
    run: {function: tomo.py:reconstruct, args: {path: a}}
"""
    (system.folder / "incoming").mkdir()
    system.write("odd.yaml", text)
    told = system.oncue("rules", "test", "odd.yaml").stderr
    assert "odd.yaml:7:13: warning: odd: events of the trigger odd-frames have no data.pth" in told
    assert "odd.yaml:10:16: warning: misspelt: no trigger makes events of the type 'oncue.task.faild'" in told
    planned = system.json("deploy", "odd.yaml", "--dry-run")
    (only,) = planned
    assert [(w["rule"], w["line"]) for w in only["warnings"]] == [
        ("odd", 7),
        ("odd", 8),
        ("misspelt", 10),
        ("alike", 13),
    ]
    assert only["warnings"][3]["remedy"] == "did you mean 'scan.done'?"
    done = system.oncue("deploy", "odd.yaml", "--yes")
    assert "odd.yaml:13:16: warning: alike:" in done.stderr
    assert "odd@1 is in force" in done.stdout

    system.write("odd.yaml", text.replace("{suffix: .h5}", ".nan"))
    refused = system.oncue("deploy", "odd.yaml", "--yes", code=2).stderr
    assert "odd.yaml:7:23: data.pth: no event has the value nan" in refused
    assert system.oncue("rules", "remove", "odd", "--yes").returncode == 0
