"""Text forms of clients and lists, as a Python prompt shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oncue import AsyncClient, Client, OncueExecutor

URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: Client(URL, "t"), f"<oncue client of {URL}>"),
        (lambda: AsyncClient(URL, "t"), f"<oncue async client of {URL}>"),
        (lambda: OncueExecutor(url=URL, token="t"), f"<oncue executor of endpoint local at {URL}>"),
        (lambda: Client(URL, "t").executor(), f"<oncue executor of endpoint local at {URL}>"),
    ],
)
def test_an_object_names_its_server(make: Callable[[], object], shown: str) -> None:
    assert repr(make()) == shown


def test_presets_are_shown() -> None:
    shown = repr(Client(URL, "t").with_options(endpoint="gpu", retry=2))
    assert shown.startswith(f"<oncue client of {URL} with ")
    assert "endpoint='gpu', retry=2" in shown


def test_a_client_without_a_server_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    assert repr(Client(data=tmp_path)).startswith("<oncue client of no server (no server is known: ")


def test_a_list_of_pages_asks_nothing() -> None:
    assert "list(...)" in repr(Client(URL, "t").tasks.list())


@pytest.mark.parametrize(
    ("text", "why"), [("", "ValueError"), ("\n", "ValueError"), ("\nno <b>\nx", "ValueError: no &lt;b&gt;")]
)
def test_a_table_of_tasks_shows_failures_of_any_text(client: Client, text: str, why: str) -> None:
    def refuse(n: int) -> None:
        raise ValueError(text)

    tasks = client.map(refuse, [1])
    tasks[0].wait(10)
    assert f"<td>{why}</td>" in tasks._repr_html_()
