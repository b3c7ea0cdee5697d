"""`python -m tests.simulation --seeds A:B [--jobs N]` runs seeds; `--seed N --trace` replays one."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.world import World


def try_seed(seed: int) -> str:
    """ "" or what did not hold."""
    try:
        World(seed).run()
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation")
    parser.add_argument("--seeds", default="0:1000", metavar="A:B")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if args.seed is not None:
        World(args.seed, print if args.trace else None).run()
        return 0
    first, last = map(int, args.seeds.split(":"))
    begun, failed = time.monotonic(), 0
    with ProcessPoolExecutor(args.jobs) as pool:
        for seed, why in enumerate(pool.map(try_seed, range(first, last), chunksize=20), first):
            if why:
                failed += 1
                print(f"seed {seed} failed (replay: python -m tests.simulation --seed {seed} --trace)\n{why}")
    took = time.monotonic() - begun
    print(f"{last - first} seeds, {failed} failed, {took:.1f} s, {(last - first) / took * 60:,.0f} a minute")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
