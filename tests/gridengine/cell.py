"""A Grid Engine cell of a test's own: qmaster and one execution host, on this machine.

Cell(folder).start()
    ready in about 3 s: queue all.q of 4 slots; its commands are in `commands`, for any PATH

The daemons listen at all addresses, so they run in a network namespace of their own, which needs
root. Each command enters it by a wrapper.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.keeper import Kept
from tests.ports import free_port
from tests.schedulers.faults import CommandFaults
from tests.services import Impossible, Missing

START_S = 60.0
COMMAND_S = 20.0
INSTALLED = Path("/var/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
REMEDY = (
    "run `make services`, or: apt-get install --no-install-recommends"
    " gridengine-master gridengine-exec gridengine-client"
)
CLIENTS = ("qsub", "qstat", "qdel", "qacct", "qconf", "qhost", "qmod", "qrsh")
QUEUE = """qname all.q
hostlist localhost
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list make
rerun FALSE
slots 4
tmpdir /tmp
shell /bin/sh
prolog NONE
epilog NONE
shell_start_mode posix_compliant
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
""" + "".join(
    f"{kind}_{limit} INFINITY\n"
    for limit in ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem")
    for kind in ("s", "h")
)
HOST = "hostname localhost\n" + "".join(
    f"{name} NONE\n"
    for name in (
        "load_scaling",
        "complex_values",
        "user_lists",
        "xuser_lists",
        "projects",
        "xprojects",
        "usage_scaling",
        "report_variables",
    )
)
PARALLEL = """pe_name make
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $round_robin
control_slaves TRUE
job_is_first_task FALSE
urgency_slots min
accounting_summary TRUE
qsort_args NONE
"""


def check() -> None:
    """Raise Missing unless Grid Engine can run here."""
    if os.name != "posix" or not Path("/proc").exists():
        raise Impossible("its tests need Linux")
    if not INSTALLED.exists() or shutil.which("sge_qmaster") is None:
        raise Missing(f"Grid Engine is not installed; {REMEDY}")
    if os.getuid() != 0:
        raise Impossible("its network namespace needs root; run the tests as root")
    if shutil.which("ip") is None:
        raise Missing("`ip` is not installed; run: apt-get install iproute2")
    probe = ["unshare", "--net", "true"]
    if shutil.which(probe[0]) is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        raise Impossible("this machine allows no network namespaces")


class Cell:
    """One qmaster and one execution host."""

    def __init__(self, folder: Path) -> None:
        check()
        self.root = folder / "sge"
        self._namespace = f"oncue{os.getpid()}-{free_port()}"
        self._variables = {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": "default",
            "SGE_ND": "1",
            "SGE_QMASTER_PORT": "6444",
            "SGE_EXECD_PORT": "6445",
        }
        self._environ = os.environ | self._variables
        #: Beginning of a command that runs in the cell's network.
        self.inside = ["ip", "netns", "exec", self._namespace]
        self._commands = folder / "commands"
        self._master = Kept([*self.inside, "sge_qmaster"], self._environ, folder / "qmaster.out")
        self._host = Kept([*self.inside, "sge_execd"], self._environ, folder / "execd.out")
        self._write_commands()
        path = f"{self._commands}:{os.environ['PATH']}"
        #: Faults of the commands that `environ` finds.
        self.faults = CommandFaults(folder / "faults", path)
        self.environ = os.environ | {"PATH": f"{self.faults.folder}:{path}"}

    def _write_commands(self) -> None:
        """Write the commands that users call: each enters the cell's network."""
        self._commands.mkdir(parents=True)
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in self._variables.items())
        for name in CLIENTS:
            real = shutil.which(name)
            if real is not None:
                file = self._commands / name
                file.write_text(f'#!/bin/sh\nexport {exports}\nexec {shlex.join(self.inside)} {real} "$@"\n')
                file.chmod(0o755)

    # ------------------------------------------------------------ lifecycle

    def start(self) -> Cell:
        """Start all, and wait until the queue takes jobs. Raises AssertionError with the logs."""
        subprocess.run(["ip", "netns", "add", self._namespace], check=True)
        subprocess.run([*self.inside, "ip", "link", "set", "lo", "up"], check=True)
        self._write_root()
        self._master.start()
        self._wait(lambda: self._run("qconf", "-sh").returncode == 0, self._master)
        self._configure()
        self._host.start()
        self._wait(self._takes_jobs, self._host)
        return self

    def stop(self) -> None:
        """Kill all, with all jobs."""
        for kept in (self._host, self._master):
            kept.kill()
        subprocess.run(["ip", "netns", "del", self._namespace], check=False, capture_output=True)

    def _write_root(self) -> None:
        common, spool = self.root / "default" / "common", self.root / "default" / "spool" / "qmaster"
        for folder in (common, spool / "job_scripts", self.root / "default" / "spool" / "execd"):
            folder.mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            if (INSTALLED / name).exists():
                (self.root / name).symlink_to(INSTALLED / name)
        host = os.uname().nodename
        bootstrap = {
            "admin_user": "none",
            "default_domain": "none",
            "ignore_fqdn": "true",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": f"{common};{spool}",
            "binary_path": "/usr/lib/gridengine",
            "qmaster_spool_dir": str(spool),
            "security_mode": "none",
            "listener_threads": "2",
            "worker_threads": "2",
            "scheduler_threads": "1",
            "jvm_threads": "0",
        }
        (common / "bootstrap").write_text("".join(f"{k} {v}\n" for k, v in bootstrap.items()))
        (common / "act_qmaster").write_text("localhost\n")
        (common / "host_aliases").write_text(f"localhost {host}\n")
        self._spool(f"{common};{spool}")

    def _spool(self, where: str) -> None:
        """Write the first configuration, as the package's init_cluster does."""
        settings = {
            "execd_spool_dir": str(self.root / "default" / "spool" / "execd"),
            "min_uid": "0",
            "min_gid": "0",
            "load_report_time": "00:00:02",
            # A login shell reads the profile of whoever runs the tests: one that was killed there left a lock behind.
            "login_shells": "none",
            "reporting_params": "accounting=true reporting=false flush_time=00:00:01 joblog=false sharelog=00:00:00",
        }
        lines = (SHARED / "default-configuration").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(tuple(settings))]
        configuration = self.root / "configuration"
        configuration.write_text("\n".join([*kept, *(f"{k} {v}" for k, v in settings.items()), ""]))
        resources = SHARED / "util" / "resources"
        for command in (
            ["spoolinit", "classic", "libspoolc", where, "init"],
            ["spooldefaults", "configuration", str(configuration)],
            ["spooldefaults", "complexes", str(resources / "centry")],
            ["spooldefaults", "usersets", str(resources / "usersets")],
            ["spooldefaults", "managers", "root"],
        ):
            self._must(f"/usr/lib/gridengine/{command[0]}", *command[1:])

    def _configure(self) -> None:
        """Add the host, the parallel environment and the queue; let the scheduler run each second."""
        self._must("qconf", "-as", "localhost")
        for option, text in (("-Ae", HOST), ("-Ap", PARALLEL), ("-Aq", QUEUE)):
            file = self.root / "new"
            file.write_text(text)
            self._must("qconf", option, str(file))
        scheduler = self._must("qconf", "-ssconf")
        for name, value in (("schedule_interval", "0:0:1"), ("flush_submit_sec", "1"), ("flush_finish_sec", "1")):
            scheduler = re.sub(rf"^{name} .*$", f"{name} {value}", scheduler, flags=re.MULTILINE)
        file = self.root / "scheduler"
        file.write_text(scheduler)
        self._must("qconf", "-Msconf", str(file))

    def _takes_jobs(self) -> bool:
        """Return True if the host has reported its load: its line ends with it, not with a state."""
        done = self._run("qstat", "-f")
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("all.q@")]
        return bool(lines) and len(lines[0]) == 5 and lines[0][3] != "-NA-"

    # ------------------------------------------------------------ questions

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside, *command],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def _must(self, *command: str) -> str:
        done = self._run(*command)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def active_jobs(self) -> set[str]:
        """Return the ids of jobs that have not ended."""
        return {line.split()[0] for line in self._must("qstat", "-u", "*").splitlines()[2:]}

    def mend(self) -> None:
        """End all jobs."""
        self._wait(self._all_ended, self._host)

    def _all_ended(self) -> bool:
        if active := self.active_jobs():
            self._run("qdel", *active)
        return not active

    def _wait(self, reached: Callable[[], bool], daemon: Kept) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert daemon.running, f"Grid Engine does not run: {daemon.tail()}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                if reached():
                    return
            time.sleep(0.1)
        raise AssertionError(f"Grid Engine is not ready in {START_S:.0f} s: {daemon.tail()}")
