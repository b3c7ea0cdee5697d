"""Measure large arguments and results, beside a ProcessPool.

A round trip sends a new array and gets it back. The two take turns, so that a change of the
machine's speed is in both. oncue stores both ways durably; the pool stores nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from bench.system import running

MB = 1_000_000
PATIENCE_S = 300.0


def same(array: Any) -> Any:
    return array


def first(array: Any, _n: int) -> float:
    return float(array[0])


def run(size_mb: int = 200, times: int = 5) -> dict[str, Any]:
    """Return {round_trip_s, pool_round_trip_s, ratio, five_calls_s ...}."""
    array = np.random.default_rng(1).random(size_mb * MB // 8)
    with running() as oncue, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        client = oncue.client
        trips: dict[str, Callable[[], Any]] = {
            "pool_round_trip_s": lambda: pool.submit(same, array).result(),
            "round_trip_s": lambda: client.submit(same, array).result(PATIENCE_S),
        }
        took: dict[str, list[float]] = {name: [] for name in trips}
        for n in range(times + 1):  # the first one warms up
            for name, trip in trips.items():
                array[0] = n  # a new array: nothing of it is stored yet
                began = time.perf_counter()
                found = trip()
                took[name].append(time.perf_counter() - began)
                if found.shape != array.shape or found[0] != n:
                    raise AssertionError("an array came back changed")
        medians = {name: statistics.median(each[1:]) for name, each in took.items()}
        array[0] = -1
        began = time.perf_counter()
        values = client.gather([client.submit(first, array, n) for n in range(5)], PATIENCE_S)
        five_s = time.perf_counter() - began
        shared = client.put(array)
        began = time.perf_counter()
        values += client.gather([client.submit(first, shared, n) for n in range(50)], PATIENCE_S)
        fifty_s = time.perf_counter() - began
        if set(values) != {-1.0}:
            raise AssertionError("a value is wrong")
    ratio = medians["round_trip_s"] / medians["pool_round_trip_s"]
    return {"size_mb": size_mb, "ratio": ratio, "five_calls_s": five_s, "fifty_refs_s": fifty_s} | medians
