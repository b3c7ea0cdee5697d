"""Check that the alerts of docs/facility.md name metrics of the server."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from oncue.dispatcher.metrics.endpoint_gauges import EndpointLoad
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.protocol.records import VERSION
from oncue.protocol.reports import Usage

PAGE = Path(__file__).parents[2] / "docs" / "facility.md"


def names() -> set[str]:
    """Return the names of all series, with one label value of each kind set."""
    metrics = Metrics()
    metrics.outcomes({"succeeded": 1})
    metrics.endpoints.set([EndpointLoad("hpc", "ada", 1, Usage(VERSION, "ep", 1, 8, 3, 0, 0, scheduler="slurm"))])
    metrics.http_route("GET /a")(200, 0.1)
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_alerts_are_on_metrics_that_there_are() -> None:
    (block,) = re.findall(r"^```yml\n# alerts\.yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (group,) = YAML(typ="safe", pure=True).load(block)["groups"]
    used = {name for rule in group["rules"] for name in re.findall(r"\b(?:oncue|process)_\w+", rule["expr"])}
    assert len(used) >= 7
    assert used <= names(), used - names()
    assert all(rule["annotations"]["summary"] and rule["for"] for rule in group["rules"])
