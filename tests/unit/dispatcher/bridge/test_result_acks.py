"""ResultAcks: appends finish in any order, acknowledgements have no gap."""

from __future__ import annotations

from oncue.dispatcher.bridge.result_acks import ResultAcks


def test_an_acknowledgement_waits_for_all_earlier_messages() -> None:
    acks = ResultAcks()
    acks.start_session(b"journal")
    for token, seq in ((1, 10), (2, 11), (3, 12)):
        acks.start(token, seq)
    assert not acks.finish(2)
    assert acks.durable_seq == -1
    assert acks.finish(1)
    assert acks.durable_seq == 11
    assert acks.finish(3)
    assert acks.durable_seq == 12
    assert not acks.is_open(3)


def test_a_message_is_repeated_if_this_session_received_it_or_it_is_durable() -> None:
    acks = ResultAcks()
    acks.start_session(b"journal")
    acks.start(1, 0)
    acks.start(2, 1)
    assert acks.is_repeated(1)
    acks.finish(1)
    acks.end_session()  # message 1 was not durable
    assert not acks.is_open(2)
    assert not acks.start_session(b"journal")
    assert acks.is_repeated(0)
    assert not acks.is_repeated(1)


def test_a_new_journal_starts_from_the_beginning() -> None:
    acks = ResultAcks()
    assert not acks.start_session(b"journal")
    acks.start(1, 0)
    acks.finish(1)
    assert acks.start_session(b"another")
    assert acks.durable_seq == -1
    assert not acks.is_repeated(0)
