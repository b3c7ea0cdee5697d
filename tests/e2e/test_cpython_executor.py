"""CPython's tests of concurrent.futures pass against `client.executor()`; exclusions have a reason."""

from __future__ import annotations

import fnmatch
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import oncue
from tests.e2e.cpython import adapter
from tests.e2e.cpython.suite import copied, python_of
from tests.e2e.running import system_in

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(900)]
ROOT = Path(oncue.__file__).parents[1]
TRIES = 3  # the tests have times in them, which a slow machine may miss


class Site(NamedTuple):
    """A server, an endpoint of one version of Python, and CPython's tests of that version."""

    version: str
    python: str
    suite: Path
    env: dict[str, str]

    def run(self, *ids: str) -> dict[str, dict[str, str]]:
        done = subprocess.run(
            [self.python, ROOT / "tests" / "e2e" / "cpython" / "adapter.py", self.suite, *ids],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {line["id"]: line for line in map(json.loads, filter(None, done.stdout.splitlines()))}


@pytest.fixture(scope="module", params=["3.11", "3.13"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    version: str = request.param
    folder = tmp_path_factory.mktemp("cpython")
    python = python_of(version, folder / "venv")
    (folder / "suite").mkdir()
    suite = copied(version, python, folder / "suite")
    with system_in(folder, "--workers", "1") as system:
        system.await_connected()
        env = system.env | {
            "ONCUE_URL": system.local["url"],
            "ONCUE_TOKEN": system.local["token"],
            "ONCUE_TEST_ENDPOINT": "cpython",
            "PYTHONPATH": str(ROOT),
        }
        place = ("cpython", "--dir", str(folder / "endpoint"))
        _oncue(python, env, "endpoint", "register", *place, "--workers", "5")
        _oncue(python, env, "endpoint", "start", *place, "--detach")
        system.await_connected("cpython")
        yield Site(version, python, suite, env)
        _oncue(python, env, "endpoint", "stop", *place)


def _oncue(python: str, env: dict[str, str], *words: str) -> None:
    subprocess.run([python, "-m", "oncue", *words], env=env, check=True, capture_output=True, timeout=120)


def test_all_that_apply_pass(site: Site) -> None:
    found = site.run()
    for _ in range(TRIES - 1):
        failed = [name for name, line in found.items() if line["outcome"] == "failed"]
        if failed:
            found |= site.run(*failed)

    assert {name: line["why"] for name, line in found.items() if line["outcome"] == "failed"} == {}
    assert sum(line["outcome"] == "passed" for line in found.values()) >= 27
    skipped: dict[str, Any] = {name: line["why"] for name, line in found.items() if line["outcome"] == "skipped"}
    assert skipped == {}
    if site.version == "3.13":  # which has all the names
        names = list(found)
        assert [p for p in adapter.EXCLUDED if not fnmatch.filter(names, p)] == []
