"""ResultAppends: the record of each append, and the ends in appends that are in progress."""

from __future__ import annotations

from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.dispatcher.bridge.result_appends import ResultAppends
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import OK, VERSION, Call, Ended, ResultFrame

CALL = Call(VERSION, "f" * 64, "ep", "ada")
MESSAGE = bridge.Results(1, 1, encode(CALL), 5, 1)
FIRST, SECOND = (Ended(bytes([n]) * 16, 1, OK, 0, 9, b"") for n in (1, 2))


def test_an_agents_ends_are_recorded_with_its_endpoint() -> None:
    appends = ResultAppends("ep")
    token = appends.next_token()

    effect = appends.start(token, MESSAGE, [FIRST], CALL, [FIRST], encode([FIRST]))

    assert decode(ResultFrame, effect.record) == ResultFrame(VERSION, CALL, "ep", 5, [FIRST])
    assert (effect.token, effect.closing, effect.closing_complete, effect.by_server) == (token, [FIRST], True, False)


def test_ends_of_the_server_are_recorded_with_its_claim() -> None:
    group = TaskGroup(CALL, encode(CALL), 1, 5, [], 0)

    effect = ResultAppends("ep").start_by_server(group, [FIRST], None, 7)

    assert decode(ResultFrame, effect.record) == ResultFrame(VERSION, CALL, "", 5, [FIRST], 7)
    assert (effect.closing, effect.closing_complete, effect.by_server) == ([], False, True)


def test_an_append_is_in_progress_until_it_finishes() -> None:
    appends = ResultAppends("ep")
    token = appends.next_token()
    appends.start(token, MESSAGE, [FIRST, SECOND], CALL, None)
    assert appends.has(FIRST.id)
    assert appends.task_ids() == {FIRST.id, SECOND.id}

    appends.finish(token)

    assert not appends.has(FIRST.id)
    assert appends.task_ids() == set()


def test_a_failed_append_returns_the_ends_that_no_other_append_has() -> None:
    appends = ResultAppends("ep")
    failing, repeated = appends.next_token(), appends.next_token()
    appends.start(failing, MESSAGE, [FIRST, SECOND], CALL, None)
    appends.start(repeated, MESSAGE, [SECOND], CALL, None)

    assert appends.fail(failing) == [FIRST]
    assert appends.task_ids() == {SECOND.id}
    assert appends.fail(failing) == []
