"""Fuzzes the targets with Atheris, guided by coverage: `make fuzz TIME=60 TARGET=rule_file`.

    python -m tests.security.fuzz [--time SECONDS] [TARGET ...]

Each target gets TIME seconds, in a process of its own. An input that fails is stored in fuzz/crashes/TARGET-*, with the
traceback; try it again with `python -m tests.security.fuzz --input FILE TARGET`. The corpus grows in fuzz/corpus/TARGET.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path("fuzz")
MAX_BYTES = 20_000
SLOW_S, MEMORY_MB = 10, 2_048


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process. Does not return. Nothing of oncue may have been imported before."""
    import atheris

    with atheris.instrument_imports(include=["oncue"]):
        from tests.security.targets import TARGETS, attempt
        from tests.security.test_random_input import SEEDS

    corpus, crashes = FOLDER / "corpus" / name, FOLDER / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS[name]):
        (corpus / f"seed{i}").write_bytes(seed)
    limits = [f"-max_len={MAX_BYTES}", f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MB}"]
    words = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/{name}-", *limits]
    atheris.Setup(words, lambda data: attempt(TARGETS[name], data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz")
    parser.add_argument("--time", type=int, default=60, help="seconds for each target")
    parser.add_argument("--input", type=Path, help="try this file once")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="names in tests/security/targets.py (all)")
    given = parser.parse_args()
    if given.here:
        fuzz(given.targets[0], given.time)
    from tests.security.test_random_input import SEEDS

    wrong = [name for name in given.targets if name not in SEEDS]
    if wrong:
        parser.error(f"there is no target {wrong[0]!r}; there are {', '.join(SEEDS)}")
    if given.input:
        from tests.security.targets import TARGETS, attempt

        attempt(TARGETS[given.targets[0]], given.input.read_bytes())
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("Atheris is not installed: pip install 'atheris>=3' (it has wheels for Linux, for Python 3.11 to 3.13)")
        return 1
    failed = []
    for name in given.targets or SEEDS:
        print(f"== {name}: {given.time} s", flush=True)
        words = [sys.executable, "-m", "tests.security.fuzz", "--here", "--time", str(given.time), name]
        if subprocess.run(words, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}; the inputs are in {FOLDER / 'crashes'}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
