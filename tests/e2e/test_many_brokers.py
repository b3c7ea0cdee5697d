"""Several servers on a Kafka of three brokers, of which one is killed, stopped and continued."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.many import many_servers
from tests.e2e.test_many_servers import slow_double
from tests.kafka.broker import Cluster


def test_a_broker_of_three_is_killed_and_another_is_stopped(three: Cluster, tmp_path: Path) -> None:
    with many_servers(tmp_path, three.address, 2) as many:
        a, b = many.servers
        for name in ("e1", "e2"):
            many.endpoint(name, a)
        with a.client() as at_a, b.client() as at_b:
            waves = [c.map(slow_double, range(200), endpoint=e) for c in (at_a, at_b) for e in ("e1", "e2")]
            assert waves[0][0].result(60) == 0
            three.nodes[2].kill()
            waves += [c.map(slow_double, range(100), endpoint=e) for c in (at_a, at_b) for e in ("e1", "e2")]
            assert at_b.gather(waves[-1], 120) == [2 * n for n in range(100)]
            three.nodes[2].start()
            three.nodes[1].pause()
            many.pass_session(3.0)
            three.nodes[1].resume()
            for tasks in waves:
                assert at_a.gather(tasks, 120) == [2 * n for n in range(len(tasks))]
        many.agree(4 * 300)
