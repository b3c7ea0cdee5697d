"""Base of the API's resources: requests with typed answers, pages, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from oncue.client.display import notebook
from oncue.client.http import Answer, Broken, problem
from oncue.client.session import Session
from oncue.errors import OncueError
from oncue.protocol import api as r

T = TypeVar("T")
PAGE = 200  # items that are asked for at once


class Pages(Iterator[T]):
    """Items of a long list, fetched while you iterate.

    A notebook shows the first ones.
    """

    def __init__(self, session: Session, read: Callable[[int | None], Iterator[T]], limit: int | None) -> None:
        self._session, self._read = session, read
        self._limit = limit
        self._items = read(limit)

    def __next__(self) -> T:
        return next(self._items)

    def _repr_html_(self) -> str:
        most = notebook.ROWS if self._limit is None else min(self._limit, notebook.ROWS)
        try:
            found = list(self._read(most + 1))
        except OncueError as e:
            return notebook.error_text(e)
        return notebook.records_table(self._session, found[:most], len(found) > most)

    def __repr__(self) -> str:
        return "<items of oncue, read while you iterate; list(...) reads them all>"


class Records(list[T]):
    """A list of the API's records. A notebook shows it as a table."""

    def __init__(self, session: Session, records: list[T]) -> None:
        super().__init__(records)
        self._session = session

    def _repr_html_(self) -> str:
        return notebook.records_table(self._session, self, False)


class Resource:
    """Base of the resources: requests with typed answers."""

    def __init__(self, session: Session) -> None:
        self._session = session  # a session without references closes its connections
        self._http = session.http

    def _get(self, kind: type[T], path: str, **query: Any) -> T:
        return msgspec.json.decode(self._http.request("GET", path + query_text(query)).body, type=kind)

    def _list(self, kind: type[T], path: str) -> Records[T]:
        return Records(self._session, self._get(list[kind], path))  # type: ignore[valid-type]

    def _post(self, kind: type[T], path: str, body: Any, *, repeat: bool = False, headers: str = "") -> T:
        content = msgspec.json.encode(body)
        answer = self._http.request("POST", path, content, repeat=repeat, headers=headers)
        return msgspec.json.decode(answer.body or b"null", type=kind)

    def _delete(self, path: str) -> bytes:
        return self._http.request("DELETE", path).body

    def _pages(self, kind: type[T], path: str, limit: int | None, **query: Any) -> Pages[T]:
        return Pages(self._session, lambda most: self._items(kind, path, most, query), limit)

    def _items(self, kind: type[T], path: str, limit: int | None, query: dict[str, Any]) -> Iterator[T]:
        """Yield the items of all pages, at most `limit`."""
        cursor, left = "", limit
        while left is None or left > 0:
            page = self._get(r.Page, path, cursor=cursor, limit=PAGE if left is None else min(left, PAGE), **query)
            for item in page.items:
                yield msgspec.convert(item, kind)
            if left is not None:
                left -= len(page.items)
            if not page.next:
                return
            cursor = page.next

    def _up_to(
        self, kind: type[T], path: str, cursor: str, limit: int, query: Mapping[str, Any]
    ) -> tuple[list[T], str | None]:
        """Return items of as many pages as `limit` needs, and the cursor after them."""
        found: list[T] = []
        following: str | None = cursor
        while following is not None and len(found) < limit:
            page = self._get(r.Page, path, cursor=following, limit=min(limit - len(found), PAGE), **query)
            found += msgspec.convert(page.items, list[kind])  # type: ignore[valid-type]
            following = page.next
        return found, following

    def _stream(self, path: str) -> Iterator[bytes]:
        """Yield a body as it arrives, on a new connection. Raises Unreachable."""
        connection = None
        try:
            connection = self._http.connect(90.0)
            connection.send("GET", path, None, "", "", 0)
            status, headers = connection.head()
            if status >= 400:
                raise problem(Answer(status, headers, b"".join(connection.parts(headers))))
            yield from connection.parts(headers)
        except Broken as e:
            raise self._http.unreachable(str(e)) from None
        finally:
            if connection is not None:
                connection.close()


def query_text(values: Mapping[str, Any]) -> str:
    """Return the query of a URL, without what is not given."""
    given = {k: v for k, v in values.items() if v not in ("", None)}
    return "?" + urlencode(given, errors="surrogateescape") if given else ""


def flags(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Return filters as query parameters, without those that are not given."""
    return {name: 1 if value is True else value for name, value in filters.items() if value}
