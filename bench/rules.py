"""Measure event matching against 10, 1,000 and 10,000 rules on one core.

Each rule has a trigger, a size and a glob; an event matches one rule. There are ten triggers, so an
event is compared with a tenth of the rules. The rate is events a second of CPU time, the best of a
few rounds, since the machine does other work too.
"""

from __future__ import annotations

import json
import time
from typing import Any

from oncue.protocol.records import VERSION, Deployment, Event
from oncue.rules.active_rules import ActiveRules, RuleCompiler

TRIGGERS = 10


def text(rules: int) -> str:
    """Return a rule file of `rules` rules."""
    out = ["rules:"]
    for n in range(rules):
        on, path = f"t{n % TRIGGERS}", f"/data/beam{n:05d}/**/scan_*.h5"
        match = f'{{data.path: {{glob: "{path}"}}, data.size: {{gt: 1MB}}}}'
        run = '{function: "tomo.py:reconstruct", args: {path: "${data.path}"}}'
        out.append(f"  - {{name: r{n}, on: {on}, match: {match}, run: {run}}}")
    return "\n".join(out)


def compile_rules(rules: int) -> ActiveRules:
    deployments = [
        Deployment(VERSION, f"f{k}", 1, "bench", part, {"tomo.py:reconstruct": "0" * 64})
        for k, part in enumerate(_parts(rules))
    ]
    return RuleCompiler().compile(deployments)


def _parts(rules: int, size: int = 1_000) -> list[str]:
    lines = text(rules).split("\n")[1:]
    return ["\n".join(["rules:", *lines[at : at + size]]) for at in range(0, rules, size)]


def events(rules: int, count: int) -> list[Event]:
    return [_event(n * 7919 % rules, n) for n in range(count)]


def _event(rule: int, n: int) -> Event:
    data: dict[str, Any] = {"path": f"/data/beam{rule:05d}/raw/scan_{n}.h5", "size": 5_000_000, "exposure_s": 0.2}
    extensions: dict[str, str | int | bool] = {"oncuetrigger": f"t{rule % TRIGGERS}"}
    return Event(id=str(n), source="/bench", type="oncue.file.ready", data=data, extensions=extensions)


def rate(rules: int, count: int = 10_000, rounds: int = 3) -> float:
    """Return events a second.

    Raises AssertionError if an event does not match its one rule.
    """
    compiled, given = compile_rules(rules), events(rules, count)
    best = 0.0
    for _ in range(rounds):
        start = time.process_time()
        matched = sum(len(compiled.matching(event)) for event in given)
        best = max(best, count / (time.process_time() - start))
        if matched != count:
            raise AssertionError(f"{matched} of {count} events matched")
    return best


def run(rounds: int = 3) -> dict[str, Any]:
    rates = {f"rules_{n}_events_per_s": round(rate(n, rounds=rounds)) for n in (10, 1_000, 10_000)}
    return rates | {"ratio_10000_to_10": round(rates["rules_10000_events_per_s"] / rates["rules_10_events_per_s"], 2)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
