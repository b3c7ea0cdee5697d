"""Source lines in tracebacks of functions sent by value."""

from __future__ import annotations

import linecache
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oncue.functions import pack_function
from tests.unit.functions.other_process import (
    packed_by,
)

FAILING = """
from oncue.endpoint.worker.failure import own_lines
from oncue.functions import load_function
f = load_function(open("body", "rb").read())
try:
    f(1)
except ValueError as e:
    print(own_lines(e))
"""


@pytest.mark.parametrize("expression", ["outer", "inner(3)", "lambda x: outer(x)"])
def test_traceback_has_the_file_and_the_line(tmp_path: Path, expression: str) -> None:
    source = (
        "# a comment\n\ndef outer(x):\n    y = x\n    raise ValueError(y)  # from outer\n"
        "def inner(n):\n    def closure(x):\n        raise ValueError(n)  # from inner\n    return closure\n"
    )
    (tmp_path / "body").write_bytes(packed_by(tmp_path, source, expression))
    done = subprocess.run(
        [sys.executable, "-P", "-c", FAILING], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = done.stdout
    where = ("5", "outer") if expression == "outer" else ("8", "inner") if "inner" in expression else ("5", "")
    assert f'File "script.py", line {where[0]}, in' in said
    assert f"# from {where[1] or 'outer'}" in said


CELLS = (
    "import functools\nLIMIT = 3\n\ndef check(x):\n    if x < LIMIT:\n        raise ValueError(x)  # from check\n",
    "class Scan:\n    def start(self, x):\n        return check(x)  # from start\n",
    "\n# the last cell\ndef run(x):\n    return [Scan().start(y)  # from run\n            for y in [x]]\n",
)


@pytest.mark.parametrize(
    "names", ["/tmp/ipykernel_{pid}/{n}3074457345618258602.py", "<ipython-input-{pid}-{n}f3a60c5cf2b3>"]
)
def test_traceback_has_the_lines_of_each_cell(names: str, tmp_path: Path) -> None:
    """As IPython runs cells: compiled under a name that no file has, their lines in linecache."""
    bodies = []
    for pid in (17, 4711):
        space: dict[str, Any] = {"__name__": "__main__"}
        for n, text in enumerate(CELLS):
            name = names.format(pid=pid, n=n)
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), space)
        bodies.append(pack_function(space["run"]).body)
    assert bodies[0] == bodies[1]
    (tmp_path / "body").write_bytes(bodies[0])
    done = subprocess.run(
        [sys.executable, "-P", "-c", FAILING], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for line, name in ((6, "check"), (3, "start"), (4, "run")):
        assert re.search(rf'File "<notebook cell [0-9a-f]+>", line {line}, in .*\n.*# from {name}\n', done.stdout), name


def test_two_versions_of_a_script_show_their_own_lines(tmp_path: Path) -> None:
    """Two versions of a script, both loaded: each shows what it was made of."""
    for n, gap in enumerate(("", "\n" * 4)):
        source = f"{gap}def g(x):\n    raise ValueError(x)  # version {n}\ndef f(x):\n    g(x)\n"
        (tmp_path / f"body{n}").write_bytes(packed_by(tmp_path, source, "lambda x: f(x)"))
    code = (
        "from oncue.endpoint.worker.failure import own_lines\nfrom oncue.functions import describe, load\n"
        "both = [load(describe(open(f'body{n}', 'rb').read())) for n in range(2)]\n"
        "for loaded in (*both, *both):\n"
        "    loaded.activate()\n"
        "    try: loaded.call(1)\n"
        "    except ValueError as e: print([l[-1] for l in own_lines(e).splitlines() if '# version' in l])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:4] == ["['0']", "['1']"] * 2
