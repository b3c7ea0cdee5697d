"""notify: sends one message by a webhook, to a chat, or by mail.

This file travels to the workers as the source of a function, so it uses the standard library alone.
"""

from __future__ import annotations

import http.client
import json
import os
import smtplib
import ssl
import urllib.error
import urllib.parse
import urllib.request
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

TIMEOUT_S = 30
CHAT_CHARS = 30_000  # Slack refuses messages of more than 40,000
RETRYABLE = (408, 425, 429)


class NotDelivered(Exception):
    """The receiver could not take the message now."""


class Refused(NotDelivered):
    """The receiver does not want the message: sending it again does not help."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the message would be lost on the way."""

    def redirect_request(self, *_: Any) -> None:
        return None


def notify(
    kind: str,
    to: Any,
    text: Any,
    subject: Any = "",
    data: Any = None,
    headers: dict[str, str] | None = None,
    sender: str = "",
    server: str = "",
    user: str = "",
) -> dict[str, Any]:
    """Send a message; return the receiver's answer. Raises NotDelivered, Refused."""
    if kind == "mail":
        return _mail(to, str(text), str(subject), sender, server, user)
    message: dict[str, Any] = {"text": str(text)}
    if kind == "slack":
        message["text"] = message["text"][:CHAT_CHARS]
    elif data is not None:
        message["data"] = data
    return _post(to, message, headers or {})


def _post(url: str, message: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    given = {"Content-Type": "application/json", "User-Agent": "oncue", **headers}
    request = urllib.request.Request(url, json.dumps(message).encode(), given, method="POST")
    host = urllib.parse.urlsplit(url).hostname
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
            return {"status": answer.status}
    except urllib.error.HTTPError as e:
        with e:
            said = e.read(500).decode("utf-8", "replace").strip()
        why = f"{host} answered {e.code} {e.reason}" + (f": {said}" if said else "")
        raise (NotDelivered if e.code >= 500 or e.code in RETRYABLE else Refused)(why) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as e:
        raise NotDelivered(f"{host} was not reached: {getattr(e, 'reason', e)}") from None


def _mail(to: list[str], text: str, subject: str, sender: str, server: str, user: str) -> dict[str, Any]:
    for one in to:  # a value of an event may be more than an address
        if len(getaddresses([one])) != 1:
            raise Refused(f"{one!r} is not one address")
    message = EmailMessage()
    message["From"], message["To"] = sender, ", ".join(to)
    # A header is one line.
    message["Subject"] = " ".join((subject or text.partition("\n")[0][:100]).split())
    message.set_content(text)
    url = urllib.parse.urlsplit(server or "smtp://localhost")
    host = url.hostname or ""
    smtp: smtplib.SMTP
    try:
        if url.scheme == "smtps":
            context = ssl.create_default_context()
            smtp = smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_S, context=context)
        else:
            smtp = smtplib.SMTP(host, url.port or (587 if url.scheme == "smtp+starttls" else 25), timeout=TIMEOUT_S)
        with smtp:
            if url.scheme == "smtp+starttls":
                smtp.starttls(context=ssl.create_default_context())
            if user:
                smtp.login(user, os.environ.get("ONCUE_SMTP_PASSWORD", ""))
            refused = smtp.send_message(message)
    except smtplib.SMTPRecipientsRefused as e:
        raise _refusal(host, *next(iter(e.recipients.values()))) from None
    except smtplib.SMTPResponseException as e:
        raise _refusal(host, e.smtp_code, e.smtp_error) from None
    except (smtplib.SMTPException, OSError) as e:
        raise NotDelivered(f"{host} was not reached: {e}") from None
    return {"refused": {who: [code, why.decode("utf-8", "replace")] for who, (code, why) in refused.items()}}


def _refusal(host: str, code: int, why: bytes | str) -> NotDelivered:
    said = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
    return (Refused if code >= 500 else NotDelivered)(f"{host} answered {code}: {said}")
