"""A type checker sees wrong arguments and results of calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GOOD = """
import asyncio
from oncue import AsyncClient, Client, OncueExecutor, Task

def square(x: int) -> int:
    return x * x

def add(x: int, y: float) -> float:
    return x + y

async def later(x: int) -> str:
    return str(x)

client = Client()
task: Task[int] = client.submit(square, 3)
text: str = client.submit(later, 3).result()
there: int = client.submit(square, 3, endpoint="polaris").result()
careful: float = client.with_options(retry=3).submit(add, 1, y=2.5).result(timeout=3)
named = client.submit("square@2", 3)
squares: list[int] = client.gather(client.map(square, range(5)))
sums: list[float] = client.gather(client.map(add, range(5), [0.5] * 5))
either: list[int | BaseException] = client.gather(client.map(square, [1]), return_exceptions=True)
shared = client.put(5)
of_shared: int = client.submit(square, shared).result()
with OncueExecutor(client, endpoint="local") as executor:
    future: int = executor.submit(square, 3).result()

async def main() -> None:
    found: int = await client.submit(square, 3)
    async with AsyncClient() as other:
        here: int = await (await other.submit(square, 3))
        words: list[str] = await other.gather([await other.submit(later, 3)])

asyncio.run(main())
"""
BAD = {
    'client.submit(square, "a")': "incompatible type",
    "client.submit(square)": "",
    "client.submit(square, 1, 2)": "",
    "client.submit(add, 1, z=2)": "",
    'client.map(square, ["a"])': "incompatible type",
    "client.map(add, [1])": "",
    "client.map(add, [1], ['a'])": "incompatible type",
    "word: str = client.submit(square, 1).result()": "Incompatible types",
    "texts: list[str] = client.gather(client.map(square, [1]))": "",
}


def mypy(path: Path, content: str) -> list[str]:
    path.write_text(content)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--cache-dir",
        str(path.parent),
        str(path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    return [line for line in (run.stdout + run.stderr).splitlines() if ": error:" in line]


def test_right_calls_pass_and_wrong_ones_fail(tmp_path: Path) -> None:
    assert mypy(tmp_path / "good.py", GOOD) == []
    first = len(GOOD.splitlines()) + 1
    errors = mypy(tmp_path / "bad.py", GOOD + "\n".join(BAD) + "\n")
    for number, (line, words) in enumerate(BAD.items(), first):
        found = [e for e in errors if re.search(rf"bad\.py:{number}: ", e)]
        assert found, (line, errors)
        assert words in found[0] or "No overload variant" in found[0], found
