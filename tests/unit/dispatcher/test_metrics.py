"""Metrics: bounded labels, and numbers that add up."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from oncue.dispatcher.metrics import ENDPOINTS_SHOWN, OTHERS, RULES_SHOWN, Metrics


def samples(metrics: Metrics, text: bytes = b"") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families((text or metrics.text()).decode())
        for s in family.samples
    }


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
    m.queue_depths({("ada", f"e{n}"): n for n in range(ENDPOINTS_SHOWN + 3)})
    found = {labels[0][1]: v for (name, labels), v in samples(m).items() if name == "oncue_queue_depth"}
    assert len(found) == ENDPOINTS_SHOWN + 1
    assert found[OTHERS] == 0 + 1 + 2
    m.queue_depths({("ada", "e7"): 1})
    left = [labels for name, labels in samples(m) if name == "oncue_queue_depth"]
    assert left == [(("endpoint", "e7"), ("owner", "ada"))]


def test_equal_names_of_two_owners_are_two_series() -> None:
    m = Metrics()
    m.queue_depths({("ada", "gpu"): 1, ("bob", "gpu"): 2})
    found = {labels: v for (name, labels), v in samples(m).items() if name == "oncue_queue_depth"}
    assert found == {(("endpoint", "gpu"), ("owner", "ada")): 1, (("endpoint", "gpu"), ("owner", "bob")): 2}


def test_an_owner_sees_the_names_of_others_nowhere() -> None:
    m = Metrics()
    m.queue_depths({("ada", "gpu"): 1, ("bob", "secret-ep"): 2, ("carl", "secret-cpu"): 3})
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
    m.queue_depths({("ada", name): 1})
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
