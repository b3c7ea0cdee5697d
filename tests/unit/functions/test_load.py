"""Loading functions: other Pythons, missing modules, corrupt bodies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from oncue.errors import CannotLoad, Undecodable
from oncue.functions import FunctionBody, describe, load_function, pack_file, pack_function
from oncue.functions.source import part_for
from oncue.protocol.codec import encode
from oncue.protocol.payload import pack_args, unpack
from tests.unit.functions.other_process import (
    HELPERS,
    SOURCE,
    call_elsewhere,
    packed_by,
    there,
    write_files,
)


@pytest.mark.parametrize("name", ["plain", "decorated", "uses_siblings", "even", "later", "in_names"])
@pytest.mark.parametrize("place", ["script", "module"])
def test_another_python_rebuilds_from_source(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    if place == "script":
        body = packed_by(tmp_path, SOURCE, name)
    else:
        (tmp_path / "work.py").write_text(SOURCE)
        body = packed_by(tmp_path, "from work import *", name)
    old = msgspec.structs.replace(describe(body), python="3.9")
    if not old.portable:
        old = msgspec.structs.replace(old, pickle=b"not to be read")
    expected = {
        "plain": "8",
        "decorated": "104",
        "uses_siblings": "36",
        "even": "True",
        "later": "5",
        "in_names": "False",
    }
    assert call_elsewhere(encode(old), tmp_path, 4) == expected[name]


def test_rebuilding_does_not_run_the_script(tmp_path: Path) -> None:
    source = (
        "import os\nprint('SUBMITTED')\nopen('made', 'w').close() if 0 else None\n"
        "X = 2\nY = undefined_if_run = 3\ndef f(): return X\n"
    )
    script = tmp_path / "s.py"
    body = msgspec.structs.replace(
        FunctionBody(1, "f", "f", "__main__", "3.9", part_for(source, {"f"}), b"", {}, (), "0", entry="f", file="s.py")
    )
    assert not script.exists()
    assert "SUBMITTED" not in body.source
    assert "undefined" not in body.source
    assert call_elsewhere(encode(body), tmp_path) == "2"


def test_missing_module_is_named_with_its_pip_line(tmp_path: Path) -> None:
    packed = pack_function(lambda: 1)
    source = "import sklearn_of_nowhere.part\ndef f(): pass\n"
    body = msgspec.structs.replace(
        describe(packed.body),
        pickle=b"\x80\x05cjob\nf\n.",
        portable=True,
        siblings={"job.py": source},
        requires=("sklearn_of_nowhere",),
    )
    with pytest.raises(CannotLoad) as e:
        load_function(encode(body))
    assert "needs sklearn_of_nowhere" in e.value.message
    assert "-m pip install sklearn_of_nowhere" in e.value.remedy


def test_missing_module_that_the_function_does_not_use(tmp_path: Path) -> None:
    """The whole file cannot be imported there, but the part that the function needs can."""
    write_files(tmp_path, {"plots_of_nowhere.py": "", "job.py": "import plots_of_nowhere\ndef f(): return 7\n"})
    body = describe(pack_file(tmp_path / "job.py", "f").body)
    files = {k: v for k, v in body.siblings.items() if k != "plots_of_nowhere.py"}
    assert call_elsewhere(encode(msgspec.structs.replace(body, siblings=files)), tmp_path) == "7"


def test_other_python_version_is_named(tmp_path: Path) -> None:
    body = describe(pack_function(lambda: 1).body)
    with pytest.raises(CannotLoad, match=r"packed with Python 2\.7"):
        load_function(encode(msgspec.structs.replace(body, python="2.7")))


def test_corrupt_pickle_cannot_be_loaded() -> None:
    body = describe(pack_function(lambda: 1).body)
    with pytest.raises(CannotLoad, match="cannot be loaded"):
        load_function(encode(msgspec.structs.replace(body, pickle=b"\x80\x05junk")))


def test_two_versions_of_a_class_in_one_worker(tmp_path: Path) -> None:
    """In one worker: the second must not change what the first has, wherever the difference is."""
    script = (
        "class Conf:\n    angles = {}\n    def k(self): return K\nK = {}\ndef f(): return Conf.angles, Conf().k()\n"
    )
    bodies = [packed_by(tmp_path, script.format(*v), "f") for v in (("[1]", "5"), ("[2]", "5"), ("[1]", "6"))]
    again = packed_by(tmp_path, script.format("[1]", "5"), "f", seed="7")
    assert again == bodies[0]
    for n, body in enumerate(bodies):
        (tmp_path / f"body{n}").write_bytes(body)
    code = (
        "from oncue.functions import load_function\n"
        "a, b, c = (load_function(open(f'body{n}', 'rb').read()) for n in range(3))\n"
        "print(a(), b(), c(), a())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "([1], 5) ([2], 5) ([1], 6) ([1], 5)"


def test_run_by_another_python(another: str, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    for name, value in (("plain", 8), ("decorated", 104), ("uses_siblings", 36)):
        body = packed_by(tmp_path, SOURCE, name)
        assert unpack(there(another, tmp_path, body, pack_args((4,), {}))) == value, name


def test_result_of_a_script_class_from_another_python(another: str, tmp_path: Path) -> None:
    source = "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef make(x): return [P(x), P]\n"
    value = there(another, tmp_path, packed_by(tmp_path, source, "make"), pack_args((4,), {}))
    with pytest.raises(Undecodable, match="'__main__', which this program does not have") as caught:
        unpack(value)
    assert "return plain data" in caught.value.remedy
    (tmp_path / "reader.py").write_text(
        source + "from oncue.protocol.payload import unpack\nprint(unpack(open('value', 'rb').read()) == [P(4), P])\n"
    )
    done = subprocess.run([sys.executable, "reader.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
