"""All logins of oncue, in the order in which they are tried.

A new login is one line here.
"""

from __future__ import annotations

from typing import Final

from oncue.dispatcher.auth.base import AuthenticatorFactory
from oncue.dispatcher.auth.tokens import open_token_login

AUTHENTICATORS: Final[tuple[AuthenticatorFactory, ...]] = (
    open_token_login,  # `Authorization: Bearer oncue_...`, made by `oncue tokens create`
)
