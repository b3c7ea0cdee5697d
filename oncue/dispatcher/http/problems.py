"""Errors as RFC 9457 problem responses.

A problem says what is wrong, where, and what to do. An unexpected error gets an incident number.
Its traceback goes to the server's log, never to a caller.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from oncue.dispatcher.auth.base import challenge
from oncue.dispatcher.http.route import PROBLEM
from oncue.errors import Forbidden, NotReady, OncueError, TriggerFailed, Unauthorized
from oncue.protocol.api import Problem

log = logging.getLogger("oncue.api")
TEXT_CHARS = 16_000  # of a text in a problem; a rule file may have many mistakes
_encode = msgspec.json.Encoder(enc_hook=str).encode


def title(kind: type[OncueError]) -> str:
    """Return the first sentence of the error class's docstring."""
    text = " ".join((inspect.getdoc(kind) or kind.__name__).split())
    return text.split(". ")[0].rstrip(".")


def problem(error: OncueError) -> Problem:
    """Return the body of the response to an error."""
    return Problem(
        type=f"urn:oncue:error:{error.code}",
        title=title(type(error)),
        status=error.status,
        detail=_cut(error.message),
        code=error.code,
        remedy=_cut(error.remedy),
        details={k: _cut(v) if isinstance(v, str) else v for k, v in error.details.items()},
    )


def problem_json(error: OncueError) -> bytes:
    """Return the body of the response to an error, in JSON."""
    try:
        return _encode(problem(error))
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError):
        # The error has a surrogate, or details that are no JSON.
        plain = Problem(
            type=f"urn:oncue:error:{error.code}",
            title=title(type(error)),
            status=error.status,
            detail=_ascii(_cut(error.message)),
            code=error.code,
            remedy=_ascii(_cut(error.remedy)),
        )
        return _encode(plain)


def _cut(text: str) -> str:
    """Return the text without its middle if it is long: errors repeat what was sent."""
    if len(text) <= TEXT_CHARS:
        return text
    return f"{text[: TEXT_CHARS // 2]}… ({len(text):,} characters) …{text[-TEXT_CHARS // 2 :]}"


def _ascii(text: Any) -> str:
    return str(text).encode("ascii", "backslashreplace").decode()


def response(error: OncueError, request: web.Request | None = None) -> web.Response:
    """Return the response to a request that failed with this error."""
    headers = {"Content-Type": PROBLEM, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    if isinstance(error, Unauthorized | Forbidden):
        headers["WWW-Authenticate"] = challenge(error, request is not None and "Authorization" in request.headers)
    retry_after = error.details.get("retry_after_s")
    if retry_after is None and (error.status == 507 or isinstance(error, NotReady | TriggerFailed)):
        retry_after = 5
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    codings = error.details.get("accept_encoding")
    if error.status == 415 and isinstance(codings, list):
        headers["Accept-Encoding"] = ", ".join(codings)
    allow = error.details.get("allow")
    if error.status == 405 and isinstance(allow, list):
        headers["Allow"] = ", ".join(allow)
    return web.Response(status=error.status, body=problem_json(error), headers=headers)


def quiet_aiohttp() -> None:
    """Keep aiohttp from logging tracebacks for faults of the client.

    Such faults are broken connections and malformed HTTP.
    """
    logging.getLogger("aiohttp.server").addFilter(_is_server_error)  # (logging adds a filter once)


def _is_server_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionResetError | BrokenPipeError | HttpProcessingError | web.RequestPayloadError):
        log.debug("a request broke off: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        return False
    return True


def unexpected(error: BaseException, what: str) -> OncueError:
    """Log an unexpected error with its traceback.

    Return an Internal error that has its incident number.
    """
    incident = secrets.token_hex(6)
    log.error("incident %s in %s", incident, what, exc_info=error)
    return Internal(
        f"something went wrong inside the server (incident {incident})",
        remedy=f"ask whoever runs the server to look for incident {incident} in its log; the request may be sent again",
        incident=incident,
    )


class Internal(OncueError):
    """The server met an error of its own.

    It is in the server's log under the incident's number.
    """

    code = "internal"
    status = 500
