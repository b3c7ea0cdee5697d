"""Addresses under which nodes find their agent, and the command that starts them."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

import psutil
import pytest

from oncue.endpoint.nodes.addresses import AddressCycle, AgentAddresses, read_addresses, write_addresses
from oncue.endpoint.nodes.command import parser
from oncue.endpoint.nodes.launch import NodeLaunch, hosts, pinning_arguments
from oncue.endpoint.options.options import NetworkOptions
from oncue.endpoint.pool.pinning import Pinning
from oncue.errors import Invalid

KEY, OTHER = "k" * 40, "o" * 40


def loopback() -> str:
    return next(name for name, found in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in found))


def test_a_key_that_begins_with_a_hyphen_is_no_option(tmp_path: Path) -> None:
    key = "-" + KEY[1:]
    launch = NodeLaunch(AgentAddresses(("tcp://h:1",), key), tmp_path / "nodes.json")

    words = shlex.split(launch.command("b1", 2))

    assert parser().parse_args(words[words.index("oncue.endpoint.node") + 1 :]).agent_key == key


def test_an_interface_gives_its_addresses() -> None:
    assert hosts(NetworkOptions(interface=loopback()))[0] == "127.0.0.1"


def test_an_unknown_interface_is_named_with_those_that_there_are() -> None:
    with pytest.raises(Invalid) as e:
        hosts(NetworkOptions(interface="hsn9"))

    assert "hsn9" in e.value.message
    assert loopback() in str(e.value.remedy)


def test_the_host_name_is_one_of_the_addresses() -> None:
    assert socket.gethostname() in hosts(NetworkOptions())


def test_an_address_is_taken_as_it_is() -> None:
    assert hosts(NetworkOptions(address="login1.example.org")) == ["login1.example.org"]


def test_a_node_dials_the_address_file_first_and_then_what_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    cycle = AddressCycle(["tcp://old:1"], KEY, file)

    assert cycle.pick() == ("tcp://old:1", KEY.encode()), "there is no file yet"
    write_addresses(file, AgentAddresses(("tcp://new:1", "tcp://new:2"), OTHER))

    picked = {cycle.pick() for _ in range(3)}
    assert picked == {
        ("tcp://new:1", OTHER.encode()),
        ("tcp://new:2", OTHER.encode()),
        ("tcp://old:1", KEY.encode()),
    }


def test_a_damaged_address_file_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text('{"addresses": [')

    assert read_addresses(file) is None
    assert AddressCycle(["tcp://old:1"], KEY, file).pick() == ("tcp://old:1", KEY.encode())


def test_the_command_of_a_node_has_no_secret(tmp_path: Path) -> None:
    found = AgentAddresses(("tcp://a:1", "tcp://b:1"), KEY)
    launch = NodeLaunch(found, tmp_path / "a folder" / "nodes.json", arguments=pinning_arguments(Pinning("gpus", 4, 1)))

    words = shlex.split(launch.command("b1", 3))

    assert words[:4] == [sys.executable, "-P", "-m", "oncue.endpoint.node"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--agent"] == ["tcp://a:1", "tcp://b:1"]
    assert words[-6:] == ["--pin", "gpus", "--worker-cores", "4", "--worker-gpus", "1"]
    assert "secret" not in launch.command("b1", 3)
    assert launch.environment(b"secret") == {"ONCUE_NODE_SECRET": "secret"}
