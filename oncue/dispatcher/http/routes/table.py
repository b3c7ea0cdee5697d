"""The table of all routes, and the error for requests that match none."""

from __future__ import annotations

import difflib

from oncue.dispatcher.http.route import Route
from oncue.dispatcher.http.routes import (
    blobs,
    dead_letters,
    events,
    registry,
    reports,
    rules,
    server,
    task_selection,
    tasks,
    traces,
    view_snapshot,
)
from oncue.errors import MethodNotAllowed, NotFound, OncueError

ROUTES: tuple[Route, ...] = (
    *tasks.ROUTES,
    *task_selection.ROUTES,
    *events.ROUTES,
    *traces.ROUTES,
    *reports.ROUTES,
    *dead_letters.ROUTES,
    *rules.ROUTES,
    *registry.ROUTES,
    *blobs.ROUTES,
    *view_snapshot.ROUTES,
    *server.ROUTES,
)
_PATTERNS = [(route.pattern, route) for route in ROUTES]


def heads(route: Route) -> bool:
    """Return True if the route also answers HEAD.

    All GET routes that do not stream do.
    """
    return route.method == "GET" and not route.streamed


def no_route(method: str, path: str) -> OncueError:
    """Return the error for a request without a route.

    It is NotFound with the nearest path, or MethodNotAllowed.
    """
    here = [route for pattern, route in _PATTERNS if pattern.match(path)]
    if here:
        allow = {route.method for route in here} | {"HEAD" for route in here if heads(route)}
        return MethodNotAllowed(
            f"{method[:20]} is not for {here[0].template}",
            remedy=f"it takes {' or '.join(sorted(allow))}",
            allow=sorted(allow),
        )
    shown = path[:200]
    near = difflib.get_close_matches(shown, {route.template for route in ROUTES}, n=1)
    return NotFound(
        f"there is nothing at {shown}",
        remedy=f"did you mean {near[0]}?" if near else "GET /docs lists what there is",
    )
