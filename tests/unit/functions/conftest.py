"""Fixtures of the tests of functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oncue.functions.siblings import activate, sibling_set
from tests.unit.functions.other_process import another  # noqa: F401


@pytest.fixture(autouse=True)
def no_siblings_stay() -> Iterator[None]:
    """Deactivate the modules of functions that a test has loaded: `tests` may be one of them."""
    yield
    activate(sibling_set({}))
