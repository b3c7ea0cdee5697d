"""Checks for every user: the server's URL, the token, Pythons of endpoints."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from oncue.cli.output import when
from oncue.client.discovery import find_server
from oncue.clocks.process import now_us
from oncue.log import Finding
from oncue.protocol.api import EndpointInfo, Me
from oncue.quantities import duration_text

CONNECT_S = 5.0
SOON_US = 86_400_000_000  # a token that expires within a day is a fault to come


def url(folder: Path) -> Iterator[Finding]:
    """Check that the server's host has an address, and that something listens there.

    Raises Unreachable and Unauthorized if no server or no token is known.
    """
    found, _ = find_server("", "", folder)
    source = "ONCUE_URL" if os.environ.get("ONCUE_URL") else str(folder / "local.json")
    parts = urlsplit(found)
    said = f"{found} (of {source})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield Finding("url", False, f"{said} is no URL of a server", "it has the form https://host or http://host:port")
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname, port), CONNECT_S):
            pass
    except ValueError:
        yield Finding("url", False, f"{said}: the port is no number", "it has the form http://host:port")
    except socket.gaierror as e:
        yield Finding(
            "url", False, f"{said}: the host has no address here ({e.strerror})", f"check the name in {source}"
        )
    except TimeoutError:
        remedy = "a firewall may be between: try from the server's network, or ask its admin"
        yield Finding("url", False, f"{said}: no answer within {CONNECT_S:g} s", remedy)
    except OSError as e:
        remedy = "start the server (`oncue up` on its machine), or correct the port"
        yield Finding("url", False, f"{said}: {e.strerror or e}", remedy)
    else:
        yield Finding("url", True, said)


def token(me: Me) -> Finding:
    """Say whose the token is, what it may do, and until when."""
    text = f"{me.subject}, scopes {', '.join(me.scopes)}"
    if not me.expires_us:
        return Finding("token", True, text)
    left = me.expires_us - now_us()
    text += f", until {when(me.expires_us)}"
    return Finding(
        "token", left > SOON_US, text, f"it expires in {duration_text(max(0, left) // 1000)}: ask for a new one"
    )


def python_of(e: EndpointInfo) -> str:
    """Return a note if functions of notebooks do not run on the endpoint."""
    here = ".".join(map(str, sys.version_info[:2]))
    there = ".".join(e.python.split(".")[:2])
    if not there or there == here:
        return ""
    return f"; Python {there} there and {here} here: lambdas and functions of notebooks do not run there, those in files do"


def no_endpoints(me: Me) -> Iterator[Finding]:
    """Say that nothing can run for this person yet."""
    if {"user", "admin"} & set(me.scopes):
        yield Finding("endpoints", True, "you have none yet; one is made with `oncue endpoint register NAME`")
