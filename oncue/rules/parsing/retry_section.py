"""Parses the retry policy of a rule."""

from __future__ import annotations

from oncue.protocol.records import MAX_RETRIES, StoredRetryPolicy
from oncue.rules.parsing.node_values import check_keys, duration, is_mapping, typed
from oncue.strict_yaml.document import Node, Problems, nearest
from oncue.task_lifecycle import RETRY_WORDS, is_retry_word

RETRY_KEYS = ("max", "backoff", "base", "cap", "on")


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
    on = get("on")
    words = [on] if on is not None and isinstance(on.value, str) else on.value if on is not None else []
    if on is not None and not isinstance(on.value, (list, str)):
        problems.add(on, f"retry's `on` is a list of {', '.join(RETRY_WORDS)}, exit:75 and the like, not {on.kind()}")
        words = []
    for word in words:
        if not isinstance(word.value, str):
            problems.add(word, f"an end to retry is a text such as lost or exit:75, not {word.kind()}")
        elif not is_retry_word(word.value):
            is_exit = word.value.startswith("exit")
            remedy = "exit codes are exit:1 to exit:255" if is_exit else nearest(word.value, RETRY_WORDS)
            problems.add(word, f"there is no end {word.value!r} to retry", remedy)
    base = duration(get("base"), "base", problems, default.base_ms)
    cap = duration(get("cap"), "cap", problems, default.cap_ms)
    ends = tuple(str(w.value) for w in words) if on is not None else default.on
    return StoredRetryPolicy(most, backoff, base, cap, ends)
