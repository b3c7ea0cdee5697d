"""Options of a provider of Parsl are checked against Parsl itself."""

from __future__ import annotations

from typing import Any

import pytest

from oncue import extras
from oncue.endpoint.options.providers import ParslOptions
from oncue.endpoint.providers.parsl_check import parsl_faults

AWS: dict[str, Any] = {"image_id": "ami-1", "key_name": "me", "region": "us-east-2"}


def check(**options: Any) -> list[str]:
    pytest.importorskip("parsl", reason="needs Parsl; pip install -r requirements/dev.txt")
    return parsl_faults(ParslOptions(**options))


def test_options_that_parsl_accepts_have_no_faults() -> None:
    assert check(name="AWSProvider", options=AWS) == []
    assert check(name="SlurmProvider", options={"partition": "debug"}, launcher="SrunLauncher") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "AwsProvider"}, "name: Parsl has no 'AwsProvider'; did you mean AWSProvider?"),
        ({"name": "Cloud"}, "it has AWSProvider, AzureProvider, "),
        ({"name": "AWSProvider", "options": AWS | {"regoin": "x"}}, "no 'regoin'; did you mean region?"),
        ({"name": "AWSProvider", "options": {"image_id": "ami-1"}}, "options: AWSProvider needs key_name"),
        ({"name": "AWSProvider", "options": AWS | {"walltime": "1:00:00"}}, "state it as blocks.walltime instead"),
        ({"name": "AWSProvider", "options": AWS, "launcher": "SrunLaucher"}, "did you mean SrunLauncher?"),
    ],
)
def test_faults_name_the_place_and_the_right_word(options: dict[str, Any], words: str) -> None:
    (fault,) = check(**options)

    assert words in fault


def test_without_parsl_the_remedy_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_installed", lambda module: False)

    (fault,) = parsl_faults(ParslOptions(name="AWSProvider"))

    assert fault.startswith("Parsl is not installed: ")
    assert " -m pip install " in fault
