"""Which topic an endpoint's tasks are in, and that a log goes on as it was begun."""

from __future__ import annotations

import pytest

from oncue.config import Settings
from oncue.dispatcher.topics import DAY_MS, check_task_topics, server_topics
from oncue.errors import Invalid
from oncue.protocol.topics import EVENTS, RESULTS, TaskTopics


def test_each_endpoint_has_its_own_or_one_of_the_shared() -> None:
    assert TaskTopics().of("ep_1") == "oncue.tasks.ep_1"
    shared = TaskTopics(4)
    found = {shared.of(f"ep_{n}") for n in range(100)}
    assert found == set(shared.names())
    assert len(found) == 4
    assert shared.of("ep_1") == TaskTopics(4).of("ep_1")


@pytest.mark.parametrize("wanted", [0, 1, 16])
def test_a_log_goes_on_as_it_was_begun(wanted: int) -> None:
    topics = TaskTopics(wanted)
    own = [topics.of("ep_1"), topics.of("ep_2")]
    check_task_topics([EVENTS], topics)
    check_task_topics([EVENTS, *own, *topics.names()], topics)
    check_task_topics(topics.names()[:1], topics)  # killed while they were made


@pytest.mark.parametrize(("begun", "wanted"), [(0, 4), (4, 0), (4, 5), (5, 4)])
def test_another_layout_is_refused_with_the_setting_to_use(begun: int, wanted: int) -> None:
    there = TaskTopics(begun)
    with pytest.raises(Invalid) as e:
        check_task_topics([*there.names(), there.of("ep_1")], TaskTopics(wanted))
    assert f"task_topics = {begun}," in e.value.remedy


def test_brokers_keep_results_until_their_tasks_are_truncated() -> None:
    settings = Settings(log="kafka://localhost:9092", results_retention_days=30)
    assert server_topics(settings)[RESULTS].retention_ms >= 31.25 * DAY_MS
