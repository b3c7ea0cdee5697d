"""What unit tests open is closed behind them: Python 3.13 warns of a database that is not, in whatever test comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from oncue.triggers.file.ledger import Ledger


@pytest.fixture(autouse=True)
def ledgers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Ledger] = []
    really = Ledger.__init__

    def noted(self: Ledger, *args: Any) -> None:
        really(self, *args)
        made.append(self)

    monkeypatch.setattr(Ledger, "__init__", noted)
    yield
    for ledger in made:
        ledger.close()
