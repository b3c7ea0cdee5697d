"""`oncue stream` on a broker with TLS and authentication.

Faust's consumer gets the same client settings as the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import or_skipped
from tests.integration.embedded_site import record, rule
from tests.integration.stream_site import PARTITIONS, stream_site
from tests.kafka.broker import Broker
from tests.kafka.secured import PASSWORD, secured_broker, token


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Path]]:
    with or_skipped(), secured_broker(tmp_path_factory.mktemp("secured")) as found:
        yield found


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("SAFE", "SCRAM-SHA-512"), ("SAFE", "oauthbearer"), ("BARE", "plain"), ("TLS", "")],
)
def test_a_worker_runs_stateful_rules_on_a_secured_broker(
    secured: tuple[Broker, Path], tmp_path: Path, listener: str, mechanism: str
) -> None:
    broker, folder = secured
    kafka = {"kafka_sasl": mechanism}
    if listener != "BARE":
        kafka["kafka_ca_file"] = str(folder / "cert.pem")
    secret = tmp_path / "secret"
    if mechanism == "oauthbearer":
        secret.write_text(token("oncue"))
        kafka["kafka_token_file"] = str(secret)
    elif mechanism:
        secret.write_text(PASSWORD)
        kafka |= {"kafka_user": "oncue", "kafka_password_file": str(secret)}

    async def main() -> None:
        async with stream_site(broker.listener(listener), tmp_path, **kafka) as site:
            await site.deploy(rule(batch={"key": "${data.k}", "count": 3}))
            worker = await site.start()
            assert await worker.placed() == list(range(PARTITIONS))
            await site.emit(*(record(n, k=n % 2) for n in range(7)))
            await site.settled()
            fired = await site.fired()
            assert sorted(args["n"] for args in fired.values()) == [[0, 2, 4], [1, 3, 5]]
            await site.counted_once(7)
            assert await worker.stop() == 0

    asyncio.run(main())
