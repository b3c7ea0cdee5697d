"""check_readiness: notices of a file -> ready or not."""

from __future__ import annotations

import msgspec
import pytest

from oncue.triggers.file.options import FileOptions, FileSpec, read_options
from oncue.triggers.file.readiness import (
    BUSY,
    FALLBACK_S,
    READY,
    SKIPPED,
    STABILIZING,
    UNKNOWN_S,
    WRITTEN_S,
    check_readiness,
)
from oncue.triggers.file.watch.base import CHANGED, CLOSED, FOUND, RENAMED, SOURCE_CLOSED


def spec(**options: object) -> FileSpec:
    return read_options("detector", msgspec.convert({"path": "/data", **options}, FileOptions))


BOTH = {"close_write": True, "rename": True}
CLOSE, RENAME = {"close_write": True}, {"rename": True}
STABLE = {"stable": "3s"}
ANY_STABLE = {"any": ["close_write", "rename"], "stable": "3s"}

TABLE = [
    # ready, notices, open for writing, readiness, seconds
    (None, CLOSED, None, READY, 0),
    (None, RENAMED, True, BUSY, 0),
    (None, FOUND, False, READY, 0),
    (None, FOUND, True, BUSY, 0),
    (None, FOUND, None, STABILIZING, FALLBACK_S),
    (None, FOUND | CLOSED, True, BUSY, 0),
    (None, CLOSED, True, BUSY, 0),
    (None, CHANGED, None, STABILIZING, FALLBACK_S),
    (CLOSE, CLOSED, None, READY, 0),
    (CLOSE, RENAMED, False, SKIPPED, 0),
    (CLOSE, RENAMED, True, BUSY, 0),
    (CLOSE, RENAMED | CLOSED, None, READY, 0),
    (RENAME, CLOSED, None, SKIPPED, 0),
    (RENAME, RENAMED, None, READY, 0),
    (BOTH, CLOSED, None, SKIPPED, 0),
    (BOTH, RENAMED, False, READY, 0),
    (BOTH, RENAMED, True, BUSY, 0),
    (BOTH, RENAMED, None, STABILIZING, FALLBACK_S),
    (BOTH, RENAMED | CLOSED, None, READY, 0),
    (STABLE, CLOSED, None, STABILIZING, 3),
    (STABLE, FOUND, True, STABILIZING, 3),
    (ANY_STABLE, CLOSED, None, STABILIZING, 3),
    (ANY_STABLE, FOUND, False, STABILIZING, 3),
    (ANY_STABLE, FOUND, None, STABILIZING, 3),
    (ANY_STABLE, FOUND, True, BUSY, 0),
]


@pytest.mark.parametrize(("ready", "bits", "writing", "readiness", "seconds"), TABLE)
def test_check_readiness(ready: object, bits: int, writing: bool | None, readiness: str, seconds: float) -> None:
    options = {} if ready is None else {"ready": ready}
    found = check_readiness(spec(**options), bits, lambda: writing)
    assert found[:2] == (readiness, seconds)
    assert bool(found[2]) is (readiness != READY)


@pytest.mark.parametrize(
    ("bits", "changed", "readiness", "seconds"),
    [
        (CLOSED, False, READY, 0),
        (RENAMED | SOURCE_CLOSED, False, READY, 0),
        (RENAMED, False, STABILIZING, FALLBACK_S),
        (FOUND, False, STABILIZING, UNKNOWN_S),
        (FOUND, True, STABILIZING, WRITTEN_S),
        (FOUND | CLOSED, True, READY, 0),
    ],
)
def test_a_file_of_another_user_waits_for_the_close_that_is_heard(
    bits: int, changed: bool, readiness: str, seconds: float
) -> None:
    found = check_readiness(spec(), bits, lambda: None, hears_closes=True, changed=changed)
    assert found[:2] == (readiness, seconds)


@pytest.mark.parametrize(("ready", "bits"), [(None, FOUND), (None, CLOSED), (ANY_STABLE, CLOSED)])
@pytest.mark.parametrize(("writing", "readiness"), [(True, BUSY), (False, READY), (None, READY)])
def test_a_file_that_was_unchanged_for_long_enough_may_not_be_open_either(
    ready: object, bits: int, writing: bool | None, readiness: str
) -> None:
    options = {} if ready is None else {"ready": ready}
    found = check_readiness(spec(**options), bits, lambda: writing, hears_closes=True, waited=True)
    assert found[0] == readiness
