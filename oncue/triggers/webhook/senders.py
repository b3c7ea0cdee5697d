"""Types and ids of events of GitHub, GitLab, Stripe and Slack."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from oncue.protocol.records import NAME_CHARS

BODY_IDS = ("stripe", "slack")  # whose ids are in the body, which is signed


def sent_type(method: str, headers: Mapping[str, str], data: Any) -> str:
    """Return the type of an event, after the sender's name for it; "": it gives none.

    `method`: of the verification.
    """
    if name := headers.get("x-github-event", ""):
        return f"github.{name[:NAME_CHARS]}"
    if method == "gitlab" and (name := headers.get("x-gitlab-event", "")):  # "Merge Request Hook"
        return f"gitlab.{name.lower().removesuffix(' hook').replace(' ', '_')[:NAME_CHARS]}"
    if method == "stripe" and (name := _text(data, "type")):
        return f"stripe.{name[:NAME_CHARS]}"
    if method != "slack" or not isinstance(data, dict):
        return ""
    name = _text(data.get("event"), "type") or _text(data, "type") or ("command" if _text(data, "command") else "")
    return f"slack.{name[:NAME_CHARS]}" if name else ""


def sent_id(method: str, headers: Mapping[str, str], body: bytes, data: Any) -> str:
    """Return the id of an event, the same when it is sent again; "": it has none."""
    if method == "stripe":
        return _text(data, "id")
    if method != "slack":
        return ""
    stamped = headers.get("x-slack-request-timestamp", "").encode() + b":" + body
    return _text(data, "event_id") or hashlib.blake2b(stamped, digest_size=16).hexdigest()


def slack_challenge(data: Any) -> str:
    """Return the text that Slack wants back when it tests an address, else ""."""
    return _text(data, "challenge") if _text(data, "type") == "url_verification" else ""


def _text(data: Any, key: str) -> str:
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, str) else ""
