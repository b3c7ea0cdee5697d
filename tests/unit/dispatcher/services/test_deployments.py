"""DeploymentService with its steps: parse, check, bind, plan, record, wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oncue.errors import Conflict, Forbidden, Invalid, NotFound, NotReady, RuleFileError
from oncue.protocol import api as r
from oncue.protocol.records import Parameter
from tests.unit.dispatcher.services.rule_site import RuleSite, rule_file, rule_text, with_rules
from tests.unit.dispatcher.services.service_site import (
    ADA,
    ADMIN,
    BOB,
    Site,
    function_request,
    just_before_record,
    with_two_sites,
)


def request(*files: r.RuleFile, **fields: Any) -> r.DeployRequest:
    return r.DeployRequest(files=list(files), **fields)


async def in_force(rules: RuleSite) -> dict[str, int]:
    """Return the version of each label."""
    await rules.deployed.sync()
    return {label: d.version for label, d in rules.deployed.deployments.items()}


# ---------------------------------------------------------------- deploy


def test_a_deploy_is_in_force_when_it_is_answered(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        (answer,) = await rules.deployments.deploy(ADA, request(rule_file(), note="first"))
        assert (answer.label, answer.version, answer.changed, answer.added) == ("tomo", 1, True, ["reconstruct"])
        assert [(c.function, c.old, c.new_version) for c in answer.functions] == [("f", "", 1)]
        assert [info.name for info in rules.deployed.engine.rules()] == ["reconstruct"]
        (version,) = await rules.deployments.history(ADA, "tomo")
        assert (version["version"], version["note"], version["owner"]) == (1, "first", "ada")

    with_rules(tmp_path, work)


def test_a_dry_run_shows_the_change_and_makes_none(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        new = rule_file(rule_text(type="other"))
        (answer,) = await rules.deployments.deploy(ADA, request(new, dry_run=True))
        assert (answer.version, answer.changed, answer.changed_rules) == (2, True, ["reconstruct"])
        assert "other" in answer.diff
        assert await in_force(rules) == {"tomo": 1}

    with_rules(tmp_path, work)


def test_the_same_file_again_is_no_new_version(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        (again,) = await rules.deployments.deploy(ADA, request(rule_file()))
        assert (again.changed, again.version, again.added) == (False, 1, [])
        assert len(await rules.deployments.history(ADA, "tomo")) == 1

    with_rules(tmp_path, work)


def test_another_content_of_a_function_is_a_new_version(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        newer = await rules.site.add_function(result=2)
        (answer,) = await rules.deployments.deploy(ADA, request(rule_file()))
        assert (answer.version, answer.changed_rules, answer.diff) == (2, ["reconstruct"], "")
        assert [(c.old_version, c.new_version, c.new) for c in answer.functions] == [(1, 2, newer.id)]
        assert rules.deployed.deployments["tomo"].functions == {"f": newer.id}

    with_rules(tmp_path, work)


def test_functions_of_the_request_come_before_registered_names(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        packed = await rules.site.add_function("reconstruct", result=5)
        text = rule_text(function="tomo.py:reconstruct")
        with pytest.raises(RuleFileError, match=r"tomo\.py:reconstruct' is not registered"):
            await rules.deployments.deploy(ADA, request(rule_file(text)))
        given = {"tomo.py:reconstruct": packed.id}
        await rules.deployments.deploy(ADA, request(rule_file(text), functions=given))
        assert rules.deployed.deployments["tomo"].functions == given

    with_rules(tmp_path, work)


def test_files_are_deployed_all_or_none(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        good, bad = rule_file(), rule_file(rule_text("other", function="missing"), "other")
        with pytest.raises(RuleFileError, match="'missing' is not registered"):
            await rules.deployments.deploy(ADA, request(good, bad))
        assert await in_force(rules) == {}
        both = await rules.deployments.deploy(ADA, request(good, rule_file(rule_text("other"), "other")))
        assert [a.label for a in both] == ["tomo", "other"]
        assert await in_force(rules) == {"tomo": 1, "other": 1}

    with_rules(tmp_path, work)


def test_a_rule_may_use_the_trigger_of_a_file_beside_it(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        trigger = rule_file("triggers:\n  - {name: hook, kind: webhook, verify: none}\n", "hooks")
        user = rule_file("rules:\n  - {name: r, on: hook, run: {function: f, endpoint: local}}\n", "user")
        with pytest.raises(RuleFileError, match="hook"):
            await rules.deployments.deploy(ADA, request(user))
        answers = await rules.deployments.deploy(ADA, request(trigger, user))
        assert [[t.name for t in a.triggers] for a in answers] == [["hook"], []]
        assert [t.state for t in answers[0].triggers] == ["running"]

    with_rules(tmp_path, work)


def test_all_faults_of_a_files_bindings_are_reported_at_once(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        text = rule_text(function="missing").replace("local", "nowhere")
        with pytest.raises(RuleFileError) as failed:
            await rules.deployments.deploy(ADA, request(rule_file(text)))
        assert "'missing' is not registered" in str(failed.value)
        assert "no endpoint 'nowhere'" in str(failed.value)

    with_rules(tmp_path, work)


def test_arguments_that_the_function_does_not_take_are_a_fault(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        parameters = r.parameter_infos((Parameter("n", "positional_or_keyword", True),))
        from oncue.dispatcher.services.functions import FunctionService

        await FunctionService(rules.context).register(ADA, function_request("strict", 3, parameters))
        text = rule_text(function="strict").replace("local}", "local, args: {m: 1}}")
        with pytest.raises(RuleFileError):
            await rules.deployments.deploy(ADA, request(rule_file(text)))
        await rules.deployments.deploy(ADA, request(rule_file(text.replace("{m: 1}", "{n: 1}"))))

    with_rules(tmp_path, work)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ((), Invalid, "no rule file"),
        ((rule_file(), rule_file()), Conflict, "the same label"),
        ((rule_file(), rule_file(label="other")), RuleFileError, "reconstruct"),
        ((rule_file("rules: 5"),), RuleFileError, "rules"),
        (tuple(rule_file(label=f"f{n}") for n in range(1_001)), Invalid, "at most 1,000 files"),
        (tuple(rule_file("#" * 1_000_000, label=f"f{n}") for n in range(17)), Invalid, "in several steps"),
        ((rule_file(label=""),), Invalid, "is not a label"),
        ((rule_file(label="a\x1b[2J"),), Invalid, "is not a label"),
        ((rule_file(label="a" * 201),), Invalid, "is not a label"),
        ((rule_file(path="/" * 5_000),), Invalid, "over 4,096 characters"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    tmp_path: Path, files: tuple[r.RuleFile, ...], error: type[Exception], words: str
) -> None:
    async def work(rules: RuleSite) -> None:
        with pytest.raises(error, match=words):
            await rules.deployments.deploy(ADA, request(*files))
        assert await in_force(rules) == {}

    with_rules(tmp_path, work)


def test_a_name_of_a_rule_in_force_is_refused_in_another_file(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        with pytest.raises(RuleFileError, match="reconstruct"):
            await rules.deployments.deploy(ADA, request(rule_file(label="other")))

    with_rules(tmp_path, work)


def test_a_label_belongs_to_its_owner_even_if_the_file_has_errors(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        for text in (rule_text(), "rules: 5"):
            with pytest.raises(Forbidden, match="'tomo' is somebody else's"):
                await rules.deployments.deploy(BOB, request(rule_file(text)))
        for change in (rules.deployments.rollback(BOB, "tomo", 1), rules.deployments.remove(BOB, "tomo")):
            with pytest.raises(NotFound):
                await change
        with pytest.raises(NotFound):
            await rules.deployments.history(BOB, "tomo")
        assert len(await rules.deployments.history(ADMIN, "tomo")) == 1

    with_rules(tmp_path, work)


def test_a_file_from_another_place_replaces_only_if_asked(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        here, there = rule_file(path="/a/tomo.yaml", host="h1"), rule_file(path="/b/tomo.yaml", host="h1")
        await rules.deployments.deploy(ADA, request(here))
        with pytest.raises(Conflict, match=r"came from h1:/a/tomo\.yaml") as failed:
            await rules.deployments.deploy(ADA, request(there))
        assert failed.value.details["replaces"] == "h1:/a/tomo.yaml"
        assert await in_force(rules) == {"tomo": 1}
        (planned,) = await rules.deployments.deploy(ADA, request(there, dry_run=True))
        (answer,) = await rules.deployments.deploy(ADA, request(there, replace=True))
        assert planned.replaces == answer.replaces == "h1:/a/tomo.yaml"
        assert await in_force(rules) == {"tomo": 2}

    with_rules(tmp_path, work)


def test_a_server_that_is_not_ready_changes_nothing(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        rules.context.ready = False
        service = rules.deployments
        for change in (
            service.deploy(ADA, request(rule_file(rule_text("other")))),
            service.rollback(ADA, "tomo", 1),
            service.remove(ADA, "tomo"),
        ):
            with pytest.raises(NotReady):
                await change
        assert await in_force(rules) == {"tomo": 1}

    with_rules(tmp_path, work)


# ---------------------------------------------------------------- rollback and removal


def test_a_rollback_is_a_new_version_with_the_old_text(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        await rules.deployments.deploy(ADA, request(rule_file(rule_text("second"))))
        planned = await rules.deployments.rollback(ADA, "tomo", 1, dry_run=True)
        assert await in_force(rules) == {"tomo": 2}
        answer = await rules.deployments.rollback(ADA, "tomo", 1)
        assert planned == answer
        assert (answer.version, answer.added, answer.removed) == (3, ["reconstruct"], ["second"])
        history = await rules.deployments.history(ADA, "tomo")
        assert [d["version"] for d in history] == [3, 2, 1]
        assert (history[0]["text"], history[0]["note"]) == (rule_text(), "rolled back to version 1")

    with_rules(tmp_path, work)


def test_a_removed_label_has_no_rules_and_can_come_back(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        answer = await rules.deployments.remove(ADA, "tomo")
        assert (answer.version, answer.removed) == (2, ["reconstruct"])
        assert rules.deployed.engine.rules() == []
        with pytest.raises(NotFound, match="no rule file 'tomo'"):
            await rules.deployments.remove(ADA, "tomo")
        with pytest.raises(NotFound, match="no version 2"):
            await rules.deployments.rollback(ADA, "tomo", 2)
        assert (await rules.deployments.rollback(ADA, "tomo", 1)).version == 3
        assert [info.name for info in rules.deployed.engine.rules()] == ["reconstruct"]

    with_rules(tmp_path, work)


def test_a_rollback_of_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        with pytest.raises(NotFound, match="tomo has no version 9"):
            await rules.deployments.rollback(ADA, "tomo", 9)
        with pytest.raises(NotFound, match="there are: tomo"):
            await rules.deployments.rollback(ADA, "other", 1)

    with_rules(tmp_path, work)


def test_a_rollback_does_not_bring_back_a_name_that_another_file_has_now(tmp_path: Path) -> None:
    async def work(rules: RuleSite) -> None:
        await rules.deployments.deploy(ADA, request(rule_file()))
        await rules.deployments.deploy(ADA, request(rule_file(rule_text("second"))))
        await rules.deployments.deploy(ADA, request(rule_file(label="other")))
        with pytest.raises(RuleFileError, match="reconstruct"):
            await rules.deployments.rollback(ADA, "tomo", 1)
        assert await in_force(rules) == {"tomo": 2, "other": 1}

    with_rules(tmp_path, work)


# ---------------------------------------------------------------- two servers


def test_of_two_servers_that_deploy_a_label_at_once_the_first_in_the_log_wins(tmp_path: Path) -> None:
    async def work(first: Site, second: Site) -> None:
        await first.add_endpoint()
        await first.add_function()
        await second.context.sync_registry()
        one, two = RuleSite(first), RuleSite(second)

        async def other() -> None:
            await one.deployments.deploy(ADA, request(rule_file(rule_text("of_first"))))

        just_before_record(second, other)
        with pytest.raises(Conflict, match="through another server at the same moment"):
            await two.deployments.deploy(ADA, request(rule_file(rule_text("of_second"))))
        for rules in (one, two):
            await rules.deployed.sync()
            assert [info.name for info in rules.deployed.engine.rules()] == ["of_first"]
        (again,) = await two.deployments.deploy(ADA, request(rule_file(rule_text("of_second"))))
        assert again.version == 2

    with_two_sites(tmp_path, work)
