"""The client in a real Jupyter kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import System, system_in

nbformat = pytest.importorskip("nbformat", reason="needs Jupyter: python -m pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs Jupyter: python -m pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="needs Jupyter: python -m pip install nbclient ipykernel")
pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("notebook")) as system:
        system.await_connected()
        yield system


class Notebook:
    """Cells that run in one kernel; `run` returns the outputs of the last one."""

    def __init__(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ONCUE_DATA", str(system.data))
        for name in ("ONCUE_URL", "ONCUE_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        self._folder = str(system.folder)

    def run(self, *cells: str) -> list[Any]:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbclient.NotebookClient(
            book, timeout=120, kernel_name="python3", resources={"metadata": {"path": self._folder}}
        ).execute(env=dict(os.environ))
        return list(book.cells[-1].outputs)


@pytest.fixture
def notebook(system: System, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return Notebook(system, monkeypatch)


HEAD = "from oncue import AsyncClient, Client\nclient = Client()"


def html(outputs: list[Any]) -> str:
    return "".join(o["data"].get("text/html", "") for o in outputs if "data" in o)


def test_client_tasks_and_lists_are_shown_as_tables(notebook: Notebook, system: System) -> None:
    fail = "def fail(x):\n    raise ValueError(f'no <b>{x}</b>')"
    shown = html(notebook.run(HEAD, "client"))
    assert system.local["url"] in shown
    assert "local" in shown
    shown = html(notebook.run(HEAD, fail, "task = client.submit(fail, 1)", "task.wait()", "task"))
    assert "failed" in shown
    assert "ValueError: no &lt;b&gt;1" in shown
    assert "href=" in shown
    shown = html(notebook.run(HEAD, "tasks = client.map(abs, range(-30, 0))", "client.gather(tasks)", "tasks"))
    assert "30 tasks: 30 succeeded" in shown
    assert "and 10 more" in shown
    shown = html(notebook.run(HEAD, "client.tasks.list(limit=3)"))
    assert shown.count("<tr>") == 4
    assert "nothing" in html(notebook.run(HEAD, "client.dead.list()"))


def test_lists_of_all_kinds_are_tables(notebook: Notebook, system: System) -> None:
    system.write("seen.py", "def seen(n):\n    return n\n")
    system.write("seen.yaml", "rules:\n  - {name: seen, on: {type: s}, run: {function: seen.py:seen, args: {n: 1}}}\n")
    system.oncue("deploy", "seen.yaml", "--yes")
    system.oncue("events", "emit", "--type", "s", "--source", "/a<b", "--subject", "scan_1")

    events = html(notebook.run(HEAD, "client.events.list(limit=1)"))
    assert "<td>s</td><td>/a&lt;b</td><td>scan_1</td>" in events
    rules = html(notebook.run(HEAD, "client.rules.list()"))
    assert "<th>name</th><th>label</th>" in rules
    assert "<td>seen.py:seen</td>" in rules
    assert "unevaluated" not in rules  # nothing to say
    for name in ("endpoints", "tokens"):
        assert "<td>local" in html(notebook.run(HEAD, f"client.{name}.list()"))
    assert "nothing" in html(notebook.run(HEAD, "client.triggers.list()"))


def test_a_single_record_is_a_table(notebook: Notebook, system: System) -> None:
    fail = "def fail(x):\n    raise ValueError(f'no <b>{x}</b>')"
    shown = html(notebook.run(HEAD, fail, "task = client.submit(fail, 1)", "task.wait()", "task.info()"))
    assert "<td>state</td><td>failed</td>" in shown
    assert "<td>accepted</td><td>20" in shown
    assert "no &lt;b&gt;1" in shown
    assert "replaced_by" not in shown  # nothing to say
    timeline = html(notebook.run(HEAD, "t = client.submit(abs, 1)\nt.wait()", "t.timeline()"))
    assert "<th>at</th><th>what</th>" in timeline
    assert "<td>workers</td>" in html(notebook.run(HEAD, "client.endpoints.get('local')"))
    assert "<td>subject</td>" in html(notebook.run(HEAD, "client.me"))


def test_a_cell_never_fails_because_the_server_is_away(notebook: Notebook) -> None:
    shown = html(notebook.run("from oncue import Client\nClient('http://127.0.0.1:9', 't')"))
    assert "nothing answers at http://127.0.0.1:9" in shown


def test_errors_show_no_exception_of_their_making(notebook: Notebook) -> None:
    """Neither "During handling of the above exception", nor the same error twice."""
    cells = (
        "c = Client('http://127.0.0.1:9', 't', patience=1)",
        "c.submit(abs, (n for n in range(2)))",
        "c.tasks.get('7')",
    )
    cells = (*cells, "c.submit(abs, open('a.txt', 'w'))", "c.submit(abs, x=[open('a.txt', 'w')])")
    for cell, error in zip(cells[1:], ("CannotPack", "Unreachable", "CannotPack", "CannotPack"), strict=True):
        with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
            notebook.run(HEAD, cells[0], cell)

        assert caught.value.ename == error
        assert "During handling" not in str(caught.value)
        assert "direct cause" not in str(caught.value) or cell == cells[1]  # a generator: Python's own words


def test_progress_needs_no_widgets(notebook: Notebook) -> None:
    outputs = notebook.run(HEAD, "r = client.gather(client.map(abs, range(100)), progress=True)")
    assert '<progress value="100" max="100">' in html(outputs)
    assert "100 of 100" in html(outputs)
    assert "ipywidgets" not in str(outputs)


def test_logs_print_and_times_are_times(notebook: Notebook) -> None:
    cells = (
        HEAD,
        "def talk():\n    print('line 1')\n    print('line 2')",
        "task = client.submit(talk)\ntask.result()",
    )
    (output,) = notebook.run(*cells, "task.logs()")
    assert output["data"]["text/plain"].rstrip() == "line 1\nline 2"
    (output,) = notebook.run(*cells, "i = task.info()\nprint(i.ended >= i.started, i.duration.total_seconds() < 60)")
    assert output["text"] == "True True\n"


def test_cells_may_await(notebook: Notebook) -> None:
    (output,) = notebook.run(HEAD, "async def half(x):\n    return x / 2", "await client.submit(half, 3)")
    assert output["data"]["text/plain"] == "1.5"
    cell = "async with AsyncClient() as c:\n    print(await c.gather([await c.submit(half, n) for n in range(3)]))"
    (output,) = notebook.run(HEAD, "async def half(x):\n    return x / 2", cell)
    assert output["text"] == "[0.0, 0.5, 1.0]\n"


@pytest.mark.parametrize(
    "cell", ["task.result()", "client.gather([task])", "await task", "client.executor().submit(measure).result()"]
)
def test_an_error_shows_the_functions_own_lines_first(notebook: Notebook, cell: str) -> None:
    cells = (
        HEAD,
        "def inner():\n    raise ValueError('bad scan')\n\ndef measure():\n    inner()",
        "task = client.submit(measure)",
    )

    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        notebook.run(*cells, cell)

    shown = re.sub("\x1b\\[[0-9;]*m", "", str(caught.value))
    own, cause, ours = (shown.index(words) for words in ("in inner\n", "direct cause", "oncue/client"))
    assert own < cause < ours
    assert caught.value.ename == "ValueError"
    assert shown.index("raise ValueError('bad scan')") < cause
    assert shown.count("oncue/client") <= 2
