"""Stand-in of a scheduler: runs jobs for real, and answers in the forms of PBS, Torque, LSF or HTCondor.

Its commands are links to this file, by whose names it knows what to do. The answers have the forms of
the manuals; a scheduler that really runs in tests (Slurm, Grid Engine) has no stand-in.
State: a file a job in $STAND_IN/jobs. $STAND_IN/slots: how many run at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("STAND_IN", "/nonexistent"))
KIND = os.environ.get("STAND_IN_KIND", "")
HOST = "node01"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with (HOME / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def job_file(number: str) -> Path:
    return HOME / "jobs" / number


def jobs() -> dict[str, dict[str, Any]]:
    """Return all jobs by number, in order."""
    files = sorted((HOME / "jobs").iterdir(), key=lambda f: int(f.name))
    return {f.name: json.loads(f.read_text()) for f in files}


def store(number: str, job: dict[str, Any]) -> None:
    new = HOME / f"new.{os.getpid()}"
    new.write_text(json.dumps(job))
    new.rename(job_file(number))


# ---------------------------------------------------------------- life of a job


def submit(name: str, script: str, out: str, err: str) -> str:
    """Store a job, start the process that runs it, return its number."""
    with locked():
        number = str(1 + max((int(n) for n in jobs()), default=100))
        text = Path(script).read_text() if Path(script).exists() else script
        store(number, {"name": name, "script": text, "out": out, "err": err, "state": "pending", "pid": 0})
    subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, "run", number],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return number


def run(number: str) -> None:
    """Wait for a slot, run the job, store its end."""
    while True:
        with locked():
            all_jobs = jobs()
            job = all_jobs[number]
            if job["state"] != "pending":
                return
            if sum(j["state"] == "running" for j in all_jobs.values()) < int((HOME / "slots").read_text()):
                with Path(job["out"]).open("wb") as out, Path(job["err"]).open("wb") as err:
                    command = ["bash", "-c", job["script"]]
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0
                    )
                job |= {"state": "running", "pid": process.pid}
                store(number, job)
                break
        time.sleep(0.1)
    code = process.wait()
    with locked():
        job = jobs()[number]
        store(number, job | {"state": "ended", "code": 128 - code if code < 0 else code})


def cancel(number: str) -> bool:
    """End a job; return False if there is none that has not ended."""
    with locked():
        job = jobs().get(number)
        if job is None or job["state"] == "ended":
            return False
        running = job["state"] == "running"
        store(number, job | {"cancelled": True} | ({} if running else {"state": "ended", "code": None}))
    if running:
        for number_of_signal in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job["pid"], number_of_signal)
            time.sleep(0.1)
    return True


# ---------------------------------------------------------------- PBS Professional, Torque


def qsub(arguments: list[str]) -> int:
    script = Path(arguments[-1]).read_text()
    name = arguments[arguments.index("-N") + 1]
    out, err = (directive(script, f"#PBS -{letter} (.+)") for letter in "oe")
    if "nowhere" in directive(script, "#PBS -q (.+)"):
        sys.stderr.write("qsub: Unknown queue\n")
        return 170
    sys.stdout.write(f"{submit(name, script, out, err)}.server\n")
    return 0


def qstat(arguments: list[str]) -> int:
    asked = [a.partition(".")[0] for a in arguments if a[0].isdigit()]
    found = {n: job for n, job in jobs().items() if n in asked}
    for number in asked:
        if number not in found:
            sys.stderr.write(f"qstat: Unknown Job Id {number}.server\n")
    if KIND == "pbspro":
        told = {f"{n}.server": pbs_job(job, "F") for n, job in found.items()}
        if told:
            sys.stdout.write(json.dumps({"timestamp": 1, "pbs_version": "2022.1.1", "Jobs": told}))
    else:
        for number, job in found.items():
            sys.stdout.write(f"Job Id: {number}.server\n")
            for key, value in pbs_job(job, "C").items():
                sys.stdout.write(f"    {key.replace('Exit_status', 'exit_status')} = {value}\n")
            sys.stdout.write("\n")
    return 0 if len(found) == len(asked) else 153


def pbs_job(job: dict[str, Any], ended: str) -> dict[str, Any]:
    state = {"pending": "Q", "running": "R", "ended": ended}[job["state"]]
    told: dict[str, Any] = {"Job_Name": job["name"], "job_state": state}
    if state == "Q":
        told["comment"] = "Not Running: Insufficient amount of resource: ncpus"
    else:
        told["exec_host"] = f"{HOST}/0*4"
    if state == ended:
        cancelled = job.get("cancelled", False)
        told["Exit_status"] = 271 if cancelled else job["code"] + 128 if job["code"] > 128 else job["code"]
        told["substate"] = 91 if cancelled else 92
    return told


def qselect(arguments: list[str]) -> int:
    name = arguments[arguments.index("-N") + 1]
    sys.stdout.write("".join(f"{n}.server\n" for n, job in jobs().items() if job["name"] == name))
    return 0


def qdel(arguments: list[str]) -> int:
    missing = [a for a in arguments if not cancel(a.partition(".")[0])]
    sys.stderr.write("".join(f"qdel: Unknown Job Id {a}\n" for a in missing))
    return 170 if missing else 0


# ---------------------------------------------------------------- LSF


def bsub(arguments: list[str]) -> int:
    script = sys.stdin.read()
    name = arguments[arguments.index("-J") + 1]
    out, err = (directive(script, f"#BSUB -{letter} (.+)") for letter in "oe")
    queue = directive(script, "#BSUB -q (.+)") or "normal"
    if queue == "nowhere":
        sys.stderr.write("nowhere: No such queue. Job not submitted.\n")
        return 255
    sys.stdout.write(f"Job <{submit(name, script, out, err)}> is submitted to queue <{queue}>.\n")
    return 0


def bjobs(arguments: list[str]) -> int:
    name = arguments[arguments.index("-J") + 1] if "-J" in arguments else ""
    asked = [a for a in arguments if a.isdigit()]
    found = {n: job for n, job in jobs().items() if n in asked or job["name"] == name}
    for number, job in found.items():
        stat, code, host, reason, pending = "PEND", "-", "-", "-", "-"
        if job["state"] == "pending":
            pending = "Job slot limit reached: 4 hosts;"
        else:
            stat, host = "RUN", f"4*{HOST}"
        if job["state"] == "ended":
            stat = "DONE" if job["code"] == 0 else "EXIT"
            code = str(job["code"]) if job["code"] else "-"
            reason = "TERM_OWNER: job killed by owner" if job.get("cancelled") else "-"
        sys.stdout.write("|".join((number, stat, code, host, job["name"], reason, pending)) + "\n")
    missing = [number for number in asked if number not in found]
    sys.stderr.write("".join(f"Job <{number}> is not found\n" for number in missing))
    if name and not found:
        sys.stderr.write(f"Job <{name}> is not found\n")
    return 255 if missing or not found else 0


def bkill(arguments: list[str]) -> int:
    missing = [number for number in arguments if not cancel(number)]
    sys.stderr.write("".join(f"Job <{number}>: Job has already finished\n" for number in missing))
    return 255 if missing else 0


# ---------------------------------------------------------------- HTCondor


def condor_submit(arguments: list[str]) -> int:
    lines = [line.partition("=") for line in Path(arguments[0]).read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in lines}
    if "nowhere" in facts.get("requirements", ""):
        sys.stderr.write("ERROR: Parse error in expression: \n\tRequirements = nowhere\n")
        return 1
    mark = facts["+OncueMark"].strip('"')
    number = submit(mark, facts["executable"], facts["output"], facts["error"])
    sys.stdout.write(f"Submitting job(s).\n1 job(s) submitted to cluster {number}.\n")
    return 0


def condor_q(arguments: list[str]) -> int:
    wanted = re.findall(r'"([^"]+)"', arguments[1]) if arguments[0] == "-constraint" else []
    for number, job in jobs().items():
        if (f"{number}.0" in arguments or job["name"] in wanted) and not job.get("cancelled"):
            sys.stdout.write(condor_row(number, job))
    return 0


def condor_history(arguments: list[str]) -> int:
    for number, job in jobs().items():
        if f"{number}.0" in arguments and job["state"] == "ended":
            sys.stdout.write(condor_row(number, job))
    return 0


def condor_row(number: str, job: dict[str, Any]) -> str:
    status = {"pending": 1, "running": 2, "ended": 3 if job.get("cancelled") else 4}[job["state"]]
    host = "undefined" if status == 1 else f'"slot1@{HOST}"'
    code, by_signal, number_of_signal = "undefined", "undefined", "undefined"
    if status == 4:
        by_signal = "true" if job["code"] > 128 else "false"
        code, number_of_signal = (
            ("undefined", str(job["code"] - 128)) if job["code"] > 128 else (str(job["code"]), "undefined")
        )
    return f'{number}.0 {status} {code} {by_signal} {number_of_signal} {host} "{job["name"]}" undefined\n'


def condor_rm(arguments: list[str]) -> int:
    missing = [a for a in arguments if not cancel(a.partition(".")[0])]
    sys.stdout.write("".join(f"Job {a} not found\n" for a in missing))
    return 1 if missing else 0


def directive(script: str, pattern: str) -> str:
    found = re.search(f"^{pattern}$", script, re.MULTILINE)
    return found[1].strip() if found else ""


COMMANDS = {
    "pbspro": (qsub, qstat, qselect, qdel),
    "torque": (qsub, qstat, qselect, qdel),
    "lsf": (bsub, bjobs, bkill),
    "condor": (condor_submit, condor_q, condor_history, condor_rm),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2])
    else:
        command = {c.__name__: c for c in COMMANDS[KIND]}[Path(sys.argv[0]).name]
        sys.exit(command(sys.argv[1:]))
