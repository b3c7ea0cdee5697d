"""`run: {shell: ...}` in rule files: references, options, and errors with their places."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.errors import RuleFileError
from oncue.functions import describe
from oncue.protocol.records import Event
from oncue.protocol.run_options import KEEP, SANDBOX, Resources, RunOptions
from oncue.rules.parsing.rule_file import parse
from oncue.rules.parsing.rule_run import RuleRun

EVENT = Event(id="1", source="s", type="t", data={"path": "/d/a b.tif", "n": 3})


def run_of(run: str, more: str = "") -> RuleRun:
    (rule,) = parse(f"rules:\n  - name: count\n    on: {{type: x}}\n{more}    run: {run}\n", "r.yaml").rules
    return rule.runs[0]


def test_a_script_gets_the_values_that_stand_in_it() -> None:
    found = run_of(
        '{shell: "wc -l ${data.path} > $HOME/${data.path | stem}.$${x}", endpoint: hpc, timeout: 5m,'
        ' env: {N: "${data.n + 1}", OMP_NUM_THREADS: 2}, cwd: "/out/${type}"}'
    )

    assert (found.function, found.endpoint, found.timeout_ms) == ("count.sh", "hpc", 300_000)
    assert found.args.render(EVENT) == {
        "data.path": "/d/a b.tif",
        "data.path | stem": "a b",
        "data.n + 1": 4,
        "type": "t",
    }
    assert found.shell is not None
    assert found.shell.env == {"N": "${data.n + 1}", "OMP_NUM_THREADS": "2"}


def test_scripts_of_a_rule_are_functions_named_after_it() -> None:
    rules = parse(
        "rules:\n  - name: r\n    on: {type: x}\n    run: [{shell: 'true'}, {function: f}, {shell: 'false'}]\n"
    )
    assert rules.functions == ["f"]
    assert {name: describe(p.body).source for name, p in rules.scripts.items()} == {"r.sh": "true", "r-3.sh": "false"}


@pytest.mark.parametrize("run", ["function: f", "shell: 'true'"])
def test_resources_sandbox_and_outputs_are_of_any_run(run: str) -> None:
    found = run_of(f"{{{run}, resources: {{cores: 4, memory: 8GB, walltime: 2h}}, sandbox: keep, outputs: ['*.h5']}}")
    assert found.options == RunOptions(Resources(4, 8_000_000_000, walltime_ms=7_200_000), KEEP, ("*.h5",))
    assert run_of(f"{{{run}, outputs: ['*.h5']}}").options == RunOptions(sandbox=SANDBOX, outputs=("*.h5",))
    assert run_of(f"{{{run}}}").options is None


@pytest.mark.parametrize("run", ["function: f", "shell: 'true'"])
def test_affinity_is_of_the_run_or_else_of_the_rule(run: str) -> None:
    rule = '    affinity: "${data.n} of ${type}"\n'
    assert run_of(f'{{{run}, affinity: "${{data.path | stem}}"}}', rule).affinity_key(EVENT) == "a b"
    assert run_of(f"{{{run}}}", rule).affinity_key(EVENT) == f"3 of {EVENT.type}"
    assert run_of(f"{{{run}, affinity: bench}}").affinity_key(EVENT) == "bench"
    assert run_of(f"{{{run}}}").affinity_key(EVENT) == ""


def test_affinity_of_a_stateful_rule_may_be_its_key() -> None:
    found = run_of('{function: f, affinity: "${key}"}', "    batch: {key: data.scan, count: 2}\n")
    assert found.affinity is not None


def test_a_stateful_rule_gives_its_own_values() -> None:
    batch = "    batch: {key: data.scan, count: 2}\n"
    found = run_of('{shell: "merge ${each.data.path} ${count} ${first.data.path | stem}"}', batch)
    assert found.shell is not None


@pytest.mark.parametrize(
    ("run", "column", "message"),
    [
        ("{shell: \"cat '${data.path}'\"}", 18, "${data.path} is in single quotes"),
        ('{shell: "sh -c \\"cat ${data.path}\\""}', 18, "sh would read the value of ${data.path} as code"),
        ('{shell: "echo ${HOME}"}', 18, "an event has no 'HOME'"),
        ('{shell: "for f in a; do echo ${f}; done"}', 18, "an event has no 'f'"),
        ('{shell: "echo ${dta.path}"}', 18, "an event has no 'dta' to look into"),
        ('{shell: "echo ${x%.tif}"}', 18, "${x%.tif}"),
        ('{shell: "echo ${data.x"}', 18, "is not closed"),
        ('{shell: ""}', 18, "the shell script is empty"),
        ("{shell: [a]}", 18, "`shell` is a text, not a list"),
        ("{shell: 'true', args: {x: 1}}", 32, "`run` has `shell` and `args`"),
        ("{shell: 'true', function: f}", 36, "`run` has `shell` and `function`"),
        ("{shell: 'true', env: {A: [1]}}", 35, "env: A is a text or a number, not a list"),
        ("{shell: 'true', cwd: /a, sandbox: true}", 31, "a sandbox is the working directory"),
        ("{shell: 'true', interpreter: python3}", 18, "python3"),
        ("{shell: 'true', resources: {core: 4}}", 37, "resources: there is no 'core'"),
        ("{shell: 'true', resources: {cores: 0}}", 37, "resources: cores: 0 is not a whole number"),
        ("{function: f, sandbox: mabye}", 33, "sandbox: 'mabye' is not a choice"),
        ("{function: f, outputs: ['../x']}", 33, "outputs: '../x' is not a glob below the task's folder"),
        ("{function: f, outputs: ['[x']}", 33, "bracket"),
        ("{function: f, cwd: /a}", 24, "`cwd` is for `shell`"),
        ("{function: f, affinity: [a]}", 34, "`affinity` is a text, not a list"),
        ('{function: f, affinity: "${data.x"}', 34, "affinity: `${` is not closed"),
        (
            '{function: f, affinity: "${each.data.x}"}',
            34,
            "affinity: ${each.data.x} is for the arguments of rules that run for many events",
        ),
        ("{shel: 'true'}", 11, "did you mean 'shell'?"),
    ],
)
def test_mistakes_are_named_with_their_places(run: str, column: int, message: str) -> None:
    with pytest.raises(RuleFileError) as error:
        run_of(run)
    found: Any = error.value
    assert message in str(found)
    assert found.remedy
    assert (found.details["line"], found.details["column"]) == (4, column)
