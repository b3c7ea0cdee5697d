"""A full disk under the embedded log: a clear error, no loss, recovery.

Kafka's disks are not oncue's to manage.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from log_backends import Backend, read_exactly, records, values

from oncue.errors import DiskFull
from oncue.log import Topic

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def test_appends_to_a_full_disk_fail_and_work_again_once_there_is_space(backend: Backend, small_disk: Path) -> None:
    async def main() -> None:
        log = await backend.open(small_disk / "log")
        reader = log.read(["a"])
        await log.append("a", records("before"))
        ballast = small_disk / "other"
        accepted = [b"before"]
        with ballast.open("wb") as file:
            file.write(b"." * 8 * 1024 * 1024)
        refused = 0
        for n in range(200):
            value = b"%d|" % n + b"." * 200_000
            (found,) = await asyncio.gather(log.append("a", records(value)), return_exceptions=True)
            if isinstance(found, BaseException):
                assert isinstance(found, DiskFull)
                assert "full" in found.message
                assert found.remedy
                refused += 1
            else:
                accepted.append(value)
        assert refused > 5
        assert len(accepted) > 5
        ballast.unlink()
        await log.append("a", records("after"))
        accepted.append(b"after")
        seen = await read_exactly(reader, len(accepted))
        assert values(seen) == accepted
        assert [s[2] for s in seen] == list(range(len(accepted))), "refused appends leave no gap"
        await log.close()
        log = await backend.open(small_disk / "log")
        assert values(await read_exactly(log.read(["a"]), len(accepted))) == accepted
        await log.close()

    asyncio.run(main())


def test_a_large_append_that_does_not_fit_fails_alone(backend: Backend, small_disk: Path) -> None:
    async def main() -> None:
        log = await backend.open(small_disk / "log")
        small = [log.append("a", records(str(n))) for n in range(10)]
        large = log.append("a", records(b"." * 40_000_000))
        small += [log.append("a", records(str(n))) for n in range(10, 20)]
        with pytest.raises(DiskFull):
            await large
        assert [(await f)[0].first for f in small] == list(range(20))
        assert values(await read_exactly(log.read(["a"]), 20)) == [b"%d" % n for n in range(20)]
        await log.close()

    asyncio.run(main())


def test_retention_frees_space_on_a_full_disk(backend: Backend, small_disk: Path) -> None:
    async def main() -> None:
        log = await backend.open(small_disk / "log")
        await log.ensure({"a": Topic(retention_ms=1)})
        value = b"." * 100_000
        refused = False
        while not refused:
            (found,) = await asyncio.gather(log.append("a", records(value, time_ms=1)), return_exceptions=True)
            refused = isinstance(found, DiskFull)
            assert (await log.end_offsets(["a"]))[("a", 0)] < 400
        assert (await log.housekeep())["a"] > 0
        for n in range(20):
            await log.append("b", records(b"%d" % n + b"." * 100_000))
        assert len(await read_exactly(log.read(["b"]), 20)) == 20
        await log.close()

    asyncio.run(main())
