"""Directories of rule files, deployed with values under an owner's label, and pruned."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import System

pytestmark = pytest.mark.embedded
_number = itertools.count()
FUNCTION = "def weigh(n, factor):\n    return n * factor\n"
RULE = """
triggers:
  - {{name: {name}-hook, kind: webhook, verify: none}}
rules:
  - name: {name}
    on: {name}-hook
    run: {{function: weigh.py:weigh, endpoint: "${{var:site.endpoint}}", args: {{n: "${{data.n}}", factor: "${{var:factor}}"}}}}
    tests: [{{event: {{data: {{n: 2}}}}, expect: {{fires: true, args: {{n: 2, factor: 3}}}}}}]
"""


@pytest.fixture
def owner(shared: System) -> str:
    """Write a directory of two rule files and one of values; return its name."""
    name = f"dir{next(_number)}"
    for file in ("one", "sub/two"):
        rule = f"{name}-{file.rpartition('/')[2]}"
        shared.write(f"{name}/{file}.yaml", RULE.format(name=rule))
        shared.write(f"{name}/{file.rpartition('/')[0]}/weigh.py", FUNCTION)
    shared.write(f"{name}/prod.yaml", "site: {endpoint: local}\nfactor: 4\n")
    return name


def deploy(system: System, owner: str, *words: str, code: int = 0) -> Any:
    values = ("--env", f"{owner}/prod.yaml", "--set", "factor:=3")
    return system.oncue("deploy", owner, "--label", owner, *values, *words, code=code)


def labels(system: System, owner: str) -> set[str]:
    return {r["label"] for r in system.json("rules", "list") if r["name"].startswith(owner)}


def test_a_directory_is_deployed_with_values_and_pruned(shared: System, owner: str) -> None:
    deploy(shared, owner, "--yes")
    assert labels(shared, owner) == {f"{owner}/one", f"{owner}/sub/two"}
    for rule in ("one", "two"):
        answer = shared.http("POST", f"/hooks/{owner}-{rule}-hook", {"n": 5}, {"webhook-id": rule}, token=None)
        assert answer.status == 202
        (task,) = shared.await_tasks(1, rule=f"{owner}-{rule}")
        assert shared.http("GET", f"/v1/tasks/{task['id']}").json["value"] == 15
    assert "no change" in deploy(shared, owner, "--dry-run", "--prune").stdout

    # The rule moves to another file: the former one goes in the same step.
    (shared.folder / owner / "sub/two.yaml").rename(shared.folder / owner / "three.yaml")
    clash = deploy(shared, owner, "--yes", code=2)
    assert "is in" in clash.stderr
    planned = deploy(shared, owner, "--prune", "--dry-run")
    assert f"{owner}/sub/two: removed as a whole" in planned.stdout
    assert labels(shared, owner) == {f"{owner}/one", f"{owner}/sub/two"}

    done = deploy(shared, owner, "--prune", "--yes", "--note", "moved")

    assert f"{owner}/sub/two@2 is removed" in done.stdout
    assert labels(shared, owner) == {f"{owner}/one", f"{owner}/three"}
    history = shared.json("rules", "history", f"{owner}/sub/two")
    assert [(d["version"], d["removed"], d["note"]) for d in history] == [(2, True, "moved"), (1, False, "")]
    assert "no change" in deploy(shared, owner, "--dry-run", "--prune").stdout


def test_prune_removes_only_what_the_label_owns(shared: System, owner: str) -> None:
    deploy(shared, owner, "--yes")
    shared.write("beside/other.yaml", RULE.format(name=f"{owner}-other"))
    shared.write("beside/weigh.py", FUNCTION)
    values = ("--set", "site.endpoint=local", "--set", "factor:=3", "--yes")
    shared.oncue("deploy", "beside/other.yaml", "--label", f"{owner}-other", *values)
    shared.write("beside/alone.yaml", "rules: []\ntriggers: []\n")
    shared.oncue("deploy", "beside/alone.yaml", "--label", owner, "--yes")
    (shared.folder / owner / "one.yaml").unlink()

    deploy(shared, owner, "--prune", "--yes")

    assert labels(shared, owner) == {f"{owner}-other", f"{owner}/sub/two"}
    assert shared.json("rules", "history", owner)[0]["removed"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prune",), "no owner is named"),
        (("--set", "site.endpoint=local"), "the variable factor has no value"),
        (("--env", "{owner}/prod.yaml", "--set", "faktor=3"), "did you mean 'factor'?"),
    ],
)
def test_a_deploy_that_lacks_something_changes_nothing(
    shared: System, owner: str, words: tuple[str, ...], message: str
) -> None:
    done = shared.oncue("deploy", owner, "--yes", *(word.format(owner=owner) for word in words), code=2)
    assert message in done.stderr
    assert labels(shared, owner) == set()


def test_exported_files_deploy_to_the_same(shared: System, owner: str) -> None:
    deploy(shared, owner, "--yes")
    written = shared.json("rules", "export", f"{owner}-out", "--label", owner)
    assert [w["file"] for w in written] == [f"{owner}-out/one.yaml", f"{owner}-out/sub/two.yaml"]
    before = {name: shared.json("rules", "history", f"{owner}/{name}")[0] for name in ("one", "sub/two")}

    again = ("--label", owner, "--replace", "--prune", "--yes")
    shared.oncue("deploy", f"{owner}-out", *again)

    for name, old in before.items():
        new = shared.json("rules", "history", f"{owner}/{name}")[0]
        assert (new["text"], new["functions"]) == (old["text"], old["functions"])
        assert (new["version"], new["removed"]) == (2, False)
    assert "no change" in shared.oncue("deploy", f"{owner}-out", *again[:-1], "--dry-run").stdout
    # A Python file beside the rules wins over the lock.
    shared.write(f"{owner}-out/weigh.py", FUNCTION.replace("*", "+"))
    shared.write(f"{owner}-out/sub/weigh.py", FUNCTION.replace("*", "+"))
    assert "function weigh.py:weigh" in shared.oncue("deploy", f"{owner}-out", *again[:-1], "--dry-run").stdout
    shared.write(f"{owner}-out/one.yaml", "rules: []\n")
    assert "has another text" in shared.oncue("rules", "export", f"{owner}-out", "--label", owner, code=1).stderr


def test_tests_and_differences_take_values_too(shared: System, owner: str) -> None:
    values = ("--env", f"{owner}/prod.yaml", "--set", "factor:=3")
    assert "2 of 2 tests passed" in shared.oncue("rules", "test", owner, *values).stderr
    deploy(shared, owner, "--yes")
    one = str(Path(owner) / "one.yaml")
    shared.oncue("rules", "diff", one, "--label", f"{owner}/one", *values)
    shared.oncue("rules", "diff", one, "--label", f"{owner}/one", *values[:-1], "factor:=9", code=1)


PYTHON = """
import oncue

@oncue.rule(on=oncue.webhook(verify="none", name="{0}-hook"), name="{0}", args={{"n": "${{data.n}}"}},
            endpoint="${{var:where}}")
def weigh(n):
    return n * 2

@oncue.rule(on=oncue.done("{0}"), name="{0}-tell", args={{"value": "${{data.value}}"}})
def tell(value):
    return f"it weighs {{value}}"
"""


def test_rules_in_python_are_deployed_and_run(shared: System) -> None:
    name = f"dir{next(_number)}"
    shared.write(f"{name}/tomo.py", PYTHON.format(name))
    wrong = shared.oncue("deploy", name, "--label", name, "--set", "where=nowhere", "--yes", code=2)
    assert f"{name}/tomo.py:4:1:" in wrong.stderr

    words = ("--label", name, "--set", "where=local", "--prune")
    shared.oncue("deploy", name, *words, "--yes")

    assert labels(shared, name) == {f"{name}/tomo"}
    assert shared.http("POST", f"/hooks/{name}-hook", {"n": 4}, {"webhook-id": "1"}, token=None).status == 202
    (task,) = shared.await_tasks(1, rule=f"{name}-tell")
    assert shared.http("GET", f"/v1/tasks/{task['id']}").json["value"] == "it weighs 8"
    assert "no change" in shared.oncue("deploy", name, *words, "--dry-run").stdout
