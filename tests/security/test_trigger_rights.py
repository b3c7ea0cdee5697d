"""What triggers of people other than admins may use: folders under trigger_roots, secrets given to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.dispatcher.services.deployment.checks import FILE_TRIGGERS
from tests.e2e.running import Answer, System, system_in

FILES = "triggers:\n  - {{name: {name}, kind: file, path: {path!r}{more}}}\n"
HOOK = 'triggers:\n  - {{name: {name}, kind: webhook, verify: {{bearer: "{secret}"}}}}\n'


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("rights")
    for path, text in {"servers": "s3", "alice/hers": "a3", "bob/his": "b3"}.items():
        file = folder / "data" / "secrets" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    roots = {"ONCUE_TRIGGER_ROOTS": f"{folder / 'allowed'}:{folder / 'also'}", "ONCUE_SECRET_ENV": "e3", "OTHER": "o3"}
    for name in ("allowed/deep", "also", "outside"):
        (folder / name).mkdir(parents=True)
    with system_in(folder, "--no-endpoint", **roots) as system:
        for name in ("alice", "bob"):
            made = system.json("tokens", "create", name, "--scope", "user", "--subject", name)
            (folder / f"{name}.token").write_text(made["token"])
        yield system


def deploy(system: System, who: str, name: str, text: str, code: int = 0) -> str:
    system.write(f"{name}.yaml", text)
    env = {"ONCUE_URL": system.local["url"]}
    if who != "admin":
        env["ONCUE_TOKEN"] = (system.folder / f"{who}.token").read_text()
    done = system.oncue("deploy", f"{name}.yaml", "--yes", code=code, env=env)
    return done.stdout + done.stderr


def files(path: Path | str, name: str, more: str = "") -> str:
    return FILES.format(name=name, path=str(path), more=more)


def trigger(system: System, name: str) -> Any:
    return system.http("GET", f"/v1/triggers/{name}").json


def explained(system: System, name: str, path: str) -> dict[str, Any]:
    return dict(system.http("GET", f"/v1/triggers/{name}/file?path={path}").json)


def knock(system: System, hook: str, secret: str) -> Answer:
    return system.http("POST", f"/hooks/{hook}", {}, headers={"Authorization": f"Bearer {secret}"})


@pytest.mark.parametrize(
    "path",
    ["outside", "/", "/etc", "allowed/../outside", "allowedx", "allowed/link", "../..", "~", "also/none/../../outside"],
)
def test_a_folder_outside_is_refused(system: System, path: str) -> None:
    link = system.folder / "allowed" / "link"
    if not link.is_symlink():
        link.symlink_to(system.folder / "outside")
    (system.folder / "allowedx").mkdir(exist_ok=True)
    said = deploy(system, "alice", "no", files(path, "no"), code=5)
    assert "not a folder that an admin has allowed" in said
    assert "allowed" in said.split("ask an admin")[0], "it names the folders"
    assert system.http("GET", "/v1/triggers/no").status == 404


def test_a_folder_inside_and_an_admins_folder_work(system: System) -> None:
    deploy(system, "alice", "yes", files("allowed/deep", "yes"))
    deploy(system, "bob", "new", files(system.folder / "also" / "new", "new"))
    deploy(system, "admin", "any", files("outside", "any"))
    for name in ("yes", "any"):
        system.await_true(lambda name=name: trigger(system, name)["state"] == "running", f"{name} runs")
    assert trigger(system, "new")["state"] == "waiting"


def test_links_to_files_are_refused(system: System) -> None:
    assert "symlinks" in deploy(system, "alice", "ln", files("allowed", "ln", ", symlinks: files"), code=5)


def test_a_folder_that_becomes_a_link_is_not_followed(system: System) -> None:
    swapped, stolen = system.folder / "allowed" / "swapped", system.folder / "outside" / "stolen.h5"
    swapped.mkdir()
    deploy(system, "alice", "swap", files("allowed/swapped", "swap"))
    system.await_true(lambda: trigger(system, "swap")["state"] == "running", "it runs")
    shutil.rmtree(swapped)
    swapped.symlink_to(system.folder / "outside")
    stolen.write_text("x")
    system.await_true(lambda: "has allowed" in trigger(system, "swap")["detail"], "it says why it does not run")
    assert trigger(system, "swap")["state"] == "failed"
    assert trigger(system, "swap")["emitted"] == 0
    answers = [explained(system, "swap", name) | {"path": ""} for name in ("stolen.h5", "none.h5")]
    assert answers[0] == answers[1], "nobody learns which files there are"


def test_an_explanation_does_not_follow_a_link(system: System) -> None:
    watched = system.folder / "allowed" / "linked"
    watched.mkdir()
    deploy(system, "alice", "linked", files("allowed/linked", "linked"))
    (watched / "way").symlink_to(system.folder)
    (system.folder / "outside" / "there.h5").write_text("x")
    answers = [explained(system, "linked", f"way/outside/{name}.h5") | {"path": ""} for name in ("there", "none")]
    assert answers[0] == answers[1]
    assert "symbolic link" in answers[0]["why"]


def test_one_person_does_not_take_all_file_triggers_of_the_kernel(system: System) -> None:
    def text(count: int) -> str:
        many = (f"  - {{name: many-{n}, kind: file, path: {str(system.folder / 'also')!r}}}\n" for n in range(count))
        return "triggers:\n" + "".join(many)

    assert f"at most {FILE_TRIGGERS} are kept" in deploy(system, "bob", "many", text(FILE_TRIGGERS + 1), code=1)
    assert system.http("GET", "/v1/triggers/many-0").status == 404
    deploy(system, "admin", "many", text(FILE_TRIGGERS + 1))
    system.oncue("rules", "remove", "many", "--yes")


@pytest.mark.parametrize(
    "secret", ["${secret:servers}", "${secret:his}", "${secret:env}", "${secret:bob}", "${secret:..}"]
)
def test_a_secret_of_others_opens_nothing(system: System, secret: str) -> None:
    deploy(system, "alice", "peek", HOOK.format(name="peek", secret=secret))
    for guess in ("s3", "b3", "e3", ""):
        answer = knock(system, "peek", guess)
        assert answer.status in (401, 503), answer.body
    assert "has no secret" in trigger(system, "peek")["detail"]
    assert b"servers" not in knock(system, "peek", "s3").body or secret == "${secret:servers}"


def test_a_secret_that_was_given_works(system: System) -> None:
    deploy(system, "alice", "own", HOOK.format(name="own", secret="${secret:hers}"))
    assert knock(system, "own", "a3").status == 202
    assert knock(system, "own", "s3").status == 401
    deploy(system, "admin", "all", HOOK.format(name="all", secret="${secret:servers}"))
    assert knock(system, "all", "s3").status == 202


@pytest.mark.parametrize("name", ["OTHER", "ONCUE_SECRET_ENV", "PATH"])
def test_variables_of_the_server_are_for_admins(system: System, name: str) -> None:
    hook = HOOK.format(name="var", secret=f"${{env:{name}}}")
    assert "only a rule file that an admin deploys" in deploy(system, "alice", "var", hook, code=5)


def test_an_admin_who_deploys_a_users_file_gives_it_rights(system: System) -> None:
    text = HOOK.format(name="lift", secret="${secret:servers}")
    deploy(system, "alice", "lift", text)
    assert knock(system, "lift", "s3").status == 503
    deploy(system, "admin", "lift", text)
    assert knock(system, "lift", "s3").status == 202


def test_rights_last_over_a_restart(system: System) -> None:
    deploy(system, "alice", "still", HOOK.format(name="still", secret="${secret:servers}"))
    system.down()
    system.up("--no-endpoint")
    system.await_true(lambda: "has no secret" in trigger(system, "still")["detail"], "it is still alice's")
    assert json.loads(knock(system, "still", "s3").body)["status"] == 503
