"""Text of outsiders cannot control a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest

from oncue.text.escape import escaped, escaped_json

HOSTILE = "\x1b[2J\x9b31m\x00\x7f\r\n\u2028\u2029\u202e\u2066\u200f\u061c\ufeff\U000e0041"


def test_unprintable_characters_are_escaped() -> None:
    shown = escaped(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith("\\x1b[2J\\x9b31m\\x00\\x7f\\x0d\\x0a\\u2028")
    assert escaped("Größe 5 µm, 你好 …") == "Größe 5 µm, 你好 …"


def test_line_breaks_and_tabs_are_kept_on_request_only() -> None:
    assert escaped("a\n\tb\r", lines=True) == "a\n\tb\\x0d"


@pytest.mark.parametrize("text", [HOSTILE, "plain", "\x85\u180e", "\ud800"])
def test_json_keeps_its_value(text: str) -> None:
    document = json.dumps({"name": text}, ensure_ascii=False, indent=2)
    shown = escaped_json(document)
    assert json.loads(shown) == {"name": text}
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n"}
