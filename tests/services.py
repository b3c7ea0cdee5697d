"""Services that a test needs and this machine may not have."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


class Missing(Exception):
    """The service cannot run here; the message names the missing program and the remedy."""


class Impossible(Missing):
    """The service cannot run for this user on this machine, whatever is installed."""


def missing(what: str) -> NoReturn:
    """Skip the test, with the reason and the remedy; in CI, where all services have to be there, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
