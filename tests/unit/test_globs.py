import random

import psutil
import pytest
import re2

from oncue.errors import Invalid
from oncue.globs import MAX_CHARS, compiled, glob_regex, max_depth

MATCHES = [
    ("**/*.h5", "scan.h5", True),
    ("**/*.h5", "a/b/scan.h5", True),
    ("**/*.h5", "/data/2bm/scan.h5", True),
    ("**/*.h5", "a/scan.h5.tmp", False),
    ("*.h5", "a/scan.h5", False),
    ("**", "a/b/c", True),
    ("raw/**", "raw/a/b", True),
    ("raw/**", "rawer/a", False),
    ("raw/**/x", "raw/x", True),
    ("raw/**/x", "raw/a/b/x", True),
    ("raw/**/x", "raw/ax", False),
    ("a**b", "axyb", True),
    ("a**b", "ax/yb", False),
    ("scan_?.h5", "scan_1.h5", True),
    ("scan_?.h5", "scan_10.h5", False),
    ("scan_?.h5", "scan_/.h5", False),
    ("scan_[0-9].h5", "scan_7.h5", True),
    ("scan_[!0-9].h5", "scan_7.h5", False),
    ("scan_[!0-9].h5", "scan_x.h5", True),
    ("a[!x]b", "a/b", False),
    ("[]]", "]", True),
    ("[^a]", "b", True),
    ("*.{h5,tiff}", "a.tiff", True),
    ("*.{h5,tif{,f}}", "a.tif", True),
    ("*.{h5,tif{,f}}", "a.png", False),
    ("{**/,}x", "a/b/x", True),
    ("a.b", "axb", False),
    ("a+(b)|c", "a+(b)|c", True),
    (r"\*", "*", True),
    (r"\*", "x", False),
    ("a,b}", "a,b}", True),
    ("été*", "été 1", True),
    ("*", "line\nbreak", True),
    ("**", "a/line\nbreak", True),
    ("[/scan]", None, None),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), [m for m in MATCHES if m[1] is not None])
def test_matches(pattern: str, path: str, expected: bool) -> None:
    assert (compiled(pattern).fullmatch(path) is not None) is expected
    assert (re2.fullmatch(glob_regex(pattern), path) is not None) is expected


@pytest.mark.parametrize("pattern", ["[abc", "{a,b", "a\\", "[/scan]", "[z-a]", "x" * (MAX_CHARS + 1)])
def test_a_wrong_pattern_is_refused_with_a_remedy(pattern: str) -> None:
    with pytest.raises(Invalid) as e:
        compiled(pattern)
    assert e.value.remedy


def test_a_hostile_pattern_is_quick() -> None:
    assert compiled("*a" * 200).fullmatch("a" * 5_000 + "b") is None


def test_many_hostile_patterns_keep_little_memory() -> None:
    """With re2's own budget these 100 patterns keep over 200 MB, and one rule file has thousands."""
    chosen = random.Random(7)
    patterns = [compiled(f"*a{'?' * 12}[bc]x{i}*") for i in range(100)]
    before = psutil.Process().memory_info().rss
    for _ in range(60):
        text = "".join(chosen.choices("ab", k=900))
        assert not any(pattern.fullmatch(text) for pattern in patterns)
    assert psutil.Process().memory_info().rss - before < 60_000_000


@pytest.mark.parametrize(
    ("pattern", "depth"), [("*.h5", 1), ("a/*/x", 3), ("**/*.h5", None), ("a/**", None), ("{a/b,c}", None)]
)
def test_depth(pattern: str, depth: int | None) -> None:
    assert max_depth(pattern) == depth
