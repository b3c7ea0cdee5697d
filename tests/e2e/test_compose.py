"""Check compose/: a valid, confined file whose services run without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from tests.conftest import or_skipped
from tests.kafka.jars import jars, java, version
from tests.services import missing

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
FILE = COMPOSE / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(FILE.read_text())["services"]
    return found


def rehearse(*words: str) -> str:
    env = {n: v for n, v in os.environ.items() if not n.startswith("ONCUE_") or n == "ONCUE_KAFKA_JARS"}
    done = subprocess.run(
        [sys.executable, str(COMPOSE / "rehearse"), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_file_follows_the_schema_of_the_compose_specification() -> None:
    # Its schema files only: the command wants another click than Faust does.
    files = distribution("check-jsonschema").files or []
    (schema,) = [f for f in files if f.name == "compose-spec.json"]
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    spec = YAML(typ="safe", pure=True).load(FILE.read_text())
    assert list(validator.iter_errors(spec)) == []
    spec["services"]["kafka"]["healthcheck"]["interval"] = ["often"]
    assert list(validator.iter_errors(spec)), "it can find something"


def test_each_service_is_confined_and_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service.get("read_only") or name == "kafka", name
        assert re.search(r":\d+\.\d+\.\d+", service["image"]), f"{name}: an image by its version"
    ours = [s for s in services.values() if s["image"].startswith("oncue-")]
    assert {s["user"] for s in ours} == {"10001:10001"}
    published = [s for s in services.values() if "ports" in s]
    assert published == [services["proxy"]], "one port"
    assert services["kafka"]["image"] == f"apache/kafka:{version()}", "the version that the tests run"


def test_no_secret_is_in_the_file_or_the_images() -> None:
    for path in (FILE, COMPOSE / "Dockerfile"):
        assert not re.search(r"oncue_[A-Za-z0-9_-]{43}|PASSWORD|password", path.read_text())
    assert "secrets/*" in (COMPOSE / ".gitignore").read_text()
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*", "only listed files get into a build"


def test_the_build_steps_of_the_image(tmp_path: Path) -> None:
    output = rehearse("build", str(tmp_path), "server")
    assert "not run: it needs root" in output
    oncue = tmp_path / "server/opt/oncue/bin/oncue"
    shown = subprocess.run(
        [oncue, "--version"], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert shown.stdout.startswith("oncue ")
    kafka = [oncue.with_name("python"), "-c", "import aiokafka, faust, uvloop, prometheus_client"]
    subprocess.run(kafka, check=True, env={"PATH": "/usr/bin:/bin"})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="each service gets a loopback address: Linux only")
def test_the_services_run_in_the_rehearsal() -> None:
    with or_skipped():
        java(), jars()
    if not shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin"):
        missing("no haproxy: make services")
    output = rehearse("run")
    assert "through the one port: hello first" in output
    assert "a stateful rule: the sum of [1, 2] is 3" in output
    assert re.search(r"^oncue doctor: \d+ checks, all of them ok$", output, re.MULTILINE)
    killed = re.search(r"^kill server-[ab]: code -9$", output, re.MULTILINE)
    assert killed
    assert killed.start() < output.index("after the kill: hello second")
    assert "rehearsed: all services have ended" in output
    assert "did not stop in time" not in output
