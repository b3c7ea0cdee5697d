"""In-memory copy of the registry: endpoints and tokens.

Every request needs the registry, and it is small. `reload` adds what the view has behind the last
record that it read, so the cost of a change does not grow with the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.errors import NotFound
from oncue.protocol.records import EndpointRecord, TokenRecord
from oncue.protocol.topics import TaskTopics
from oncue.view import View
from oncue.view.lookups import Newer

SHOWN = 20  # names of endpoints in an error
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


class EndpointIndex:
    """Endpoints by id, name, key and owner."""

    def __init__(self) -> None:
        self.by_id: dict[str, EndpointRecord] = {}  # in registry order
        # Two servers may register one name at once. Until one is revoked, the first counts.
        self._named: dict[tuple[str, str], dict[str, None]] = {}  # (owner, name) -> ids that are not revoked
        self._revoked: dict[tuple[str, str], str] = {}  # (owner, name) -> id of the last one
        self._keys: dict[bytes, dict[str, None]] = {}
        self._owned: dict[str, dict[str, None]] = {}  # owner -> ids
        self._in_force: dict[str, dict[str, None]] = {}  # owner -> ids that are not revoked

    def store(self, e: EndpointRecord) -> None:
        """Add an endpoint, or replace the one with its id."""
        old = self.by_id.pop(e.id, None)
        if old is not None:
            self._keys[old.public_key].pop(e.id, None)
            self._named.get((old.owner, old.name), {}).pop(e.id, None)
            self._in_force.get(old.owner, {}).pop(e.id, None)
            self._owned[old.owner].pop(e.id, None)
        self.by_id[e.id] = e
        self._keys.setdefault(e.public_key, {})[e.id] = None
        self._owned.setdefault(e.owner, {})[e.id] = None
        if e.revoked:
            self._revoked[e.owner, e.name] = e.id
        else:
            self._named.setdefault((e.owner, e.name), {})[e.id] = None
            self._in_force.setdefault(e.owner, {})[e.id] = None

    def named(self, name: str, owner: str) -> EndpointRecord | None:
        """Return the owner's first endpoint of this name that is not revoked."""
        return self.by_id.get(next(iter(self._named.get((owner, name), ())), ""))

    def revoked(self, name: str, owner: str) -> EndpointRecord | None:
        """Return a revoked endpoint of this owner by name or id."""
        found = self.by_id.get(name)
        if found is None or not found.revoked or found.owner != owner:
            found = self.by_id.get(self._revoked.get((owner, name), ""))
        return found

    def with_key(self, key: bytes) -> list[EndpointRecord]:
        """Return the endpoints with this public key, also revoked ones."""
        return [self.by_id[i] for i in self._keys.get(key, ())]

    def counts(self, owner: str) -> tuple[int, int]:
        """Return the owner's number of endpoints in force, and with revoked ones."""
        return len(self._in_force.get(owner, ())), len(self._owned.get(owner, ()))

    def some_names(self, owner: str) -> list[str]:
        """Return names of the owner's endpoints that are not revoked, at most SHOWN + 1."""
        return [self.by_id[i].name for i in islice(self._in_force.get(owner, ()), SHOWN + 1)]


class TokenIndex:
    """Tokens by hash, id, owner and maker.

    Each is revoked or expired at the latest with its maker.
    """

    def __init__(self, tokens: Sequence[TokenRecord] = ()) -> None:
        self._stored = {t.id: t for t in tokens}
        self.by_id = {t.id: t for t in effective_tokens(tokens)}
        self.by_hash = {t.hash: t for t in self.by_id.values()}
        self._made: dict[str, dict[str, None]] = {}  # maker -> ids
        self._owned: dict[str, dict[str, None]] = {}
        for token in tokens:
            self._add(token)

    def _add(self, t: TokenRecord) -> None:
        self._made.setdefault(t.parent, {})[t.id] = None
        self._owned.setdefault(t.subject, {})[t.id] = None

    def store(self, token: TokenRecord) -> None:
        """Add or replace a token; those that it made follow it."""
        old = self._stored.get(token.id)
        if old is not None:
            self.by_hash.pop(old.hash, None)
            self._made[old.parent].pop(old.id, None)
            self._owned[old.subject].pop(old.id, None)
        self._stored[token.id] = token
        self._add(token)
        for link in self.with_descendants(token):
            stored = self._stored[link.id]
            found = self.by_id[link.id] = _within(self.by_id.get(stored.parent), stored)
            self.by_hash[found.hash] = found

    def with_descendants(self, token: TokenRecord) -> list[TokenRecord]:
        """Return the token, those that it made, those that they made ..."""
        found, seen = [token], {token.id}
        for t in found:  # grows meanwhile
            fresh = [i for i in self._made.get(t.id, ()) if i not in seen]
            seen.update(fresh)
            found += [self.by_id.get(i, self._stored[i]) for i in fresh]
        return found

    def of(self, subject: str) -> list[TokenRecord]:
        """Return the tokens of a subject, also revoked ones."""
        return [self.by_id[i] for i in self._owned.get(subject, ())]


class RegistryCache:
    """Endpoints and tokens by name, id and hash.

    Implements rules.task_frames.EndpointDirectory.
    """

    def __init__(self, task_topics: TaskTopics) -> None:
        self._task_topics = task_topics
        self._endpoints, self._endpoints_at = EndpointIndex(), -1
        self._tokens, self._tokens_at = TokenIndex(), -1
        self._changed: dict[str, None] = {}  # endpoints, since the last call of drain_changed

    async def reload(self, view: View) -> None:
        """Add what the view has and the copy has not."""
        endpoints = await view.newer_endpoints(self._endpoints_at)
        self._store_endpoints(endpoints)
        if len(self._endpoints.by_id) != endpoints.total:  # records were removed
            endpoints = await view.newer_endpoints(-1)
            self._endpoints, self._endpoints_at = EndpointIndex(), -1
            self._store_endpoints(endpoints)
        tokens = await view.newer_tokens(self._tokens_at)
        if tokens.position > self._tokens_at >= 0:
            for token in tokens.records:
                self._tokens.store(token)
            self._tokens_at = tokens.position
        if len(self._tokens.by_id) != tokens.total:
            tokens = await view.newer_tokens(-1)
            self._tokens, self._tokens_at = TokenIndex(tokens.records), tokens.position

    def _store_endpoints(self, found: Newer[EndpointRecord]) -> None:
        if found.position <= self._endpoints_at:  # another call has stored them
            return
        self._endpoints_at = found.position
        for e in found.records:
            self._endpoints.store(e)
            self._changed[e.id] = None

    def drain_changed(self) -> list[EndpointRecord]:
        """Return the endpoints that changed since the last call."""
        changed, self._changed = self._changed, {}
        return [found for i in changed if (found := self._endpoints.by_id.get(i)) is not None]

    # ------------------------------------------------------------ tokens

    def token(self, hash_hex: str) -> TokenRecord | None:
        """Return the token with this SHA-256, also a revoked one."""
        return self._tokens.by_hash.get(hash_hex)

    def token_by_id(self, token_id: str) -> TokenRecord | None:
        """Return the token with this id, also a revoked one."""
        return self._tokens.by_id.get(token_id)

    def tokens(self) -> list[TokenRecord]:
        """Return all tokens, also revoked ones."""
        return list(self._tokens.by_id.values())

    def tokens_of(self, subject: str) -> list[TokenRecord]:
        """Return the tokens of a subject, also revoked ones."""
        return self._tokens.of(subject)

    def with_descendants(self, token: TokenRecord) -> list[TokenRecord]:
        """Return the token, those that it made, those that they made ..."""
        return self._tokens.with_descendants(token)

    # ------------------------------------------------------------ endpoints

    def endpoints(self) -> list[EndpointRecord]:
        """Return all endpoints, also revoked ones."""
        return list(self._endpoints.by_id.values())

    def endpoint_counts(self, owner: str) -> tuple[int, int]:
        """Return the owner's number of endpoints in force, and with revoked ones."""
        return self._endpoints.counts(owner)

    def with_key(self, key: bytes) -> list[EndpointRecord]:
        """Return the endpoints with this public key, also revoked ones."""
        return self._endpoints.with_key(key)

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        """Return the endpoint with this id, also a revoked one."""
        return self._endpoints.by_id.get(endpoint_id)

    def named(self, name: str, owner: str) -> EndpointRecord | None:
        """Return the owner's endpoint of this name that is not revoked."""
        return self._endpoints.named(name, owner)

    def endpoint_id(self, name: str, owner: str) -> str | None:
        """Return the id of the endpoint that this owner means by a name or id."""
        found = self._endpoints.named(name, owner)
        if found is None:
            found = self._endpoints.by_id.get(name)
        return found.id if found is not None and found.owner == owner else None

    def endpoint_name(self, endpoint_id: str) -> str:
        """Return the name of an endpoint, or its id if it is unknown."""
        found = self._endpoints.by_id.get(endpoint_id)
        return found.name if found else endpoint_id

    def quota_owner(self, endpoint_id: str) -> str:
        """Return the owner whose quotas count for an endpoint; "" for an admin."""
        found = self._endpoints.by_id.get(endpoint_id)
        owner = found.owner if found else ""
        return "" if any("admin" in t.scopes and not t.revoked for t in self._tokens.of(owner)) else owner

    def tasks_topic(self, endpoint: str) -> str:
        """Return the topic that has the tasks of this endpoint."""
        return self._task_topics.of(endpoint)

    def tasks_topics(self) -> list[str]:
        """Return the topics that have the tasks of all endpoints."""
        return [*{self.tasks_topic(e) for e in self._endpoints.by_id}]

    def is_revoked(self, name: str, owner: str) -> bool:
        """Return True if an endpoint of the owner with this name or id was revoked."""
        return self._endpoints.revoked(name, owner) is not None

    def find_endpoint(self, caller: Caller, name: str) -> EndpointRecord:
        """Return the endpoint of this name (the caller's own first) or id.

        Raises NotFound, also for another's endpoint, with the names that the caller may use.
        """
        found = self.named(name, caller.subject) or self._endpoints.by_id.get(name)
        if found is None and caller.sees_all:
            found = next((e for e in self._endpoints.by_id.values() if e.name == name and not e.revoked), None)
        if found is None or found.revoked or not caller.sees(found.owner):
            raise self._not_found(name, caller.subject)
        return found

    def _not_found(self, name: str, owner: str) -> NotFound:
        names = sorted(self._endpoints.some_names(owner))
        own = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        gone = self._endpoints.revoked(name, owner)
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
