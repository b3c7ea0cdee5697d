"""The authenticated caller of a request.

A login (base.py) makes a Caller; HTTP routes and services receive one and know nothing of tokens.
"""

from __future__ import annotations

import msgspec


class Caller(msgspec.Struct, frozen=True):
    """An authenticated person or program, and its scopes."""

    subject: str
    scopes: frozenset[str]  # admin | user | emit | read
    token_id: str = ""

    @property
    def only(self) -> str:
        """The owner whose objects a list may show; "" for all owners."""
        return "" if self.sees_all else self.subject

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes

    @property
    def quota_owner(self) -> str:
        """The owner whose quotas count; "" for an admin, who has none."""
        return "" if self.is_admin else self.subject

    @property
    def sees_all(self) -> bool:
        """True if the caller may see what anybody owns."""
        return self.is_admin

    def sees(self, owner: str) -> bool:
        """Return True if the caller may see what `owner` owns."""
        return owner == self.subject or self.sees_all
