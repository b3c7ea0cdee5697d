"""Shell functions and resources on nodes: files travel by the agent to the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.functions import shell
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import files_of, pack_args
from oncue.protocol.records import OK, REFUSED, Failure
from tests.integration.node_site import NodeSite
from tests.integration.test_agent import by_id

SCRIPT = "seq 200000; echo ${x} > out.txt; echo gone >&2; exit ${code}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[NodeSite]:
    site = NodeSite(tmp_path)
    for packed in (
        shell(SCRIPT, name="count", outputs=["*.txt"]),
        shell("true", name="wide", resources={"cores": 100_000}),
    ):
        site.bridge.functions[packed.id] = packed
    yield site
    site.close()


def test_streams_and_outputs_of_a_node_arrive_at_the_server(site: NodeSite) -> None:
    site.start_agent()
    site.start_node("b1")

    site.dispatch_payload("count", 1, pack_args((), {"x": "$(id)", "code": 0}))
    site.dispatch_payload("count", 2, pack_args((), {"x": "y", "code": 75}))
    site.bridge.until(lambda: len(site.bridge.ended) == 2)

    good, bad = (by_id(site.bridge.ended)[n] for n in (1, 2))
    failure = decode(Failure, bad.value)
    assert (good.status, failure.exit_code) == (OK, 75)
    files = {f.name: site.bridge.blobs[f.sha256] for f in files_of(good.value)}
    stdout = "".join(f"{n}\n" for n in range(1, 200_001)).encode()
    assert files == {"out.txt": b"$(id)\n", "stdout": stdout, "stderr": b"gone\n"}
    assert {f.name: f.sha256 for f in failure.files}["stdout"] == hashlib.sha256(stdout).hexdigest()
    assert len(encode(good)) < 200_000


def test_a_node_refuses_what_can_never_fit_on_it(site: NodeSite) -> None:
    site.start_agent()
    site.start_node("b1")

    site.dispatch_payload("wide", 1, pack_args((), {}))
    site.bridge.until(lambda: len(site.bridge.ended) == 1)

    (ended,) = site.bridge.ended
    assert ended.status == REFUSED
    assert "it needs 100000 cores" in decode(Failure, ended.value).message
