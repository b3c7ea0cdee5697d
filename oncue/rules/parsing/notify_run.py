"""Parses `notify` of a rule's `run`: a message to people or another service."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from oncue.rules.matching.template import Refer, Template, compile_args
from oncue.rules.parsing.function_keys import FUNCTION_KEYS
from oncue.rules.parsing.node_values import check_keys, is_mapping, required, typed
from oncue.rules.parsing.shell_run import OPTION_KEYS, SCRIPT_KEYS, SHELL_KEYS
from oncue.strict_yaml.document import Node, Problems

NOTIFY = "notify"
WAYS = ("webhook", "slack", "mail")
NOTIFY_KEYS = (*WAYS, "text", "subject", "data", "headers")
MAIL_KEYS = ("to", "from", "server", "user")
SCHEMES = ("smtp", "smtps", "smtp+starttls")
_EXAMPLE = '{slack: "https://hooks.example.org/T0", text: "${data.rule} failed"}'
_OF = {"subject": ("mail",), "data": ("webhook",), "headers": ("webhook", "slack")}  # keys of some ways alone


def parse_notify(run: Node, problems: Problems, refer: Refer) -> Template | None:
    """Return the template of the function's arguments; None after a problem."""
    before, node = len(problems.found), run.value[NOTIFY]
    for key in ("args", "function", *SCRIPT_KEYS, *SHELL_KEYS, *OPTION_KEYS, *FUNCTION_KEYS):
        if key in run.value:
            problems.add(
                run.at_key(key), f"`run` has `notify` and `{key}`", "`notify` has `text`, `subject` and `data`"
            )
    if not is_mapping(node, "`notify`", problems):
        return None
    check_keys(node, NOTIFY_KEYS, "`notify`", problems)
    if len(problems.found) > before:
        return None
    ways = [way for way in WAYS if way in node.value]
    if len(ways) != 1:
        problems.add(
            node, f"`notify` has {' and '.join(ways) or 'no receiver'}", f"one of {', '.join(WAYS)}: {_EXAMPLE}"
        )
    required(node, "text", "`notify`", problems)
    for key, of in _OF.items():
        if key in node.value and ways and ways[0] not in of:
            problems.add(node.at_key(key), f"`{key}` is for {' and '.join(of)}")
    if len(problems.found) > before:
        return None
    way, to = ways[0], node.value[ways[0]]
    given = {"kind": Node(way, node.line, node.column)}
    given |= _mail(to, problems) if way == "mail" else {"to": _url(to, way, problems)}
    if "headers" in node.value:
        given["headers"] = _headers(node.value["headers"], problems)
    given |= {key: _text(node.value[key], key, problems) for key in ("text", "subject") if key in node.value}
    given |= {"data": node.value["data"]} if "data" in node.value else {}
    args = compile_args(Node(given, node.line, node.column), problems, NOTIFY, refer)
    return None if len(problems.found) > before else args


def _text(node: Node, key: str, problems: Problems) -> Node:
    typed(node, str, f"notify.{key}", "", problems)
    return node


def _fixed(node: Node, key: str, problems: Problems) -> str:
    """Return a text that no event may choose."""
    text = str(typed(node, str, f"notify.{key}", "", problems))
    if "${" in text:
        problems.add(node, f"notify.{key} is a fixed text, without ${{...}}", "an event must not choose the receiver")
    return text


def _url(node: Node, way: str, problems: Problems) -> Node:
    text = _fixed(node, way, problems)
    if text and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname):
        problems.add(node, f"notify.{way} is a URL: {text[:100]!r}", "https://HOST/PATH")
    return node


def _headers(node: Node, problems: Problems) -> Node:
    if is_mapping(node, "`notify.headers`", problems):
        for name, value in node.value.items():
            if "\n" in _fixed(value, f"headers.{name}", problems) + name:
                problems.add(value, "a header is one line")
    return node


def _mail(node: Node, problems: Problems) -> Mapping[str, Node]:
    if not is_mapping(node, "`notify.mail`", problems):
        return {}
    check_keys(node, MAIL_KEYS, "`notify.mail`", problems)
    to, sender = (required(node, key, "`notify.mail`", problems) for key in ("to", "from"))
    if to is None or sender is None:
        return {}
    for one in to.value if isinstance(to.value, list) else [to]:
        _text(one, "mail.to", problems)
    given = {"to": to if isinstance(to.value, list) else Node([to], to.line, to.column), "sender": sender}
    _fixed(sender, "mail.from", problems)
    if (server := node.value.get("server")) is not None:
        url = urlsplit(_fixed(server, "mail.server", problems))
        if url.scheme not in SCHEMES or not url.hostname:
            problems.add(
                server,
                f"notify.mail.server is no mail server: {str(server.value)[:100]!r}",
                "smtp://HOST:25, smtps://HOST, smtp+starttls://HOST",
            )
        given["server"] = server
    if (user := node.value.get("user")) is not None:
        _fixed(user, "mail.user", problems)
        given["user"] = user
    return given
