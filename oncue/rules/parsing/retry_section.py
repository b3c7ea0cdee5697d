"""Parses the retry policy of a rule."""

from __future__ import annotations

from oncue.protocol.records import MAX_RETRIES, StoredRetryPolicy
from oncue.protocol.retry_policy import RETRY_WORDS, is_retry_word
from oncue.rules.parsing.node_values import check_keys, duration, is_mapping, time_limit, typed
from oncue.strict_yaml.document import Node, Problems, nearest

RETRY_KEYS = ("max", "backoff", "base", "cap", "on", "never", "max_age")


def parse_retry(node: Node | None, problems: Problems) -> StoredRetryPolicy | None:
    """Parse `retry`; None without it."""
    if node is None or not is_mapping(node, "`retry`", problems):
        return None
    check_keys(node, RETRY_KEYS, "`retry`", problems)
    default, get = StoredRetryPolicy(), node.value.get
    most = typed(get("max"), int, "max", 3, problems)
    if not 0 <= most <= MAX_RETRIES:
        problems.add(node.value["max"], f"`max` is {most}; it takes 0 to {MAX_RETRIES}")
    backoff = typed(get("backoff"), str, "backoff", default.backoff, problems)
    if backoff not in ("exponential", "constant"):
        problems.add(
            node.value["backoff"], f"there is no backoff {backoff!r}", nearest(backoff, ("exponential", "constant"))
        )
    on, never = _ends(get("on"), "on", problems), _ends(get("never"), "never", problems)
    if on is not None and never is not None and (both := [word for word in never if word in on]):
        problems.add(node.value["never"], f"{both[0]!r} is in `on` and in `never`", "leave it in one of them")
    base = duration(get("base"), "base", problems, default.base_ms)
    cap = duration(get("cap"), "cap", problems, default.cap_ms)
    age = time_limit(get("max_age"), "max_age", problems)
    return StoredRetryPolicy(most, backoff, base, cap, default.on if on is None else on, never or (), age)


def _ends(node: Node | None, key: str, problems: Problems) -> tuple[str, ...] | None:
    """Parse the ends of attempts that `on` or `never` names; None without the key."""
    if node is None:
        return None
    if not isinstance(node.value, (list, str)):
        known = ", ".join(RETRY_WORDS)
        problems.add(node, f"retry's `{key}` is a list of {known}, exit:75, ValueError and the like, not {node.kind()}")
        return None
    found = []
    for word in [node] if isinstance(node.value, str) else node.value:
        if not isinstance(word.value, str):
            problems.add(word, f"an end to retry is a text such as lost or exit:75, not {word.kind()}")
        elif not is_retry_word(word.value):
            problems.add(word, f"there is no end {word.value[:60]!r} to retry", _remedy(word.value))
        else:
            found.append(word.value)
    return tuple(found)


def _remedy(word: str) -> str:
    if word.startswith("exit"):
        return "exit codes are exit:1 to exit:255"
    if word.lower() in RETRY_WORDS:
        return f"write {word.lower()}; a class {word} with its module: mymodule.{word}"
    near = nearest(word, RETRY_WORDS)
    classes = "a class is written with its module, or begins with a capital letter: mypkg.Retriable, ValueError"
    return f"{near}; {classes}" if near else classes
