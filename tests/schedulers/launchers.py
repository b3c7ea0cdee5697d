"""Stand-in of launchers: starts the command for real, once for each process that the real program would start.

Its commands are links to this file, by whose names it knows what to do. It takes the options of the manuals
and refuses others. "Hosts" are processes with another HOST; launchers that do not pass the environment on
give them none. $LAUNCHED: a file that gets a line for each start: program, arguments, host.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: How many words follow each option.
OPTIONS: dict[str, dict[str, int]] = {
    "mpiexec": {"-n": 1, "-ppn": 1, "-prepend-rank": 0},
    "mpirun": {"-n": 1, "--map-by": 1, "--bind-to": 1, "--tag-output": 0},
    "aprun": {"-n": 1, "-N": 1, "-cc": 1, "-q": 0},
    "jsrun": dict.fromkeys(
        ("--nrs", "--rs_per_host", "--tasks_per_rs", "--cpu_per_rs", "--gpu_per_rs", "--bind", "--stdio_mode"), 1
    ),
    "pbsdsh": {"-c": 1, "-n": 1, "-o": 0, "-s": 0, "-v": 0},
    "blaunch": {"-z": 1, "-u": 1, "-no-shell": 0},
    "qrsh": {"-inherit": 0, "-nostdin": 0, "-noshell": 0},
}
TORQUE = {"pbsdsh": {"-c": 1, "-n": 1, "-h": 1, "-o": 0, "-s": 0, "-u": 0, "-v": 0}}
#: They give the remote processes the environment that they have themselves.
FORWARDS = frozenset(("mpiexec", "aprun", "jsrun"))
CORES = 4  # of each host: Torque's pbsdsh starts a process for each


def parsed(program: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return (options, the rest). Ends the program at an unknown option, as the real ones do."""
    known = (TORQUE if os.environ.get("LAUNCHER_KIND") == "torque" else {}).get(program) or OPTIONS[program]
    given, rest = {}, list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--" and program == "pbsdsh":
            break
        if option not in known:
            sys.exit(f"{program}: unrecognized argument {option}")
        given[option] = rest.pop(0) if known[option] else ""
    return given, rest


def placed(program: str, given: dict[str, str], rest: list[str], hosts: list[str]) -> list[str]:
    """Return the host of each process."""
    match program:
        case "mpiexec":
            return [hosts[n // int(given["-ppn"])] for n in range(int(given["-n"]))]
        case "aprun":
            return [hosts[n // int(given["-N"])] for n in range(int(given["-n"]))]
        case "mpirun":
            assert given["--map-by"] == "ppr:1:node"
            return hosts[: int(given["-n"])]
        case "jsrun":
            assert given["--rs_per_host"] == given["--tasks_per_rs"] == "1"
            return hosts[: int(given["--nrs"])]
        case "blaunch":
            return given["-z"].split()
        case "qrsh":
            return [rest.pop(0)]
    if os.environ.get("LAUNCHER_KIND") == "torque" and "-u" not in given:
        return [host for host in hosts for _ in range(CORES)]
    return hosts


def main() -> int:
    program, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    given, rest = parsed(program, arguments)
    places = placed(program, given, rest, os.environ["LAUNCH_HOSTS"].split())
    processes: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def tell(number: int, _frame: object) -> None:
        told.append(number)
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, tell)
    for host in places:
        with open(os.environ["LAUNCHED"], "a") as record:
            record.write(json.dumps([program, arguments, host]) + "\n")
        environ = dict(os.environ) if program in FORWARDS else {"PATH": "/usr/bin:/bin"}
        # As a daemon of that host starts it: in a session of its own.
        processes.append(subprocess.Popen(rest, env=environ | {"HOST": host}, start_new_session=True))
    for number in told[:1]:  # also those that were just being started
        tell(number, None)
    return next((code for code in [p.wait() for p in processes] if code), 0)


def launcher_environment(folder: Path, hosts: Sequence[str], kind: str = "") -> dict[str, str]:
    """Return the variables of a job on these hosts, with the stand-ins as its launchers."""
    commands = folder / "launchers"
    (commands / "links").mkdir(parents=True)
    for program in OPTIONS:
        link = commands / "links" / program
        link.symlink_to(__file__)
        file = commands / program
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {shlex.quote(str(link))} "$@"\n')
        file.chmod(0o755)
    slots = [host for host in hosts for _ in range(2)]
    (folder / "hostfile").write_text("".join(f"{host}\n" for host in slots))
    (folder / "pe_hostfile").write_text("".join(f"{host} 2 all.q@{host} UNDEFINED\n" for host in hosts))
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "LAUNCHED": str(folder / "launched"),
        "LAUNCH_HOSTS": " ".join(hosts),
        "LAUNCHER_KIND": kind,
        "LSB_DJOB_HOSTFILE": str(folder / "hostfile"),
        "PE_HOSTFILE": str(folder / "pe_hostfile"),
    }


def launched_in(folder: Path) -> list[tuple[str, list[str], str]]:
    """Return (program, arguments, host) of each start."""
    path = folder / "launched"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
