"""Variables of rule files: `--set` and `--env` put values in their places, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.cli.deploying.values import values_of
from oncue.errors import Invalid, RuleFileError
from oncue.rules.parsing.rule_file import parse
from oncue.strict_yaml.document import Problems, read
from oncue.strict_yaml.variables import fill

RULE = 'rules: [{name: a, on: {type: x}, run: {function: f, endpoint: "${var:site.endpoint}", args: {n: "${data.n}"}}}]'


def filled(text: str, values: dict[str, Any]) -> str:
    with Problems("f.yaml") as problems:
        found, _ = fill(text, values, problems)
        problems.check()
        return found


def plain(text: str) -> Any:
    with Problems("f.yaml") as problems:
        root = read(text, problems)
        problems.check()
        return root.plain() if root else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a: "${var:n}"', {"a": 5}),
        ("a: ${var:n}  # a comment ${var:n}", {"a": 5}),
        ("a: '${var:t}'", {"a": 'é "x" \\'}),
        ('a: {b: ["${var:n}", "x${var:n}y"], "k${var:n}": 1}', {"a": {"b": [5, "x5y"], "k5": 1}}),
        ('ü: "ü${var:t}"\nb: "${var:n}"', {"ü": 'üé "x" \\', "b": 5}),
        ('a: "${var:list}"', {"a": [1, {"b": None}]}),
        ('a: "$${var:n}"', {"a": "$${var:n}"}),
        ('a: "${data.n} ${var:n} ${secret:n} ${env:N}"', {"a": "${data.n} 5 ${secret:n} ${env:N}"}),
        ("a: |\n  echo ${var:n} $${var:n}\n  echo ${var:t}\nb: 1", {"a": 'echo 5 $${var:n}\necho é "x" \\\n', "b": 1}),
        ('a: "${var:s.e.p}"', {"a": True}),
        ('a: "${var:none}"', {"a": "${var:none}"}),
        ("a: ${var:n", {"a": "${var:n"}),
    ],
)
def test_values_stand_in_place_of_variables(text: str, expected: Any) -> None:
    values = {"n": 5, "t": 'é "x" \\', "list": [1, {"b": None}], "s.e.p": True}
    made = filled(text, values)
    assert plain(made) == expected
    assert made.count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(['"{}"', "'{}'", "{}"]))
def test_any_text_comes_through(value: str, form: str) -> None:
    assert plain(filled(f"a: {form.format('${var:x}')}\nb: 1", {"x": value})) == {"a": value, "b": 1}


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ('a: "x${var:v}"', {"v": [1]}, "1:4: the variable v is no text or number|the variable v is no text or number"),
        ("a: |\n  ${var:v}\n", {"v": "x\ny"}, "several lines"),
        ('a: "x\n  ${var:v}"', {"v": "x"}, "on one line"),
    ],
)
def test_values_that_do_not_fit_are_reported(text: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleFileError, match=message):
        filled(text, values)


def test_the_parser_names_a_variable_without_a_value() -> None:
    with pytest.raises(RuleFileError) as e:
        parse("\n" + RULE, "f.yaml", triggers=None)
    assert (e.value.message, e.value.line) == ("the variable site.endpoint has no value", 2)
    assert "--set site.endpoint=VALUE" in e.value.remedy
    parse(RULE.replace("${var", "$${var"), "f.yaml", triggers=None)


def test_files_and_options_give_values_the_last_one_wins(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("site: {endpoint: polaris, n: 1}\nlist: [1, 2]\n")
    (tmp_path / "prod.yaml").write_text("site: {endpoint: aurora}\n")
    files = (str(tmp_path / "all.yaml"), str(tmp_path / "prod.yaml"))

    values = values_of(("n:=3", "text=4", "site.endpoint=here"), files)

    assert values.values["site.endpoint"] == "here"
    assert (values.values["n"], values.values["text"], values.values["list"]) == (3, "4", [1, 2])
    made = values.filled(RULE.encode(), "f.yaml")
    assert parse(made, "f.yaml", triggers=None).rules[0].runs[0].endpoint == "here"
    with pytest.raises(Invalid, match="no file uses the variable 'n'"):
        values.check_used()


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: b: c", "mapping values"), ("- 1", "is a mapping"), ("a: 1\na: 2", "twice|already"), ("", "empty")],
)
def test_a_wrong_file_of_values_is_reported_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prod.yaml").write_text(text)
    with pytest.raises(RuleFileError, match=message) as e:
        values_of((), (str(tmp_path / "prod.yaml"),))
    assert e.value.file.endswith("prod.yaml")


def test_a_missing_file_and_a_malformed_option_are_reported(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.yaml cannot be read"):
        values_of((), (str(tmp_path / "none.yaml"),))
    with pytest.raises(Invalid, match="--set '5' is not"):
        values_of(("5",), ())
