"""Options of functions, files that travel, and remedies by cause."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import oncue
from oncue.errors import CannotLoad, CannotPack, Invalid
from oncue.functions import describe, load_function, pack_file, pack_function, split_place
from oncue.functions.body import FunctionProperties, properties
from oncue.functions.options import options_of
from oncue.functions.remedies import remedy_for
from oncue.functions.watch import Watch
from tests.unit.functions.other_process import call_elsewhere, write_files

JOB = (
    "import oncue\nfrom pathlib import Path\nHERE = Path(__file__).parent\n"
    "@oncue.function(files={files})\ndef f(): return (HERE / 'data' / 'a.txt').read_text()\n"
)


def test_options_are_in_the_body_and_the_function_stays_itself() -> None:
    @oncue.function(fresh=True, memory="2GB", detached=True)
    def f(x: int) -> int:
        return x

    assert f(3) == 3
    assert properties(pack_function(f).body) == FunctionProperties(True, 2_000_000_000, True)
    assert properties(pack_function(oncue.function(lambda: 1)).body) == FunctionProperties()
    assert properties(b"no body") == FunctionProperties()


@pytest.mark.parametrize("memory", ["2 GB and more", "-1", None])
def test_a_wrong_size_is_refused(memory: Any) -> None:
    with pytest.raises(Invalid, match="memory"):
        oncue.function(memory=memory)


@pytest.mark.parametrize("files", ["['data/a.txt']", "['data']", "['data/*.txt']", "'**/*.txt'"])
@pytest.mark.parametrize("package", [False, True])
def test_named_files_travel_and_lie_beside_the_function(tmp_path: Path, files: str, package: bool) -> None:
    folder = tmp_path / "mine" if package else tmp_path
    write_files(folder, {"data/a.txt": "hello", "job.py": JOB.format(files=files)})
    if package:
        write_files(folder, {"__init__.py": ""})
    packed = pack_file(folder / "job.py", "f")
    assert list(describe(packed.body).files) == ["mine/data/a.txt" if package else "data/a.txt"]
    assert call_elsewhere(packed.body, tmp_path) == "'hello'"


def test_files_of_a_script_lie_beside_it(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/a.txt": "hello"})
    source = (
        "import oncue, sys\nfrom oncue.functions import pack_function\n"
        "@oncue.function(files=['data'])\n"
        "def f():\n    import os\n    return open(os.path.join(os.path.dirname(__file__), 'data', 'a.txt')).read()\n"
        "if __name__ == '__main__':\n    sys.stdout.buffer.write(pack_function(f).body)\n"
    )
    write_files(tmp_path, {"script.py": source})
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, check=True)
    assert call_elsewhere(done.stdout, tmp_path) == "'hello'"


@pytest.mark.parametrize(("files", "words"), [("['no.txt']", "does not have"), ("['../b.txt']", "outside of")])
def test_a_file_that_cannot_travel_is_named(tmp_path: Path, files: str, words: str) -> None:
    write_files(tmp_path, {"b.txt": "", "mine/job.py": JOB.format(files=files)})
    with pytest.raises(CannotPack, match=words) as e:
        pack_file(tmp_path / "mine" / "job.py", "f")
    assert e.value.remedy


def test_options_of_the_command_line_are_added(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/a.txt": "", "b.bin": "", "job.py": JOB.format(files="['data']")})
    added = options_of(fresh=True, memory="1MB", detached=False, files=[str(tmp_path / "b.bin")])
    body = describe(pack_file(tmp_path / "job.py", "f", added).body)
    assert sorted(body.files) == ["b.bin", "data/a.txt"]
    assert (body.fresh, body.memory_bytes) == (True, 1_000_000)


def test_a_changed_file_makes_another_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import oncue\n@oncue.function(files=['a.txt'])\ndef f(): return 1\n", space)
    (tmp_path / "a.txt").write_text("one")
    watch = Watch(space["f"])
    assert watch.same(space["f"])
    (tmp_path / "a.txt").write_text("three")
    assert not watch.same(space["f"])


# ---------------------------------------------------------------- compiled modules


@pytest.fixture
def compiled(tmp_path: Path) -> str:
    """Put a compiled module of this Python, under its own name, beside a function."""
    name = "_testimportmultiple" if sys.platform == "linux" else "_struct"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    source = Path(sysconfig.get_path("stdlib")) / "lib-dynload" / f"{name}{suffix}"
    if not source.exists():
        pytest.skip(f"this Python has no {source.name} to copy: a compiled module is needed")
    (tmp_path / source.name).write_bytes(source.read_bytes())
    return source.name


def test_a_compiled_module_travels_if_it_is_named(tmp_path: Path, compiled: str) -> None:
    name = compiled.split(".")[0]
    text = f"import oncue\nimport {name}\n@oncue.function(files={{files}})\ndef f(): return {name}.__file__\n"
    write_files(tmp_path, {"job.py": text.format(files=[compiled])})
    assert Path(eval(call_elsewhere(pack_file(tmp_path / "job.py", "f").body, tmp_path))).name == compiled
    write_files(tmp_path, {"job.py": text.format(files=[])})
    body = pack_file(tmp_path / "job.py", "f").body
    assert describe(body).compiled == {name: compiled}
    assert f"files=['{compiled}']" in remedy_for(ModuleNotFoundError(name=name), describe(body))


# ---------------------------------------------------------------- remedies


def test_a_data_file_that_is_missing_in_an_import_has_its_own_remedy(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "a.txt": "x",
            "job.py": "from pathlib import Path\nTEXT = Path(__file__).with_name('a.txt').read_text()\ndef f(): return TEXT\n",
        },
    )
    body = pack_file(tmp_path / "job.py", "f").body
    with pytest.raises(CannotLoad, match="FileNotFoundError") as e:
        load_function(body)
    assert "files=['a.txt']" in e.value.remedy


@pytest.mark.parametrize(
    ("name", "words"),
    [("data/a.csv", "relative to the worker's folder"), (os.path.abspath("/no/such/a.csv"), "no such path")],
)
def test_a_missing_file_of_a_task_has_its_own_remedy(name: str, words: str) -> None:
    with pytest.raises(FileNotFoundError) as e:
        Path(name).read_text()
    assert words in remedy_for(e.value, None)


def test_code_that_fails_in_an_import_has_its_own_remedy(tmp_path: Path) -> None:
    write_files(tmp_path, {"job.py": "import os\nX = 1 / ('THERE' not in os.environ)\ndef f(): return X\n"})
    body = pack_file(tmp_path / "job.py", "f").body
    with pytest.MonkeyPatch.context() as there:
        there.setenv("THERE", "1")
        with pytest.raises(CannotLoad, match="ZeroDivisionError") as e:
            load_function(body)
    assert "top level of its file" in e.value.remedy


def test_each_wrong_place_has_its_own_remedy(tmp_path: Path) -> None:
    write_files(tmp_path, {"tomo.v2.py": "def run(): pass\n", "scan.py": "class Scan:\n    def start(self): pass\n"})
    (tmp_path / "folder").mkdir()
    wrong = {
        ("tomo.v2.py", "run"): "tomo_v2",
        ("scans.py", "f"): "did you mean 'scan.py'",
        ("other.py", "f"): "its folder has: scan.py, tomo.v2.py",
        ("folder", "f"): "name a file in it",
        ("no/such/folder.py", "f"): "there is no folder",
        ("scan.py", "Scn"): "did you mean 'Scan'",
        ("scan.py", "Scan.strat"): "did you mean 'Scan.start'",
    }
    for (file, name), words in wrong.items():
        with pytest.raises(CannotPack) as e:
            pack_file(tmp_path / file, name)
        assert words in e.value.remedy, (file, e.value)


@pytest.mark.parametrize("name", ["my-script.py", "my script.py", "scän.py", "class.py"])
def test_a_file_with_any_other_name_works(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {name: "def helper(): return 3\ndef run(): return helper()\n"})
    assert call_elsewhere(pack_file(tmp_path / name, "run").body, tmp_path) == "3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tomo.py", "tomo.py:NAME"),
        ("tomo:run", "tomo.py:run"),
        ("pkg.tomo:run", "pkg/tomo.py:run"),
        ("work.ipynb:run", "notebook"),
        ("tomo.py:run()", "without parentheses"),
        ("run", "for example"),
    ],
)
def test_each_wrong_way_to_name_a_function_has_its_own_remedy(text: str, words: str) -> None:
    with pytest.raises(Invalid) as e:
        split_place(text)
    assert words in e.value.remedy
