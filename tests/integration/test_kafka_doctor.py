"""`oncue doctor` examines a real cluster and reports faults with remedies."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from oncue.config import Settings
from oncue.log import Finding, Record, Topic, open_log
from oncue.log.kafka.doctor.run import examine
from tests.conftest import or_skipped
from tests.e2e.running import System
from tests.kafka.broker import Broker, Cluster
from tests.kafka.secured import PASSWORD, secured_broker
from tests.ports import free_port

TOPICS = {"oncue.events": Topic(partitions=2, retention_ms=86_400_000), "oncue.registry": Topic(compact=True)}
GROUPS = {"rules": ["oncue.events"]}


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"d{abs(hash(tmp_path))}."


def examine_cluster(
    rest: str,
    settings: Settings | None = None,
    topics: Mapping[str, Topic] = TOPICS,
    now: Callable[[], float] = time.time,
) -> dict[str, Finding]:
    found = asyncio.run(examine(rest, settings or Settings(), topics, GROUPS, now))
    assert all(f.remedy for f in found if not f.ok)
    failed = {f.check: f for f in found if not f.ok}
    return {f.check: f for f in found} | failed


def failed_checks(found: Mapping[str, Finding]) -> set[str]:
    return {f.check for f in found.values() if not f.ok}


async def _filled(url: str) -> None:
    log = await open_log(url)
    await log.ensure(TOPICS | {"oncue.tasks.one": Topic()})
    await log.append("oncue.events", [Record(b"x", b"k")])
    await log.close()


def test_a_healthy_cluster_passes_all_checks(kafka: tuple[str, str], prefix: str) -> None:
    rest = f"{kafka[0]}?prefix={prefix}"
    found = examine_cluster(rest)
    assert not failed_checks(found)
    assert "first start" in found["kafka topics"].found

    async def read() -> None:
        log = await open_log(f"kafka://{rest}")
        reader = log.read(["oncue.events"], group="rules")
        await log.commit("rules", await reader.next())
        await log.close()

    asyncio.run(_filled(f"kafka://{rest}"))
    asyncio.run(read())
    found = examine_cluster(rest)
    assert not failed_checks(found)
    assert "Kafka 4." in found[f"kafka {kafka[0]}"].found
    assert found[f"topic {prefix}oncue.events"].found == "partitions: 2, copies: 1, kept 1 days"
    assert found[f"topics {prefix}oncue.tasks.*"].found == "1 of endpoints' tasks"
    assert found["kafka clock"].found.endswith("0 s from ours")
    assert found[f"group {prefix}rules"].found == "records to go: 0, members: 0"


def test_different_clocks_are_reported(kafka: tuple[str, str], prefix: str) -> None:
    found = examine_cluster(f"{kafka[0]}?prefix={prefix}", now=lambda: time.time() - 100)
    assert failed_checks(found) == {"kafka clock"}
    assert "differs by 100 s" in found["kafka clock"].found
    assert "NTP" in found["kafka clock"].remedy


def test_wrong_topic_settings_and_unread_records_are_reported(kafka: tuple[str, str], prefix: str) -> None:
    async def alter_topics() -> None:
        await _filled(f"kafka://{kafka[0]}?prefix={prefix}")
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka[0])
        await admin.start()
        theirs = {
            "retention.ms": "1000",
            "cleanup.policy": "delete",
            "max.message.bytes": "1000",
            "unclean.leader.election.enable": "true",
        }
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}oncue.registry", theirs)])
        await admin.create_partitions({f"{prefix}oncue.tasks.one": NewPartitions(2)})
        await admin.close()

    asyncio.run(alter_topics())
    wanted = TOPICS | {"oncue.events": Topic(partitions=4, retention_ms=86_400_000), "oncue.dead": Topic()}
    rest = f"{kafka[0]}?prefix={prefix}"
    texts = [(f.check, f.found, f.remedy) for f in asyncio.run(examine(rest, Settings(), wanted, GROUPS)) if not f.ok]
    found = {(check.removeprefix(f"topic {prefix}"), text.partition(":")[0]): remedy for check, text, remedy in texts}
    registry = next(t for c, t, r in texts if c.endswith("registry") and "retention" in t)
    assert "retention.ms is 1000, not -1" in registry
    assert "cleanup.policy is delete, not compact" in registry
    assert "max.message.bytes is 1000" in registry
    assert "kafka-configs.sh" in next(r for c, t, r in texts if t == registry)
    assert any("unclean.leader.election.enable is true" in t for _, t, _ in texts)
    assert "adds them" in found["oncue.events", "has partitions"]
    assert ("oncue.dead", "is not there, others are") in found
    group = next((t, r) for c, t, r in texts if c == f"group {prefix}rules")
    assert group[0] == "records to go: 1, members: 0"
    assert "oncue up" in group[1]


def test_an_unreachable_broker_is_reported(own: Callable[..., Broker]) -> None:
    broker, nobody = own(), free_port()
    found = examine_cluster(f"{broker.address},127.0.0.1:{nobody},nowhere.invalid:9092")
    assert failed_checks(found) == {f"kafka 127.0.0.1:{nobody}", "kafka nowhere.invalid:9092"}
    assert "nothing listens" in found[f"kafka 127.0.0.1:{nobody}"].found
    assert "is not known" in found["kafka nowhere.invalid:9092"].found
    assert found[f"kafka {broker.address}"].ok
    found = examine_cluster(f"127.0.0.1:{nobody}")
    assert [*found] == [f"kafka 127.0.0.1:{nobody}"]


def test_a_stopped_broker_of_three_is_reported(three: Cluster) -> None:
    async def make() -> None:
        log = await open_log(f"kafka://{three.address}")
        await log.ensure(TOPICS)
        await log.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=three.address)
        await admin.start()
        await admin.create_topics([NewTopic("oncue.tasks.thin", 1, 1)])
        await admin.close()

    asyncio.run(make())
    away = three.nodes[2]
    away.kill()
    rest = three.nodes[0].address  # the cluster's metadata names the others

    def shrunk() -> list[Finding]:
        end = time.monotonic() + 60
        while True:  # until the cluster has noticed
            found = asyncio.run(examine(rest, Settings(), TOPICS, GROUPS))
            if any("missing or behind" in f.found for f in found) or time.monotonic() > end:
                return found

    found = shrunk()
    assert any("is broker 3 up" in f.remedy for f in found if f.check == "topic oncue.events")
    thin = " ".join(f.found for f in found if f.check == "topic oncue.tasks.thin")
    assert "copies: 1, not 2" in thin
    assert any(f.check.startswith("kafka broker 2 ") and f.ok for f in found)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Path]]:
    with or_skipped(), secured_broker(tmp_path_factory.mktemp("secured")) as found:
        yield found


def _as(folder: Path, **given: str) -> Settings:
    whole = {"kafka_ca_file": str(folder / "cert.pem"), "kafka_sasl": "PLAIN", "kafka_user": "oncue"} | given
    return Settings(**{"kafka_password": PASSWORD} | {n: v for n, v in whole.items() if v})  # type: ignore[arg-type]


def test_login_failures_are_explained(secured: tuple[Broker, Path], tmp_path: Path) -> None:
    broker, folder = secured
    rest = f"{broker.listener('SAFE')}?prefix=c."
    assert not failed_checks(examine_cluster(rest, _as(folder)))
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout k.pem -out other.pem"
    subprocess.run(["openssl", *request.split()], cwd=tmp_path, capture_output=True, check=True)
    for settings, text, remedy in [
        (_as(folder, kafka_password="wrong"), "does not let the user 'oncue' in", "kafka_password_file"),
        (_as(folder, kafka_sasl="SCRAM-SHA-512", kafka_user="nobody"), "does not let", "kafka_user"),
        (_as(folder, kafka_ca_file=str(tmp_path / "other.pem")), "not trusted", "kafka_ca_file"),
        (Settings(kafka_ca_file=str(folder / "cert.pem")), "", "kafka_sasl"),
        (Settings(), "", "TLS"),
    ]:
        found = examine_cluster(rest, settings)
        ((_, finding),) = found.items()
        assert not finding.ok
        assert text in finding.found
        assert remedy in finding.remedy
    found = examine_cluster(broker.address, Settings(kafka_tls=True))
    assert "closed the connection" in found[f"kafka {broker.address}"].found
    assert "or none of these" in found[f"kafka {broker.address}"].remedy
    found = examine_cluster(broker.address, Settings(kafka_sasl="PLAIN", kafka_user="oncue", kafka_password=PASSWORD))
    assert failed_checks(found) == {f"kafka {broker.address}"}


def test_missing_permissions_are_reported_as_acls(secured: tuple[Broker, Path]) -> None:
    broker, folder = secured
    rest = f"{broker.listener('SAFE')}?prefix=c."
    findings = asyncio.run(examine(rest, _as(folder, kafka_user="weak"), TOPICS, GROUPS))
    lacking = [f for f in findings if f.check == "kafka ACLs"]
    assert [f.ok for f in lacking] == [False] * 3
    assert "--allow-principal User:weak --operation Read --operation Write" in lacking[0].remedy
    assert "--topic 'c.' --resource-pattern-type prefixed" in lacking[0].remedy
    assert "--group" in lacking[1].remedy
    assert "--transactional-id" in lacking[2].remedy
    assert next(f for f in findings if f.check == "kafka clock").found.startswith(
        "unknown: reading it requires Describe"
    )


def test_the_doctor_command(kafka: tuple[str, str], prefix: str, tmp_path: Path) -> None:
    system = System(tmp_path, ONCUE_LOG=f"kafka://{kafka[0]}?prefix={prefix}", ONCUE_PORT="0", ONCUE_TASK_TOPICS="2")
    found = {f["check"]: f for f in system.json("doctor", code=1)}
    assert [c for c, f in found.items() if not f["ok"]] == ["url"], "no server runs"
    assert found[f"kafka {kafka[0]}"]["ok"]
    try:
        system.up("--workers", "1")
        found = {f["check"]: f for f in system.json("doctor")}
        for topic in ("events", "results", "control", "registry", "matches", "windows", "stream"):
            assert found[f"topic {prefix}oncue.{topic}"]["ok"]
        assert found[f"topics {prefix}oncue.tasks.*"]["found"] == "2 of endpoints' tasks"
        assert found[f"group {prefix}rules"]["found"].endswith("members: 1")
    finally:
        system.end()
    output = system.oncue("doctor", "--log", f"kafka://127.0.0.1:{free_port()}", code=1).stdout
    assert "WRONG kafka 127.0.0.1" in output
    assert "→ is the broker up" in output
