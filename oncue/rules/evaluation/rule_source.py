"""Rules as bytes: what an evaluator's process needs to compile a rule again."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

from oncue.rules.parsing.rule_file import Rule, rule_of
from oncue.strict_yaml.document import Node


def pack_rule(rule: Rule) -> bytes:
    """Return the rule as plain data, pickled: integers of any size, infinite numbers."""
    return pickle.dumps(rule.source)


def unpack_rule(packed: bytes) -> Rule:
    """Compile a rule that this program has packed. Raises RuleFileError."""
    return rule_of(_node(pickle.loads(packed)))  # made of plain values by `pack_rule`


def as_stateful(rule: Rule) -> Rule:
    """Compile a rule without operators so that it fires for events that were buffered."""
    return rule_of(_node(rule.source | {"mode": "paused"}))


def rule_hash(rule: Rule) -> str:
    """Return a hash of the rule's text; it changes when the rule is changed."""
    return hashlib.sha256(repr(rule.source).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: _node(item) for key, item in value.items()}, 1, 1)
    return Node([_node(item) for item in value] if isinstance(value, list) else value, 1, 1)
