"""Metrics: bounded labels, and numbers that add up."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from oncue.dispatcher.metrics.endpoint_gauges import (
    ENDPOINTS_SHOWN,
    OTHERS,
    REASONS_SHOWN,
    EndpointLoad,
    pending_reason,
)
from oncue.dispatcher.metrics.metrics import RULES_SHOWN, Metrics
from oncue.protocol.records import VERSION
from oncue.protocol.reports import BlockReport, Usage


def samples(metrics: Metrics, text: bytes = b"") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families((text or metrics.text()).decode())
        for s in family.samples
    }


def usage(*blocks: BlockReport, **facts: Any) -> Usage:
    return Usage(VERSION, "ep", 1, 8, 3, 0, 0, scheduler="slurm", blocks=blocks, **facts)


def pending(waits: str, nodes: int = 1) -> BlockReport:
    return BlockReport("b1", "4711", "pending", nodes, 8, 0, f"job 4711, PENDING ({waits})", waits=waits)


def test_rules_beyond_the_limit_are_counted_together() -> None:
    m = Metrics()
    for n in range(RULES_SHOWN + 50):
        m.rules_fired({f"rule {n}": 2})
    m.rules_fired({"rule 0": 1, f"rule {RULES_SHOWN + 3}": 1})
    found = {labels[0][1]: v for (name, labels), v in samples(m).items() if name == "oncue_rule_fired_total"}
    assert len(found) == RULES_SHOWN + 1
    assert found["rule 0"] == 3
    assert found[OTHERS] == 101


def test_deepest_queues_are_shown_and_old_ones_disappear() -> None:
    m = Metrics()
    m.endpoints.set([EndpointLoad(f"e{n}", "ada", n) for n in range(ENDPOINTS_SHOWN + 3)])
    found = {labels[0][1]: v for (name, labels), v in samples(m).items() if name == "oncue_queue_depth"}
    assert len(found) == ENDPOINTS_SHOWN + 1
    assert found[OTHERS] == 0 + 1 + 2
    m.endpoints.set([EndpointLoad("e7", "ada", 1)])
    left = [labels for name, labels in samples(m) if name == "oncue_queue_depth"]
    assert left == [(("endpoint", "e7"), ("owner", "ada"))]


def test_equal_names_of_two_owners_are_two_series() -> None:
    m = Metrics()
    m.endpoints.set([EndpointLoad("gpu", "ada", 1), EndpointLoad("gpu", "bob", 2)])
    found = {labels: v for (name, labels), v in samples(m).items() if name == "oncue_queue_depth"}
    assert found == {(("endpoint", "gpu"), ("owner", "ada")): 1, (("endpoint", "gpu"), ("owner", "bob")): 2}


def test_an_owner_sees_the_names_of_others_nowhere() -> None:
    m = Metrics()
    m.endpoints.set(
        [
            EndpointLoad("gpu", "ada", 1, usage(pending("Resources"))),
            EndpointLoad("secret-ep", "bob", 2, usage(pending("secret-reason"))),
            EndpointLoad("secret-cpu", "carl", 3),
        ]
    )
    m.rules_fired({"mine": 1, "secret-rule": 2, "secret-rule-2": 5})
    m.windows({"secret-rule": (3, 4), "mine": (1, 1)})
    m.accepted(7)
    text = m.text_for("ada", {"mine"})
    assert b"secret" not in text
    assert b"bob" not in text
    found = samples(m, text)
    assert found["oncue_queue_depth", (("endpoint", "gpu"), ("owner", "ada"))] == 1
    assert found["oncue_queue_depth", (("endpoint", OTHERS), ("owner", OTHERS))] == 5
    assert found["oncue_rule_fired_total", (("rule", "mine"),)] == 1
    assert found["oncue_rule_fired_total", (("rule", OTHERS),)] == 7
    assert found["oncue_rule_windows_open", (("rule", OTHERS),)] == 3
    assert found["oncue_tasks_accepted_total", ()] == 7


def test_label_values_cannot_forge_series() -> None:
    m = Metrics()
    name = 'x"} 1\noncue_forged{a="\\'
    m.endpoints.set([EndpointLoad(name, "ada", 1)])
    found = {labels: v for (n, labels), v in samples(m).items() if n == "oncue_queue_depth"}
    assert found == {(("endpoint", name), ("owner", "ada")): 1}
    assert "oncue_forged" not in {n for n, _ in samples(m)}


def test_requests_are_counted_and_timed() -> None:
    m = Metrics()
    count, stream = m.http_route("GET /a"), m.http_route("GET /b", timed=False)
    for seconds in (0.0001, 0.0005, 0.003, 99.0):
        count(200, seconds)
    count(404, 0.02)
    stream(200, 5.0)
    found = samples(m)
    assert found["oncue_http_requests_total", (("route", "GET /a"), ("status", "200"))] == 4
    assert found["oncue_http_requests_total", (("route", "GET /a"), ("status", "404"))] == 1
    assert found["oncue_http_requests_total", (("route", "GET /b"), ("status", "200"))] == 1
    assert found["oncue_http_request_seconds_count", ()] == 5
    assert abs(found["oncue_http_request_seconds_sum", ()] - 99.0236) < 1e-9
    assert found["oncue_http_request_seconds_bucket", (("le", "0.0005"),)] == 2
    assert found["oncue_http_request_seconds_bucket", (("le", "0.005"),)] == 3
    assert found["oncue_http_request_seconds_bucket", (("le", "10.0"),)] == 4
    assert found["oncue_http_request_seconds_bucket", (("le", "+Inf"),)] == 5


def test_two_servers_in_a_process_do_not_meet() -> None:
    a, b = Metrics(), Metrics()
    a.accepted(5)
    assert samples(a)["oncue_tasks_accepted_total", ()] == 5
    assert samples(b)["oncue_tasks_accepted_total", ()] == 0


# ---------------------------------------------------------------- blocks of endpoints


def test_blocks_nodes_and_node_hours_of_endpoints_are_shown() -> None:
    m = Metrics()
    running = BlockReport("b2", "4712", "running", 2, 16, 3)
    facts = {"idle": 4, "starting": 1, "nodes": 2, "node_hours": 1.5, "node_hours_limit": 200.0, "submits_failed": 7}
    m.endpoints.set([EndpointLoad("hpc", "ada", 5, usage(running, pending("Resources"), **facts))])
    found = samples(m)
    key = (("endpoint", "hpc"), ("owner", "ada"))
    states = {dict(labels)["state"]: v for (name, labels), v in found.items() if name == "oncue_endpoint_blocks"}
    assert states == {"asked": 0, "pending": 1, "running": 1, "draining": 0}
    workers = {dict(labels)["state"]: v for (name, labels), v in found.items() if name == "oncue_endpoint_workers"}
    assert workers == {"busy": 3, "idle": 4, "starting": 1}
    assert found["oncue_endpoint_nodes", key] == 2
    assert found["oncue_endpoint_node_hours", key] == 1.5
    assert found["oncue_endpoint_node_hours_limit", key] == 200
    assert found["oncue_endpoint_breaker_open", key] == 0
    assert found["oncue_endpoint_submits_failed_total", key] == 7
    assert found["oncue_endpoint_pending_info", (*key, ("reason", "Resources"))] == 1


def test_an_open_breaker_and_a_limit_are_reasons_of_their_own() -> None:
    limit = "waiting for a block; none is asked for: limits.node_hours: 199.8 of 200 are used or reserved"
    assert pending_reason(usage(waiting_for=limit)) == "limits.node_hours"
    assert pending_reason(usage(pending("Priority"), breaker="3 blocks in a row ended")) == "breaker"
    assert pending_reason(usage(pending("Priority"), waiting_for=limit)) == "Priority"
    assert pending_reason(usage()) == ""


def test_endpoints_without_blocks_and_those_that_are_away_have_no_series_of_blocks() -> None:
    m = Metrics()
    local = Usage(VERSION, "ep", 1, 8, 3, 0, 0, idle=5, cores=4)
    m.endpoints.set([EndpointLoad("local", "ada", 1, local), EndpointLoad("gone", "ada", 1)])
    names = {(name, dict(labels).get("endpoint")) for name, labels in samples(m)}
    assert ("oncue_endpoint_cores", "local") in names
    assert not [n for n in names if n[0] == "oncue_endpoint_blocks" or n == ("oncue_endpoint_cores", "gone")]


def test_schedulers_reasons_make_no_more_than_so_many_series() -> None:
    m = Metrics()
    for n in range(3 * REASONS_SHOWN):  # an agent that tells another reason each time
        m.endpoints.set([EndpointLoad("hpc", "ada", 1, usage(pending(f"reason {n}" + "x" * 900)))])
        last = {dict(labels)["reason"] for name, labels in samples(m) if name == "oncue_endpoint_pending_info"}
    assert last == {OTHERS}
    m.endpoints.set([EndpointLoad(f"e{n}", "ada", 1, usage(pending("Priority"))) for n in range(3_000)])
    assert len([name for name, _ in samples(m) if name.startswith("oncue_endpoint_")]) < 20 * (ENDPOINTS_SHOWN + 1)
