"""`python -m tests.simulation --seeds A:B [--jobs N] [KIND]` runs seeds; `--seed N --trace` replays one."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.block_world import BlockWorld
from tests.simulation.gangs import GangWorld
from tests.simulation.many import ManyWorld
from tests.simulation.nodes import NodeWorld
from tests.simulation.world import World

WORLDS: dict[str, type[World | BlockWorld | NodeWorld]] = {
    "": World,
    "many": ManyWorld,
    "blocks": BlockWorld,
    "nodes": NodeWorld,
    "gangs": GangWorld,
}


def try_seed(seed: int, world: type[World | BlockWorld | NodeWorld] = World) -> str:
    """ "" or what did not hold."""
    try:
        world(seed).run()
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation")
    parser.add_argument("--seeds", default="0:1000", metavar="A:B")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--many", action="store_true", help="several servers on a log that they share")
    parser.add_argument("--blocks", action="store_true", help="an endpoint with blocks of a batch scheduler")
    parser.add_argument("--nodes", action="store_true", help="an agent and its nodes")
    parser.add_argument("--gangs", action="store_true", help="an agent and its nodes, and tasks over several")
    args = parser.parse_args()
    kind = next((k for k in WORLDS if k and getattr(args, k)), "")
    world = WORLDS[kind]
    if args.seed is not None:
        world(args.seed, trace=print if args.trace else None).run()
        return 0
    first, last = map(int, args.seeds.split(":"))
    begun, failed = time.monotonic(), 0
    with ProcessPoolExecutor(args.jobs) as pool:
        for seed, why in enumerate(pool.map(partial(try_seed, world=world), range(first, last), chunksize=20), first):
            if why:
                failed += 1
                how = f"{f'--{kind} ' if kind else ''}--seed {seed} --trace"
                print(f"seed {seed} failed (replay: python -m tests.simulation {how})\n{why}")
    took = time.monotonic() - begun
    print(f"{last - first} seeds, {failed} failed, {took:.1f} s, {(last - first) / took * 60:,.0f} a minute")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
