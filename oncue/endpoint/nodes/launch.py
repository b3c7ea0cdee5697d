"""Command and environment of the process that a job starts on each node."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

import msgspec
import psutil

from oncue import curve
from oncue.clocks.process import now_us
from oncue.endpoint.agent.agent import Agent
from oncue.endpoint.nodes.addresses import AgentAddresses, read_addresses, write_addresses
from oncue.endpoint.nodes.block_secret import SECRET
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.listener import NodeListener
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.endpoint.options.options import NetworkOptions
from oncue.endpoint.pool.pinning import Pinning
from oncue.errors import Conflict, Invalid
from oncue.processes.descriptors import raise_descriptor_limit

ADDRESS_FILE, KEY_FILE = "nodes.json", "nodes.key"


class NodeLaunch(msgspec.Struct, frozen=True):
    """Settings that all nodes of an endpoint get."""

    found: AgentAddresses
    address_file: Path
    python: str = sys.executable  # on the nodes
    arguments: tuple[str, ...] = ()  # further ones of oncue.endpoint.node

    def command(self, block: str, workers: int) -> str:
        """Return the command of each node, for a shell. `workers` 0: one for each core."""
        words = [self.python, "-P", "-m", "oncue.endpoint.node", "--block", block, "--workers", str(workers)]
        for address in self.found.addresses:
            words += ["--agent", address]
        # With "=": a key in Z85 may begin with "-".
        words += [f"--agent-key={self.found.key}", "--address-file", str(self.address_file), *self.arguments]
        return shlex.join(words)

    def environment(self, secret: bytes) -> dict[str, str]:
        """Return the variables of the job's script: the secret key of its block."""
        return {SECRET: secret.decode()}


def pinning_arguments(pinning: Pinning | None) -> tuple[str, ...]:
    """Return the arguments of oncue.endpoint.node that pin its workers."""
    if pinning is None:
        return ()
    return ("--pin", pinning.kind, "--worker-cores", str(pinning.cores), "--worker-gpus", str(pinning.gpus))


def open_nodes(folder: Path, agent: Agent, network: NetworkOptions) -> tuple[PoolSet, NodeLaunch]:
    """Listen for nodes, and write the address where nodes look for it.

    The port is that of before, if it is free, so that nodes without this folder find a restarted
    agent. Raises Invalid (the network), OSError (the folder).
    """
    raise_descriptor_limit()
    file = folder / ADDRESS_FILE
    keys = curve.load_or_make_keys(folder / KEY_FILE)
    listener = _listen(keys, network, read_addresses(file))
    try:
        addresses = tuple(curve.address(host, listener.port) for host in hosts(network))
        found = AgentAddresses(addresses, keys.public.decode())
        write_addresses(file, found)
        pools = PoolSet(
            listener, DiskContent(agent.functions.get, folder / "blobs"), agent.claim, agent.nodes, now_us()
        )
    except BaseException:
        listener.close()
        raise
    return pools, NodeLaunch(found, file.absolute())


def _listen(keys: curve.Keys, network: NetworkOptions, former: AgentAddresses | None) -> NodeListener:
    """Listen on the address that was asked for; without one, on all of them.

    Raises Conflict if the port that was asked for is taken, Invalid as `hosts`.
    """
    host = hosts(network)[0] if network.interface or _is_here(network.address) else ""
    if not network.port and former is not None and former.addresses:
        try:
            return NodeListener(keys, host, int(former.addresses[0].rpartition(":")[2]))
        except (Conflict, ValueError):
            pass
    return NodeListener(keys, host, network.port)


def hosts(network: NetworkOptions) -> list[str]:
    """Return names and addresses of this machine for nodes, the best first.

    Raises Invalid if there is no such interface, or it has no address.
    """
    if network.address:
        return [network.address]
    if not network.interface:
        name = socket.gethostname()
        return list(dict.fromkeys([*_addresses_of(name), name]))
    interfaces = psutil.net_if_addrs()
    if network.interface not in interfaces:
        raise Invalid(
            f"network.interface: there is no {network.interface}",
            remedy=f"this machine has {', '.join(sorted(interfaces))}",
        )
    found = [a.address.partition("%")[0] for f in (socket.AF_INET, socket.AF_INET6)
             for a in interfaces[network.interface] if a.family == f]  # fmt: skip
    if not found:
        raise Invalid(
            f"network.interface: {network.interface} has no IP address",
            remedy="name another one, or give network.address",
        )
    return found


def _is_here(address: str) -> bool:
    """Return True if an interface of this machine has this address."""
    return any(a.address == address for found in psutil.net_if_addrs().values() for a in found)


def _addresses_of(name: str) -> list[str]:
    """Return the addresses of this machine's name, loopback ones last."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return []
    return sorted(found, key=lambda a: (a.startswith("127.") or a == "::1", ":" in a, a))
