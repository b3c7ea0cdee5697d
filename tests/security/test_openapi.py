"""Random requests made from the served OpenAPI document: none is answered with a 5xx, all as documented.

ONCUE_TEST_SEED=N tries others than CI does. A failure is shown as a curl command; for requests that only fail after
others, `--report-pytest-path` of the printed command writes a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.world import OWNER, World, world_in

EXAMPLES = 40  # for each of 50 operations, beside those at the limits of each schema
SEED = os.environ.get("ONCUE_TEST_SEED", "1")
# All others are made: of statuses, schemas, what is accepted and what is refused.
LEFT_OUT = ("ensure_resource_availability", "use_after_free", "object_level_authorization")
CONFIG = Path(__file__).with_name("schemathesis.toml")
ENDLESS = ("/v1/live", "/v1/outcomes")  # streams that do not end by themselves


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server of its own: random requests leave much behind."""
    with world_in(tmp_path_factory.mktemp("fuzzed"), ONCUE_RATE_PER_S="0") as found:
        yield found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["admin", "owner"])
def test_random_requests_are_answered_as_documented(fuzzed: World, who: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="Schemathesis is not installed: pip install -e '.[dev]'")
    local = fuzzed.system.local
    token = local["token"] if who == "admin" else fuzzed.tokens[OWNER, "user"]
    names = {"rule": "zqmark-rule", "trigger": "zqmark-files", "label": "zqmark-label", "hook": "zqmark-hook"}
    env = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.security.openapi_hooks",
        "ONCUE_TEST_IDS": json.dumps(fuzzed.ids | names),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    words = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG)),
        *("run", f"{local['url']}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--seed", SEED, "--max-examples", str(EXAMPLES // 2)),
        *("--phases", "coverage,fuzzing" if who == "admin" else "fuzzing", "--exclude-checks", ",".join(LEFT_OUT)),
        *("--suppress-health-check", "all"),
        *("--no-shrink", "--continue-on-failure", "--request-timeout", "30", "--no-color"),
        *(word for path in ENDLESS for word in ("--exclude-path", path)),
    ]

    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=580)

    output = done.stdout + done.stderr
    assert done.returncode == 0, output[
        output.find("= ERRORS =") if "= ERRORS =" in output else output.find("= FAILURES =") :
    ]
    assert fuzzed.send("GET", "/v1/endpoints/zqmark-ep", token=token).json["state"] == "connected"
    log = fuzzed.system.said()
    assert "Traceback" not in log, log
