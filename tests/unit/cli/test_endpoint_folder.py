"""Names and hosts of endpoints' folders."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from oncue.cli.endpoint.folder import folder_of, last_lines, other_host
from oncue.endpoint.folder_claim import FolderClaim
from oncue.errors import Invalid


def test_an_endpoints_name_leads_to_its_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_DATA", str(tmp_path))

    assert folder_of(None, "lab") == tmp_path / "endpoints" / "lab"
    assert folder_of(str(tmp_path / "x"), "lab") == tmp_path / "x"
    for name in ("../lab", "/etc", "", ".", "a/b"):
        with pytest.raises(Invalid, match="is not an endpoint's name"):
            folder_of(None, name)


def test_the_host_of_another_machines_agent_is_named(tmp_path: Path) -> None:
    assert other_host(tmp_path) == ""
    FolderClaim(tmp_path, socket.gethostname(), b"a" * 8)
    assert other_host(tmp_path) == ""
    (tmp_path / "claim.json").unlink()
    FolderClaim(tmp_path, "login2", b"b" * 8)
    assert other_host(tmp_path) == "login2"


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    assert last_lines(path, 5) == ""
    path.write_text("".join(f"line {n}\n" for n in range(10_000)))

    assert last_lines(path, 2) == "line 9998\nline 9999"
    assert last_lines(path, 5, since=path.stat().st_size) == ""
