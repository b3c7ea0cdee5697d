"""In-memory copy of the registry: endpoints and tokens.

Every request needs the registry, and it is small. `reload` replaces the copy from the view when the
view has new registry records.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.errors import NotFound
from oncue.protocol.records import EndpointRecord, TokenRecord
from oncue.protocol.topics import TaskTopics
from oncue.view import View

CHAIN = 1_000  # tokens that made each other, one after the other


def effective_tokens(tokens: Sequence[TokenRecord]) -> list[TokenRecord]:
    """Return the tokens, each revoked or expired at the latest with its maker."""
    by_id = {t.id: t for t in tokens}
    done: dict[str, TokenRecord] = {}
    for token in tokens:
        chain = [token]
        while (maker := by_id.get(chain[-1].parent)) is not None and maker.id not in done and len(chain) < CHAIN:
            chain.append(maker)
        for link in reversed(chain):
            done[link.id] = _within(done.get(link.parent), link)
    return [done[t.id] for t in tokens]


def _within(maker: TokenRecord | None, token: TokenRecord) -> TokenRecord:
    if maker is None:
        return token
    expires = min(maker.expires_us or token.expires_us, token.expires_us or maker.expires_us)
    revoked = token.revoked or maker.revoked
    if (expires, revoked) == (token.expires_us, token.revoked):
        return token
    return msgspec.structs.replace(token, expires_us=expires, revoked=revoked)


class RegistryCache:
    """Endpoints and tokens by name, id and hash.

    Implements rules.task_frames.EndpointDirectory.
    """

    def __init__(self, task_topics: TaskTopics) -> None:
        self._task_topics = task_topics
        self._endpoints: dict[str, EndpointRecord] = {}
        self._endpoint_names: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, TokenRecord] = {}

    async def reload(self, view: View) -> None:
        """Replace the copy by what the view has now."""
        endpoints = await view.endpoints()
        self._endpoints = {e.id: e for e in endpoints}
        # Two servers may register one name at once. Until one is revoked, the first counts.
        self._endpoint_names = {(e.owner, e.name): e.id for e in reversed(endpoints) if not e.revoked}
        self._tokens = {t.hash: t for t in effective_tokens(await view.tokens())}

    # ------------------------------------------------------------ tokens

    def token(self, hash_hex: str) -> TokenRecord | None:
        """Return the token with this SHA-256, also a revoked one."""
        return self._tokens.get(hash_hex)

    def tokens(self) -> list[TokenRecord]:
        """Return all tokens, also revoked ones."""
        return list(self._tokens.values())

    # ------------------------------------------------------------ endpoints

    def endpoints(self) -> list[EndpointRecord]:
        """Return all endpoints, also revoked ones."""
        return list(self._endpoints.values())

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        """Return the endpoint with this id, also a revoked one."""
        return self._endpoints.get(endpoint_id)

    def named(self, name: str, owner: str) -> EndpointRecord | None:
        """Return the owner's endpoint of this name that is not revoked."""
        return self._endpoints.get(self._endpoint_names.get((owner, name), ""))

    def endpoint_id(self, name: str, owner: str) -> str | None:
        """Return the id of the endpoint that this owner means by a name or id."""
        found = self._endpoint_names.get((owner, name))
        if found is None and name in self._endpoints and self._endpoints[name].owner == owner:
            return name
        return found

    def endpoint_name(self, endpoint_id: str) -> str:
        """Return the name of an endpoint, or its id if it is unknown."""
        found = self._endpoints.get(endpoint_id)
        return found.name if found else endpoint_id

    def tasks_topic(self, endpoint: str) -> str:
        """Return the topic that has the tasks of this endpoint."""
        return self._task_topics.of(endpoint)

    def tasks_topics(self) -> list[str]:
        """Return the topics that have the tasks of all endpoints."""
        return [*{self.tasks_topic(e) for e in self._endpoints}]

    def is_revoked(self, name: str, owner: str) -> bool:
        """Return True if an endpoint of the owner with this name or id was revoked."""
        return self._revoked(name, owner) is not None

    def find_endpoint(self, caller: Caller, name: str) -> EndpointRecord:
        """Return the endpoint of this name (the caller's own first) or id.

        Raises NotFound, also for another's endpoint, with the names that the caller may use.
        """
        found = self.named(name, caller.subject) or self._endpoints.get(name)
        if found is None and caller.sees_all:
            found = next((e for e in self._endpoints.values() if e.name == name and not e.revoked), None)
        if found is None or found.revoked or not caller.sees(found.owner):
            raise self._not_found(name, caller.subject)
        return found

    def _not_found(self, name: str, owner: str) -> NotFound:
        own = ", ".join(sorted(n for o, n in self._endpoint_names if o == owner))
        gone = self._revoked(name, owner)
        if gone is not None:
            others = f"; or use another: {own}" if own else ""
            return NotFound(
                f"the endpoint {name!r} was revoked",
                remedy=f"on its machine, it gets new keys with: oncue endpoint register {gone.name}{others}",
            )
        return NotFound(
            f"there is no endpoint {name!r}",
            remedy=f"yours are: {own}" if own else "you have none; make one: oncue endpoint register NAME",
        )

    def _revoked(self, name: str, owner: str) -> EndpointRecord | None:
        gone = (e for e in self._endpoints.values() if e.revoked and e.owner == owner)
        return next((e for e in gone if name in (e.name, e.id)), None)
