"""Measure the whole system on Apache Kafka and on the embedded log in one run.

The broker is a real one and shares this machine's cores.

    python -m bench kafka

Needs Java 17 and Maven, as the tests do. ONCUE_BENCH_KAFKA=host:port names a running broker.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import log, system
from tests.kafka.broker import Broker


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Yield the address of a broker."""
    if given := os.environ.get("ONCUE_BENCH_KAFKA"):
        yield given
        return
    with tempfile.TemporaryDirectory(
        dir=os.environ.get("ONCUE_BENCH_DIR", "/var/tmp"), prefix="oncue-bench-kafka-"
    ) as folder:
        found = Broker(Path(folder), heap_mb=1024, lasting=True).start()
        try:
            yield found.address
        finally:
            found.kill()


def run(quick: bool = False) -> dict[str, Any]:
    """Return the figures of `kafka` and `embedded`, and their `ratio`."""
    with broker() as address:
        found: dict[str, Any] = {}
        for name, url in (("embedded", ""), ("kafka", f"kafka://{address}?prefix=bench{os.getpid()}.")):
            with system.running(log_url=url) as r:
                part: dict[str, Any] = {"start_s": round(r.start_s, 2)}
                # Bursts first: the Java code of a fresh broker is not compiled yet, which doubles
                # the time of each append.
                part["throughput"] = system.throughput(r, repeats=3 if quick else 7)
                part["latency"] = system.latency(r, 300)
                part["file"] = system.file_latency(r, 30 if quick else 100)
                part["sustained"] = system.sustained(r, 100_000 if quick else 500_000)
                found[name] = part
        found["log"] = log.compare(2.0 if quick else 5.0, f"kafka://{address}?prefix=benchlog{os.getpid()}.")
    found["ratio"] = {
        "burst": _ratio(found, "throughput", "burst_per_s"),
        "sustained": _ratio(found, "sustained", "per_s"),
        "latency": _ratio(found, "latency", "p50_ms"),
        "file": _ratio(found, "file", "p50_ms"),
    }
    return found


def _ratio(found: dict[str, Any], part: str, figure: str) -> float:
    return round(float(found["kafka"][part][figure]) / float(found["embedded"][part][figure]), 2)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
