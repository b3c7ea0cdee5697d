"""Shell functions, sandboxes and output files as users have them: client, rules, commands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import oncue
from oncue.errors import Invalid, ShellFailed, TaskCancelled, TaskRefused, TaskTimedOut
from tests.e2e.running import System, system_in

HOSTILE = [
    "$(touch pwned).tif",
    "`touch pwned`.tif",
    "a b;touch pwned.tif",
    "'\"; touch pwned; .tif",
    "-rf.tif",
    "*.tif",
]
RULES = """
triggers:
  - {name: scans, kind: file, path: scans, glob: "*.tif"}
rules:
  - name: copy
    on: scans
    run:
      shell: |
        # it's a copy
        cp -- ${data.path} "copy of ${data.name}"
        wc -c < ${data.path}
      env: {LC_ALL: C}
      outputs: ["copy of *"]
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("shell")) as found:
        yield found


def test_a_client_runs_scripts_and_gets_all_they_print(system: System, tmp_path: Path) -> None:
    with system.client() as client:
        done = client.shell('seq ${n}; echo "$(id -u) ${what}" >&2', n=100_000, what="$(id)")
        result = done.result(timeout=60)
        failed = client.shell("echo half; echo 'no beam' >&2; exit 75", name="scan")
        with pytest.raises(ShellFailed, match=r"scan .*exit:75: no beam") as error:
            failed.result(timeout=60)

    whole = "".join(f"{n}\n" for n in range(1, 100_001))
    assert (result.returncode, result.stdout[:6]) == (0, "1\n2\n3\n")
    assert result.stderr.endswith("$(id)\n")
    assert result.stdout_file is not None
    assert result.stdout_file.text() == whole
    assert result.stdout_file.save(tmp_path / "out.txt").read_text() == whole
    assert (error.value.returncode, [f.text() for f in error.value.files]) == (75, ["half\n", "no beam\n"])
    info = system.json("tasks", "show", failed.id)["task"]
    assert (info["error"]["exit_code"], [f["name"] for f in info["files"]]) == (75, ["stdout", "stderr"])


def test_a_value_that_the_script_does_not_use_is_refused(system: System) -> None:
    with system.client() as client:
        with pytest.raises(Invalid, match="the script does not use 'pth'"):
            client.shell("cat ${path}", pth="/x")
        with pytest.raises(Invalid, match="single quotes"):
            client.shell("cat '${path}'", path="/x")


def test_a_rule_runs_a_script_for_files_of_any_name(system: System, tmp_path: Path) -> None:
    scans = system.folder / "scans"
    scans.mkdir()
    system.write("copy.yaml", RULES)
    system.oncue("rules", "test", "copy.yaml")
    system.oncue("deploy", "copy.yaml", "--yes")
    for name in HOSTILE:
        (scans / name).write_text(name)

    tasks = system.await_tasks(len(HOSTILE), rule="copy")

    with system.client() as client:
        for task in tasks:
            info = client.tasks.get(task["id"])
            (output,) = (f for f in client.tasks.files(info) if not f.stream)
            name = output.name.removeprefix("copy of ")
            assert name in HOSTILE
            assert output.text() == name
            assert info.value["stdout"].strip() == str(len(name))
        assert {t["name"] for t in tasks} == {"copy.sh"}
    assert not list(system.folder.rglob("pwned*"))
    assert (
        "no change"
        in system.oncue("deploy", "copy.yaml", "--dry-run").stderr
        + system.oncue("deploy", "copy.yaml", "--dry-run").stdout
    )
    to = tmp_path / "to"
    system.oncue("tasks", "outputs", tasks[0]["id"], "--to", str(to))
    assert sorted(p.name for p in to.iterdir())[0].startswith("copy of ")
    assert "output" in system.oncue("tasks", "outputs", tasks[0]["id"]).stdout


def test_a_retry_policy_names_an_exit_code(system: System, tmp_path: Path) -> None:
    retry = oncue.Retry(max=3, base=0.01, on=("exit:75",))
    script = "if [ -e ${mark} ]; then exit 3; fi; touch ${mark}; exit 75"
    with system.client() as client:
        task = client.with_options(retry=retry).shell(script, mark=str(tmp_path / "mark"))
        with pytest.raises(ShellFailed) as error:
            task.result(timeout=60)
        assert (error.value.returncode, len(task.info().attempts)) == (3, 2)


def test_the_command_prints_what_a_script_prints_and_ends_as_it_does(system: System) -> None:
    done = system.oncue("shell", "echo ${x}; echo gone >&2; exit 7", "--arg", "x=$(id) '", code=7)
    assert done.stdout.splitlines() == ["$(id) '", "gone"]
    assert "exit:7" in done.stderr
    found = system.json("shell", "echo 1 > a.txt; pwd", "--output", "*.txt", "--resource", "cores=1")
    assert found["value"]["returncode"] == 0
    assert [f["name"] for f in found["files"]] == ["a.txt", "stdout"]
    assert found["resources"] == {"cores": 1}
    assert "is not a whole number" in system.oncue("shell", "true", "--resource", "cores=0", code=2).stderr
    assert "does not use 'y'" in system.oncue("shell", "true", "--arg", "y=1", code=2).stderr


def test_output_is_followed_while_the_script_runs(system: System, tmp_path: Path) -> None:
    with system.client() as client:
        task = client.shell("echo first; while [ ! -e ${go} ]; do sleep 0.05; done; echo last", go=str(tmp_path / "go"))
        seen = ""
        for part in client.tasks.logs(task._wait_accepted(), follow=True):
            seen += part
            if "first\n" in seen:
                (tmp_path / "go").touch()
    assert seen == "first\nlast\n"


def test_a_cancelled_script_ends_with_its_children(system: System, tmp_path: Path) -> None:
    with system.client() as client:
        task = client.shell("sleep 1000 & echo $! > ${f}.tmp; mv ${f}.tmp ${f}; wait", f=str(tmp_path / "pid"))
        system.await_true((tmp_path / "pid").exists, "the script runs")
        task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(timeout=60)
    pid = (tmp_path / "pid").read_text().strip()
    ended = ["sh", "-c", 'kill -0 "$1" 2>/dev/null', "sh", pid]
    system.await_true(lambda: subprocess.run(ended).returncode != 0, "its child has ended")


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_the_whole_output_of_a_stopped_script_is_kept(system: System, tmp_path: Path, how: str) -> None:
    script = "seq 200000; echo 'no beam' >&2; touch ${mark}; exec sleep 1000"
    with system.client() as client:
        stated = client.with_options(timeout=8) if how == "timeout" else client
        task = stated.shell(script, mark=str(tmp_path / "mark"))
        system.await_true((tmp_path / "mark").exists, "the script has printed all")
        if how == "cancel":
            task.cancel()
        with pytest.raises(TaskCancelled if how == "cancel" else TaskTimedOut):
            task.result(timeout=60)
        files = {f.name: f.text() for f in task.files(60)}

    assert files == {"stdout": "".join(f"{n}\n" for n in range(1, 200_001)), "stderr": "no beam\n"}
    assert system.oncue("tasks", "outputs", task.id, "--stdout").stdout == files["stdout"]


def test_a_call_states_a_sandbox_and_outputs_of_a_python_function(system: System, tmp_path: Path) -> None:
    def write(text: str) -> str:
        Path("out").mkdir()
        Path("out/a.txt").write_text(text)
        if text == "bad":
            raise ValueError(text)
        return text

    with system.client() as client:
        sandboxed = client.with_options(sandbox="keep", outputs=["out"])
        good, bad = sandboxed.submit(write, "good"), sandboxed.submit(write, "bad")
        assert good.result(timeout=60) == "good"
        assert [p.read_text() for p in good.save_files(tmp_path)] == ["good"]
        with pytest.raises(ValueError, match="bad") as error:
            bad.result(timeout=60)
        info = bad.info()
    assert info.error is not None
    assert Path(info.error.folder, "out/a.txt").read_text() == "bad"
    assert info.error.folder in str(error.value.__cause__)
    assert info.error.folder in system.oncue("tasks", "show", bad.id).stdout


def test_a_task_that_can_never_fit_is_refused_with_the_reason(system: System) -> None:
    @oncue.function(resources={"memory": "900TB"})
    def large() -> None: ...

    with system.client() as client:
        tasks = [
            client.with_options(resources={"cores": 5_000}).shell("true"),
            client.with_options(resources={"nodes": 2}).submit(abs, 1),
            client.submit(large),
        ]
        for task, reason in zip(tasks, ("5000 cores", "2 nodes", "900 TB of memory"), strict=True):
            with pytest.raises(TaskRefused, match=reason):
                task.result(timeout=60)
        assert client.with_options(resources={"cores": 1, "walltime": "1h"}).submit(abs, -1).result(timeout=60) == 1


def test_a_function_is_registered_with_run_options(system: System) -> None:
    system.write("report.py", "def write(text):\n    open('a.txt', 'w').write(text)\n    print('written')\n")
    system.oncue("functions", "register", "report.py:write", "--output", "*.txt", "--resource", "cores=1")
    shown = system.oncue("functions", "show", "write").stdout
    assert "*.txt" in shown
    assert "cores 1" in shown
    done = system.json("invoke", "write", "--arg", "text=hello")
    assert [f["name"] for f in done["files"]] == ["a.txt"]


def test_a_whole_stream_is_printed(system: System) -> None:
    done = system.json("shell", "seq 100000; echo gone >&2")
    assert system.oncue("tasks", "outputs", done["id"], "--stdout").stdout.splitlines()[-1] == "100000"
    assert system.oncue("tasks", "outputs", done["id"], "--stderr").stdout == "gone\n"


def test_the_api_takes_run_options(system: System) -> None:
    with system.client() as client:
        packed = oncue.shell("echo 1 > a.txt")
        client.register(packed)
    request = {"function": packed.id, "wait_ms": 60_000, "outputs": ["*.txt"], "resources": {"walltime": "2h"}}
    answer = system.http("POST", "/v1/tasks", request)
    assert (answer.json["state"], [f["name"] for f in answer.json["files"]]) == ("succeeded", ["a.txt"])
    assert answer.json["resources"] == {"walltime": "7200000ms"}
    for wrong in ({"resources": {"core": 1}}, {"sandbox": "mabye"}, {"outputs": ["/etc"]}):
        refused = system.http("POST", "/v1/tasks", {"function": packed.id, **wrong})
        assert (refused.status, refused.json["code"]) == (422, "invalid")
        assert refused.json["remedy"]
