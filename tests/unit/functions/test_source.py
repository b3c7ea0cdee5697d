"""Parts of a source and its imports."""

from __future__ import annotations

from oncue.functions.source import imported, part_for


def test_part_keeps_its_line_numbers() -> None:
    text = (
        "import os\nimport sys\n\n\nA = 1\nB = A\n\n\n@staticmethod\ndef f():\n    return B, sys\n\n\ndef g(): pass\n"
    )
    part = part_for(text, {"f"})
    assert part.splitlines() == [
        "",
        "import sys",
        "",
        "",
        "A = 1",
        "B = A",
        "",
        "",
        "@staticmethod",
        "def f():",
        "    return B, sys",
    ]
    assert part_for("x = = 1", {"x"}) == ""
    assert part_for("try:\n    import a\nexcept ImportError:\n    a = None\ndef f(): return a\n", {"f"}).startswith(
        "try:"
    )


def test_imports_anywhere_in_the_text() -> None:
    text = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\n    import i as j\n"
    assert set(imported(text, "p.q")) == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.g", "p.g.h", "i"}
