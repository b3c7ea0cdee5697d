"""Run a Kafka broker for a developer until Ctrl-C (`make kafka`).

`python -m tests.kafka 3` starts three nodes.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from tests.kafka.broker import Broker, Cluster
from tests.services import Missing


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="oncue-kafka-") as folder:
        kafka = Cluster(Path(folder)) if sys.argv[1:] == ["3"] else Broker(Path(folder))
        try:
            kafka.start()
            print(
                f"Kafka runs at {kafka.address}\n\n  oncue up --log kafka://{kafka.address}\n\nCtrl-C ends it.",
                flush=True,
            )
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        except Missing as e:
            print(f"no Kafka: {e}", file=sys.stderr)
            return 1
        finally:
            kafka.kill()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    raise SystemExit(main())
