"""Parse the rule files of docs/ and examples/, and run the functions of examples/."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from oncue.cli.rule_files import pack_functions, read, run_tests
from oncue.endpoint.options.file import parse_options
from oncue.endpoint.options.providers import kind_of
from oncue.rules.parsing.rule_file import parse
from oncue.rules.testing.runner import run_tests as run_rule_tests
from oncue.triggers.catalog import OptionStructs

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(m[1], id=f"{page.name}-{n}") for page in PAGES for n, m in enumerate(BLOCK.finditer(page.read_text()))
]
ENDPOINT_BLOCKS = [block for block in BLOCKS if re.search("^(provider|mpi):", str(block.values[0]), re.MULTILINE)]
# Those of deploy.md are deployed with their values, which are a block too, by the test of the guides.
RULE_BLOCKS = [block for block in BLOCKS if block not in ENDPOINT_BLOCKS and "deploy.md" not in str(block.id)]
EXAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))


@pytest.mark.parametrize("text", RULE_BLOCKS)
def test_a_rule_file_of_the_pages_parses(text: str) -> None:
    found = parse(text, "page", OptionStructs())
    assert found.rules or found.triggers


@pytest.mark.parametrize("text", [block for block in BLOCKS if str(block.id).startswith(("operators.md", "limits.md"))])
def test_the_tests_of_the_pages_of_operators_and_limits_pass(text: str) -> None:
    tests = run_rule_tests(parse(text, "page"), ROOT)
    assert tests
    assert [t.why for t in tests if not t.passed] == []


@pytest.mark.parametrize("text", ENDPOINT_BLOCKS)
def test_an_endpoint_yaml_of_the_pages_is_read(text: str) -> None:
    assert kind_of(parse_options(text, "page").provider) in ("local", "slurm", "kubernetes", "parsl")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_deploys_and_its_own_tests_pass(path: Path) -> None:
    sets = read([str(path)])
    assert pack_functions(sets)
    tests = run_tests(sets)
    assert len(tests) >= 2
    assert [t for t in tests if not t.passed] == []


def test_examples_have_labels_of_their_own() -> None:
    assert len({path.stem for path in EXAMPLES}) == len(EXAMPLES) >= 2


def test_a_made_scan_is_normalised(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    scan, preview = tmp_path / "scan_1.npy", tmp_path / "p.pgm"
    _module("tomography/make_scan.py").make_scan(str(scan), frames=6, size=32)
    found = _module("tomography/tomo.py").normalise(str(scan), str(preview))
    assert found["projections"] == 6
    assert 0 < found["absorption"] < 1
    assert preview.stat().st_size == len(b"P5 32 32 255\n") + 32 * 32
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_the_log_book_has_one_line_a_key(tmp_path: Path) -> None:
    add = _module("webhook/logbook.py").add
    book = tmp_path / "book.txt"
    written = [add(17, "ended", "a", str(book))["written"], add(17, "ended", "a", str(book))["written"]]
    add(18, "ended", "b", str(book))
    assert written == [True, False]
    assert book.read_text() == "run 17: ended [a]\nrun 18: ended [b]\n"


def _module(name: str) -> ModuleType:
    path = ROOT / "examples" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
