"""Real Kafka for all tests that want it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gridengine.cell import Cell
from tests.kafka import shared
from tests.kafka.broker import Broker, Cluster
from tests.kubernetes.cluster import Cluster as KubernetesCluster
from tests.services import Impossible, Missing, missing
from tests.slurm.cluster import Cluster as SlurmCluster


@contextlib.contextmanager
def or_skipped(service: str = "Kafka") -> Iterator[None]:
    """Where a service cannot run the test is skipped, with the remedy; in CI that is a failure."""
    try:
        yield
    except Impossible as e:
        pytest.skip(f"no {service}: {e}")
    except Missing as e:
        missing(f"no {service}: {e}")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, data folder) of the broker of this test run. ONCUE_TEST_KAFKA names one that runs already."""
    if given := os.environ.get("ONCUE_TEST_KAFKA"):
        yield given, os.environ.get("ONCUE_TEST_KAFKA_DATA", "")
        return
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with or_skipped():
        found = shared.join(folder)
    yield found
    shared.leave(folder)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Starts a broker of the test's own, which the test may kill."""
    brokers: list[Broker] = []

    def start(**options: object) -> Broker:
        with or_skipped():
            broker = Broker(tmp_path / f"broker{len(brokers)}", **options)  # type: ignore[arg-type]
            brokers.append(broker)
            return broker.start()

    yield start
    for broker in brokers:
        broker.kill()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes of the test's own."""
    cluster = Cluster(tmp_path / "cluster")
    try:
        with or_skipped():
            yield cluster.start()
    finally:
        cluster.kill()


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The Slurm of this test process: two nodes of four cores. Tests use `slurm`."""
    with or_skipped("Slurm"):
        cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Slurm with idle nodes, whose commands this process and its children find.

    What the test breaks is mended afterwards, and its jobs are ended.
    """
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environ[name])
    yield slurm_cluster
    slurm_cluster.mend()


@pytest.fixture(scope="session")
def gridengine_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """The Grid Engine of this test process: one host of four slots. Tests use `gridengine`."""
    with or_skipped("Grid Engine"):
        cell = Cell(tmp_path_factory.mktemp("gridengine"))
    try:
        yield cell.start()
    finally:
        cell.stop()


@pytest.fixture
def gridengine(gridengine_cell: Cell) -> Iterator[Cell]:
    """Grid Engine, whose jobs are ended after the test. `environ` is for its commands."""
    yield gridengine_cell
    gridengine_cell.mend()


@pytest.fixture(scope="session")
def kubernetes_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesCluster]:
    """The Kubernetes of this test process, if `make kubernetes` has built it. Tests use `kubernetes`."""
    try:
        cluster = KubernetesCluster(tmp_path_factory.mktemp("kubernetes"))
    except Missing as e:  # in CI too: it takes long to build
        pytest.skip(str(e))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def kubernetes(kubernetes_cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesCluster]:
    """Kubernetes without jobs, whose kubectl this process and its children find."""
    for name in ("KUBECONFIG", "PATH"):
        monkeypatch.setenv(name, kubernetes_cluster.environ[name])
    yield kubernetes_cluster
    kubernetes_cluster.mend()
