"""Discovery of the server and the token."""

from __future__ import annotations

from typing import Any

import pytest

from oncue import errors
from oncue.client import Client
from oncue.client.discovery import find_server
from tests.unit.client.client_server import Server, double


def test_no_server_is_known(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    with Client(data=tmp_path) as client, pytest.raises(errors.Unreachable, match="no server is known"):
        _ = client.me


def test_local_server_file(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    (tmp_path / "local.json").write_text(f'{{"url": "{server.url}", "token": "t", "pid": 1}}')
    with Client(data=tmp_path) as client:
        assert client.submit(double, 2).result(10) == 4


def test_local_token_is_not_sent_to_other_servers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    monkeypatch.delenv("ONCUE_TOKEN", raising=False)
    (tmp_path / "local.json").write_text('{"url": "http://127.0.0.1:1", "token": "secret", "pid": 1}')
    with pytest.raises(errors.Unauthorized, match=r"no token for the server at http://evil\.example"):
        find_server("http://evil.example", "", tmp_path)
    assert find_server("http://evil.example/", "mine", tmp_path) == ("http://evil.example", "mine")
    assert find_server("http://127.0.0.1:1/", "", tmp_path) == ("http://127.0.0.1:1", "secret")
    assert find_server("", "", tmp_path) == ("http://127.0.0.1:1", "secret")


def test_missing_token_names_the_setting(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_TOKEN", raising=False)
    monkeypatch.setenv("ONCUE_URL", "http://127.0.0.1:1")
    with Client(data=tmp_path) as client, pytest.raises(errors.Unauthorized) as caught:
        client.submit(double, 1)
    assert "ONCUE_TOKEN" in caught.value.remedy
    assert "token=" in caught.value.remedy
