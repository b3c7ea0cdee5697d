"""Files and folders that the pages for contributors name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.py)`")
LINK = re.compile(r"\]\(([\w./-]+\.md)(?:#[\w-]*)?\)")
#: Folders in which a page's file names are looked for, beside the root.
BASES = ("", "oncue", "docs", "oncue/dispatcher/services", "oncue/rules/parsing", "oncue/rules/stateful")
#: Names that stand for something else: files of a user, of an endpoint's folder, or of an example.
OTHERS = re.compile(
    r"(tomo|work|where|counter|debounce|scans|toy)\.py|(functions|blobs|work|secrets|triggers|log|endpoints/local|~).*|.*/"
)


def _exists(name: str) -> bool:
    folders = [ROOT / base for base in BASES]
    return any((folder / name).exists() for folder in folders) or any((ROOT / "oncue").rglob(name))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/extending.md", "docs/glossary.md"])
def test_every_file_that_the_page_names_exists(page: str) -> None:
    names = {n for n in NAMED.findall((ROOT / page).read_text()) if not OTHERS.fullmatch(n)}
    assert not sorted(n for n in names if not _exists(n))


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md", "CONTRIBUTING.md"])
def test_every_folder_that_the_page_names_exists(page: str) -> None:
    names = {n for n in NAMED.findall((ROOT / page).read_text()) if n.endswith("/")}
    assert not sorted(n for n in names if not _exists(n.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
