"""Run the code blocks of the README and of docs/.

The blocks of a page run in order, in one folder. A block whose first line is a comment with a file
name is written to that file. Other blocks are run by their language:

    ```console    run the lines after "$ ", without `make ...` and `pip install ...`; `oncue up`
                  runs in the background
    ```python     run by python
    ```yaml       read by the parser of rule files if it has rules or triggers, by that of endpoint.yaml if
                  it has provider, blocks or workers

Other languages (```sh, ```text ...) are for other machines and are not run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from oncue.endpoint.options.file import parse_options
from oncue.rules.parsing.rule_file import parse
from oncue.triggers.catalog import OptionStructs
from tests.e2e.running import System

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^(?:#|//)\s*([\w./-]+\.\w+)\s*$")
SKIPPED = ("make", "pip", "git", "cd", "docker", "brew", "ssh")


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if any(b.language in ("console", "python", "yaml") for b in blocks(page))
]


def name_of(block: Block) -> str:
    found = NAMED.match(block.text.partition("\n")[0])
    return found[1] if found else ""


def commands(block: Block) -> Iterator[str]:
    for line in block.text.splitlines():
        if not line.startswith("$ "):
            continue
        command = line[2:].strip()
        words = shlex.split(command, comments=True)
        if words and words[0] not in SKIPPED:
            yield "oncue up --detach " + command[len("oncue up") :] if words[:2] == ["oncue", "up"] else command


def run(system: System, command: list[str], place: str, given: str = "") -> None:
    done = subprocess.run(
        command,
        cwd=system.folder,
        env=system.env,
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{place}: {command[-1]}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, f"{place}: {command[-1]}\n{done.stderr}"


def run_block(system: System, block: Block, place: str) -> None:
    name = name_of(block)
    if name:
        system.write(name, block.text)
    elif block.language == "console":
        for command in commands(block):
            run(system, ["bash", "-euo", "pipefail", "-c", command], place)
    elif block.language == "python":
        run(system, [sys.executable, "-W", "error", "-"], place, block.text)
    elif block.language == "yaml" and re.search(r"^(rules|triggers):", block.text, re.MULTILINE):
        options = OptionStructs()
        parse(block.text, place, options, triggers=None)
    elif block.language == "yaml" and re.search(r"^(provider|blocks|workers):", block.text, re.MULTILINE):
        parse_options(block.text, place)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(stopped: System, page: Path) -> None:
    bin_ = stopped.folder / ".bin"
    bin_.mkdir()
    shim = bin_ / "oncue"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m oncue "$@"\n')
    shim.chmod(0o755)
    stopped.env |= {"ONCUE_PORT": "0", "PATH": f"{bin_}:{Path(sys.executable).parent}:{stopped.env['PATH']}"}
    ran = 0
    for block in blocks(page):
        run_block(stopped, block, f"{page.name}:{block.line}")
        stopped.note()
        ran += block.language in ("console", "python", "yaml")
    assert ran
    if page.name == "README.md":
        (task,) = stopped.await_tasks(1, rule="measure")
        assert task["value"] == {"bytes": 1000, "mean": 0.0}
