"""Cumulative acknowledgement of an agent's result messages."""

from __future__ import annotations


class ResultAcks:
    """Progress of the appends of one agent's result messages.

    Appends may finish out of order. The agent gets one number: all messages up to `durable_seq` are
    durable, and it may remove them from its journal.
    """

    def __init__(self) -> None:
        self.durable_seq = -1
        self._journal = b""  # id of the agent's journal; numbers count within one journal
        self._received_seq = -1  # in this session
        # Token -> (seq, durable), in the order of seq.
        self._appends: dict[int, tuple[int, bool]] = {}

    def start_session(self, journal: bytes) -> bool:
        """Go on with this journal. Return True if the agent had another one before."""
        replaced = self._journal not in (b"", journal)
        if self._journal != journal:
            self._journal, self.durable_seq = journal, -1
        self._received_seq = self.durable_seq
        return replaced

    def end_session(self) -> None:
        """Forget appends in progress.

        The agent sends their messages again in its next session.
        """
        self._appends.clear()

    def is_repeated(self, seq: int) -> bool:
        """Return True if the message was received in this session, or is durable."""
        return seq <= self._received_seq

    def start(self, token: int, seq: int) -> None:
        """Note the append of message `seq`. Tokens and numbers both increase."""
        self._received_seq = seq
        self._appends[token] = (seq, False)

    def is_open(self, token: int) -> bool:
        """Return True if the append is of this session and not counted yet."""
        return token in self._appends

    def finish(self, token: int) -> bool:
        """Note that the append is durable. Return True if `durable_seq` has grown."""
        before = self.durable_seq
        self._appends[token] = (self._appends[token][0], True)
        while self._appends:
            first = next(iter(self._appends))
            seq, durable = self._appends[first]
            if not durable:
                break
            del self._appends[first]
            self.durable_seq = seq
        return self.durable_seq > before
