"""Files around a deploy: existing ones do not fire, later ones fire once.

This holds whichever process is killed in between.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from oncue.protocol.api import DeployRequest, RuleFile
from tests.e2e.deploying import deploy, fired, place, registered, rules
from tests.e2e.running import System, system_in


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("deploys"), "--workers", "1") as system:
        registered(system)
        yield system


@pytest.mark.parametrize("n", range(5))
def test_files_written_right_after_the_answer_fire_and_existing_files_do_not(site: System, n: int) -> None:
    name = f"right-after-{n}"
    folder = place(site, name, files=1 + 400 * n)
    (folder / "last.raw").write_bytes(b"the last moment before")
    deploy(site, name, rules((name, folder)))
    (folder / "new.raw").write_bytes(b"new")
    assert fired(site, name, folder, 1) == ["new.raw"]


def test_a_tree_moved_in_right_after_the_answer_fires_however_old_it_is(site: System) -> None:
    """A moved tree keeps the times of its files."""
    folder = place(site, "moved")
    tree = site.folder / "staged"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "in_tree.raw").write_bytes(b"1")
    (tree / "copied.raw").write_bytes(b"1")
    os.utime(tree / "copied.raw", (1, 1))
    deploy(site, "moved", rules(("moved", folder)))
    tree.rename(folder / "run_1")
    assert fired(site, "moved", folder, 2) == ["copied.raw", "in_tree.raw"]


def test_files_written_after_a_kill_right_after_the_answer_fire(stopped: System) -> None:
    """Files written while the server is down fire after its start."""
    stopped.up("--workers", "1")
    registered(stopped)
    folder = place(stopped, "killed")
    tree = stopped.folder / "staged"
    tree.mkdir()
    (tree / "tree.raw").write_bytes(b"1")
    server = stopped.server
    deploy(stopped, "killed", rules(("killed", folder)))
    os.kill(server.pid, signal.SIGKILL)
    (folder / "down.raw").write_bytes(b"new")
    tree.rename(folder / "run_1")
    stopped.up("--workers", "1")
    assert fired(stopped, "killed", folder, 2) == ["down.raw", "tree.raw"]


def test_killed_before_the_initial_scan(stopped: System) -> None:
    """The deploy is recorded but the trigger has not scanned.

    Files are then classified by their times.
    """
    stopped.up("--workers", "1")
    registered(stopped)
    folder = place(stopped, "unseen")
    in_the_way = stopped.data / "triggers" / "unseen"  # the folder of the trigger's ledger
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_bytes(b"")
    server = stopped.server
    done = deploy(stopped, "unseen", rules(("unseen", folder)))
    os.kill(server.pid, signal.SIGKILL)
    (trigger,) = done.triggers
    assert (trigger.name, trigger.state, trigger.looked) == ("unseen", "failed", False)
    assert str(in_the_way) in trigger.detail
    in_the_way.unlink()
    (folder / "down.raw").write_bytes(b"new")
    stopped.up("--workers", "1")
    assert fired(stopped, "unseen", folder, 1) == ["down.raw"]


def test_a_deploy_without_changes_waits_for_the_initial_scan_too(site: System) -> None:
    """The command is repeated, as after a lost answer."""
    folder = place(site, "again")
    text = rules(("again", folder))
    assert deploy(site, "again", text).changed
    done = deploy(site, "again", text)
    assert not done.changed
    assert [(t.name, t.state, t.looked) for t in done.triggers] == [("again", "running", True)]
    (folder / "new.raw").write_bytes(b"new")
    assert fired(site, "again", folder, 1) == ["new.raw"]


def test_changed_globs_and_folders_have_an_initial_scan_of_their_own(site: System) -> None:
    folder, other = place(site, "edited"), place(site, "edited-other")
    deploy(site, "edited", rules(("edited", folder)))
    (folder / "one.raw").write_bytes(b"fires: .raw is meant")
    (folder / "old.tif").write_bytes(b"old when .tif is meant as well")
    deploy(site, "edited", rules(("edited", folder), glob='"**/*.{raw,tif}"'))
    (folder / "two.tif").write_bytes(b"new")
    (folder / "three.raw").write_bytes(b"new")
    assert fired(site, "edited", folder, 3) == ["one.raw", "three.raw", "two.tif"]
    deploy(site, "edited", rules(("edited", other), glob='"**/*.{raw,tif}"'))
    (other / "four.tif").write_bytes(b"new")
    assert fired(site, "edited", other, 4) == ["four.tif", "one.raw", "three.raw", "two.tif"]


def test_a_folder_created_after_the_deploy(site: System) -> None:
    folder = site.folder / "not-yet"
    done = deploy(site, "not-yet", rules(("not-yet", folder)))
    assert [(t.state, t.looked) for t in done.triggers] == [("waiting", True)]
    assert f"{folder} does not exist" in done.triggers[0].detail
    tree = site.folder / "not-yet-staged"
    tree.mkdir()
    (tree / "older than the folder.raw").write_bytes(b"1")
    os.utime(tree / "older than the folder.raw", (1, 1))
    tree.rename(folder)
    (folder / "new.raw").write_bytes(b"1")
    assert fired(site, "not-yet", folder, 2) == ["new.raw", "older than the folder.raw"]


def test_several_triggers_of_which_one_cannot_scan(site: System) -> None:
    first, second = place(site, "several-1"), place(site, "several-2")
    no_folder = site.write("several-3", "a file")
    text = rules(("several-1", first), ("several-3", no_folder), ("several-2", second))
    site.write("several.yaml", text)
    said = site.oncue("deploy", "several.yaml", "--yes")
    (first / "new1.raw").write_bytes(b"new")
    (second / "new2.raw").write_bytes(b"new")
    assert "several@1 is in force" in said.stdout
    assert "several-3 cannot scan: " in said.stderr
    assert "not a folder" in said.stderr
    assert fired(site, "several-1", first, 1) == ["new1.raw"]
    assert fired(site, "several-2", second, 1) == ["new2.raw"]
    listed = {t["name"]: t for t in site.json("triggers", "list")}
    assert (listed["several-1"]["looked"], listed["several-1"]["existing"]) == (True, 3)
    assert (listed["several-3"]["looked"], listed["several-3"]["state"]) == (False, "failed")
    why = {rule["name"]: rule["why"] for rule in site.json("rules", "list")}
    assert "several-3" in why["several-3-name"]
    assert "not a folder" in why["several-3-name"]
    assert why["several-1-name"] == ""


def test_explain_says_why_a_file_did_not_fire(site: System) -> None:
    folder = place(site, "asked", files=2)
    deploy(site, "asked", rules(("asked", folder)))
    (folder / "new.raw").write_bytes(b"new")
    assert fired(site, "asked", folder, 1) == ["new.raw"]
    found = {
        name: site.json("triggers", "explain", "asked", name)["state"]
        for name in ("new.raw", str(folder / "new.raw"), "deep/old0.raw", "no.raw", "deep/x.tif", "/etc/passwd")
    }
    assert list(found.values()) == ["fired", "fired", "old", "missing", "not meant", "not meant"]
    assert "existing: false" in site.oncue("triggers", "explain", "asked", "deep/old0.raw").stdout
    shown = site.oncue("triggers", "show", "asked").stdout
    assert "2 files existed before" in shown
    assert "new.raw" in shown
    unknown = site.oncue("triggers", "explain", "askd", "new.raw", code=4)
    assert "there is no trigger" in unknown.stderr


def test_existing_true_says_what_it_will_do_before_it_does(site: System) -> None:
    folder = site.folder / "old"
    folder.mkdir()
    for i in range(3):
        (folder / f"old{i}.raw").write_bytes(b"1")
    deploy(site, "old", rules(("old", folder)))
    site.write("old.yaml", rules(("old", folder)).replace("glob:", "existing: true, glob:"))
    with site.client() as client:
        file = RuleFile(label="old", text=(site.folder / "old.yaml").read_text())
        (planned,) = client.rules.deploy(DeployRequest(files=[file], dry_run=True))
        assert planned.notes == ["trigger old: 3 files that exist will fire (existing: true)"]
    (folder / "new.raw").write_bytes(b"1")
    assert fired(site, "old", folder, 1) == ["new.raw"]
    shown = site.oncue("deploy", "old.yaml", "--replace", "--yes").stdout
    assert "3 files that exist will fire" in shown
    assert "only when they change" not in shown
    assert fired(site, "old", folder, 4) == ["new.raw", "old0.raw", "old1.raw", "old2.raw"]


def test_a_backfill_lets_old_files_fire(site: System) -> None:
    folder = site.folder / "backfilled"
    folder.mkdir()
    for i in range(3):
        (folder / f"old{i}.raw").write_bytes(b"1")
    deploy(site, "backfilled", rules(("backfilled", folder)))
    os.utime(folder / "old1.raw", (1_600_000_000, 1_600_000_000))
    which = ("triggers", "backfill", "backfilled", "--glob", "old[01]*")
    counted = site.oncue(*which, "--dry-run").stdout
    assert "2 old files (2 B) would fire" in counted
    assert "old0.raw" in counted
    assert "1 old file (1 B) will fire" in site.oncue(*which, "--since", "2026-01-01").stdout
    assert fired(site, "backfilled", folder, 1) == ["old0.raw"]
    with site.client() as client:
        found = client.triggers.backfill("backfilled", glob="old[01]*")
        assert (found.files, found.first, found.fired_before) == (1, ["old1.raw"], 1)
    assert fired(site, "backfilled", folder, 2) == ["old0.raw", "old1.raw"]
    site.oncue("triggers", "backfill", "backfilled", "--glob", "{", code=2)
