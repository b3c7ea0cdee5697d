"""ServerList: the servers that an agent may dial."""

from __future__ import annotations

from pathlib import Path

from oncue.endpoint.agent.servers import ServerAddress, ServerList
from oncue.endpoint.settings import EndpointSettings, resolve_server


def test_servers_are_remembered_and_picked_in_turn(tmp_path: Path) -> None:
    settings = EndpointSettings(id="ep", name="e", bridge="tcp://home:1", server_key="h" * 40)
    servers = ServerList(tmp_path / "servers.json", lambda: resolve_server(settings))
    home = ServerAddress("tcp://home:1", "h" * 40)
    a, b = ServerAddress("tcp://a:1", "a" * 40), ServerAddress("tcp://b:1", "b" * 40)
    assert [servers.pick(), servers.pick()] == [home, home]
    assert not servers.has_several()
    servers.remember([(a.bridge, a.key), (home.bridge, home.key), (b.bridge, b.key)])
    again = ServerList(tmp_path / "servers.json", lambda: resolve_server(settings))
    assert again.has_several()
    assert [again.pick() for _ in range(4)] == [home, a, b, home]
    assert again.pick(b.bridge, b.key) == b
    assert again.pick() == home
    (tmp_path / "servers.json").write_text("not a list")
    assert ServerList(tmp_path / "servers.json", lambda: resolve_server(settings)).pick() == home
