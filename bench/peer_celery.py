"""Celery's app for the comparison, imported in the peers' venv.

The environment names its Redis.
"""

from __future__ import annotations

import os

from celery import Celery

app = Celery("peer", broker=os.environ["ONCUE_BENCH_REDIS"], backend=os.environ["ONCUE_BENCH_REDIS"])


@app.task  # type: ignore[untyped-decorator]
def noop(x: int) -> int:
    return x
