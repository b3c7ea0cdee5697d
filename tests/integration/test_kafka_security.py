"""TLS and SASL against a real broker's listener."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.config import Settings
from oncue.errors import Invalid, LogError
from oncue.log import Record, Topic, open_log
from tests.conftest import or_skipped
from tests.kafka.broker import Broker
from tests.kafka.secured import PASSWORD, secured_broker, token


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Path]]:
    with or_skipped(), secured_broker(tmp_path_factory.mktemp("secured")) as found:
        yield found


async def _works(url: str, settings: Settings) -> None:
    log = await open_log(url, settings)
    await log.ensure({"a": Topic()})
    position = (await log.append("a", [Record(b"x")]))[0]
    reader = log.read(["a"], start={("a", 0): position.first})
    assert (await reader.next())[0].records[0].value == b"x"
    batches = await log.read(["a"], group="g").next()
    await log.commit("g", batches)
    await log.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "token file", "token command"])
def test_each_sasl_mechanism_works(secured: tuple[Broker, Path], mechanism: str, tmp_path: Path) -> None:
    broker, folder = secured
    base: dict[str, str] = {"kafka_ca_file": str(folder / "cert.pem")}
    (tmp_path / "secret").write_text(token("oncue") if "token" in mechanism else PASSWORD + "\n")
    if mechanism == "token file":
        base |= {"kafka_sasl": "oauthbearer", "kafka_token_file": str(tmp_path / "secret")}
    elif mechanism == "token command":
        base |= {"kafka_sasl": "OAUTHBEARER", "kafka_token_command": f"cat {tmp_path / 'secret'}"}
    else:
        base |= {"kafka_sasl": mechanism, "kafka_user": "oncue", "kafka_password_file": str(tmp_path / "secret")}
    url = f"kafka://{broker.listener('SAFE')}?prefix={mechanism.replace(' ', '-').lower()}."
    asyncio.run(_works(url, Settings(**base)))  # type: ignore[arg-type]


def test_a_wrong_password_is_refused(secured: tuple[Broker, Path]) -> None:
    broker, folder = secured
    settings = Settings(
        kafka_ca_file=str(folder / "cert.pem"), kafka_sasl="PLAIN", kafka_user="oncue", kafka_password="wrong"
    )
    with pytest.raises(LogError):
        asyncio.run(open_log(f"kafka://{broker.listener('SAFE')}", settings))


def test_missing_permissions_name_the_acls_required(secured: tuple[Broker, Path]) -> None:
    broker, folder = secured
    settings = Settings(
        kafka_ca_file=str(folder / "cert.pem"), kafka_sasl="PLAIN", kafka_user="weak", kafka_password=PASSWORD
    )

    async def main() -> None:
        log = await open_log(f"kafka://{broker.listener('SAFE')}?prefix=w.", settings)
        try:
            await log.ensure({"a": Topic()})
        finally:
            await log.close()

    with pytest.raises(LogError) as found:
        asyncio.run(main())
    assert "ACLs" in found.value.remedy


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"kafka_user": "a"}, "kafka_sasl is not set"),
        ({"kafka_sasl": "MAGIC"}, "MAGIC"),
        ({"kafka_sasl": "PLAIN", "kafka_user": "a"}, "a name and a password"),
        ({"kafka_sasl": "PLAIN", "kafka_user": "a", "kafka_password_file": "/nowhere"}, "kafka_password_file"),
        ({"kafka_sasl": "OAUTHBEARER"}, "needs a token"),
        ({"kafka_ca_file": "/nowhere"}, "certificates"),
    ],
)
def test_contradictory_settings_are_refused(given: dict[str, str], text: str) -> None:
    with pytest.raises(Invalid, match=text) as found:
        asyncio.run(open_log("kafka://127.0.0.1:1", Settings(**given)))  # type: ignore[arg-type]
    assert found.value.remedy
