"""`notify` in a rule's `run`: a message with values of the event, to a receiver that it does not choose."""

from __future__ import annotations

import pytest

from oncue.errors import RuleFileError
from oncue.protocol.records import Event
from oncue.rules.parsing.rule_file import parse

RULE = """
rules:
  - name: tell
    on: {type: org.example.done}
    run: {notify: %s}
"""
EVENT = Event(id="1", source="/s", type="org.example.done", data={"n": 3, "who": "ann@a.example"})


@pytest.mark.parametrize(
    ("notify", "arguments"),
    [
        (
            '{webhook: "https://a.example/x", text: "n is ${data.n}", data: {n: "${data.n}"}, headers: {X-A: b}}',
            {"kind": "webhook", "to": "https://a.example/x", "headers": {"X-A": "b"}, "text": "n is 3", "data": {"n": 3}},
        ),
        ('{slack: "https://a.example/x", text: a}', {"kind": "slack", "to": "https://a.example/x", "text": "a"}),
        (
            '{mail: {to: "${data.who}", from: o@a.example}, text: a, subject: "run ${data.n}"}',
            {"kind": "mail", "to": ["ann@a.example"], "sender": "o@a.example", "text": "a", "subject": "run 3"},
        ),
        (
            '{mail: {to: [a@x.example, b@x.example], from: o@x.example, server: "smtps://m.example", user: u}, text: a}',
            {
                "kind": "mail", "to": ["a@x.example", "b@x.example"], "sender": "o@x.example",
                "server": "smtps://m.example", "user": "u", "text": "a",
            },
        ),
    ],
)  # fmt: skip
def test_the_function_gets_the_message(notify: str, arguments: dict[str, object]) -> None:
    rules = parse(RULE % notify, "x.yaml")
    (run,) = rules.rules[0].runs
    assert run.render(EVENT) == arguments
    assert (run.function, list(rules.scripts), rules.functions) == ("tell.notify", ["tell.notify"], [])


@pytest.mark.parametrize(
    ("notify", "error"),
    [
        ("a", "`notify` is a mapping, not a text"),
        ("{text: a}", "`notify` has no receiver"),
        ('{slack: "https://a.example", webhook: "https://a.example", text: a}', "`notify` has webhook and slack"),
        ('{slack: "https://a.example"}', "`notify` lacks the key 'text'"),
        ('{slak: "https://a.example", text: a}', "`notify` has no key 'slak'"),
        ('{slack: "ftp://a.example/x", text: a}', "notify.slack is a URL: 'ftp://a.example/x'"),
        ('{slack: "/etc/passwd", text: a}', "notify.slack is a URL"),
        ('{webhook: "${data.url}", text: a}', "notify.webhook is a fixed text, without ${...}"),
        ('{slack: "https://a.example", text: a, data: {}}', "`data` is for webhook"),
        ('{slack: "https://a.example", text: a, subject: b}', "`subject` is for mail"),
        ('{slack: "https://a.example", text: 3}', "`notify.text` is a text, not"),
        ('{slack: "https://a.example", text: "${data.n | nope}"}', "notify.text"),
        ("{mail: {to: a@x.example}, text: a}", "`notify.mail` lacks the key 'from'"),
        ('{mail: {to: a, from: "${data.who}"}, text: a}', "notify.mail.from is a fixed text"),
        ('{mail: {to: a, from: b, server: "http://m.example"}, text: a}', "notify.mail.server is no mail server"),
        ("{mail: {to: a, from: b, host: c}, text: a}", "`notify.mail` has no key 'host'"),
        ('{slack: "https://a.example", text: a}, function: a.py:f', "`run` has `notify` and `function`"),
        ('{slack: "https://a.example", text: a}, fresh: true', "`run` has `notify` and `fresh`"),
        ('{slack: "https://a.example", text: a}, cwd: /tmp', "`run` has `notify` and `cwd`"),
        ('{slack: "https://a.example", text: a}, shell: ls', "`run` has `notify` and `shell`"),
    ],
)
def test_mistakes_are_named(notify: str, error: str) -> None:
    with pytest.raises(RuleFileError) as caught:
        parse(RULE % notify, "x.yaml")
    assert error in caught.value.message
