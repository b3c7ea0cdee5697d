"""A Slurm cluster of a test's own: munged, slurmctld and a slurmd a node, all on this machine.

Cluster(folder).start()
    ready in about 2 s: nodes n1, n2 (4 cores each), partition `debug`; `environ` is for its commands
kill_node("n1")         kill -9 of its slurmd, steps and jobs: as if the power went
stop_controller()       slurmctld is away; start_controller() brings it back with its state
faults                  hangs, refusals, garbage ... of its commands
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from oncue.endpoint.providers.commands import user_name
from tests.keeper import Kept
from tests.ports import free_port
from tests.schedulers.faults import CommandFaults
from tests.slurm import programs

START_S = 60.0
COMMAND_S = 30.0
MEND_S = 15.0
CONFIG = """ClusterName=oncue
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={controller_port}
SlurmdPort={first_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=sched_min_interval=10000,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
MinJobAge={remember_s}
KillWait={kill_wait_s}
SlurmdTimeout=6
SlurmctldTimeout=6
InactiveLimit=0
MessageTimeout=3
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=4000 State=UNKNOWN"


class Cluster:
    """Nodes n1, n2 ... of one controller.

    `remember_s`: how long the controller lists a job that has ended, at least; 2 is its minimum.
    `kill_wait_s`: between SIGTERM and SIGKILL, at the end of a job's time; sites have 30.
    """

    def __init__(
        self, folder: Path, *, nodes: int = 2, cores: int = 4, remember_s: int = 60, kill_wait_s: int = 1
    ) -> None:
        programs.check()
        self.folder = folder
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self._cores, self._remember_s, self._kill_wait_s = cores, remember_s, kill_wait_s
        #: Faults of the commands that `environ` finds.
        self.faults = CommandFaults(folder / "wrappers", f"{os.environ['PATH']}:/usr/bin")
        self.config = folder / "slurm.conf"
        #: For commands, and for those who call them.
        self.environ = os.environ | {
            "SLURM_CONF": str(self.config),
            "PATH": f"{self.faults.folder}:{os.environ['PATH']}",
        }
        out = {name: folder / f"{name}.out" for name in ("munged", "slurmctld", *self.nodes)}
        self._munge = Kept(self._munged(), self.environ, out["munged"])
        controller = [programs.program("slurmctld"), "-D", "-f", str(self.config)]
        self._controller = Kept(controller, self.environ, out["slurmctld"])
        self._slurmds = {
            name: Kept([programs.program("slurmd"), "-D", "-N", name, "-f", str(self.config)], self.environ, out[name])
            for name in self.nodes
        }

    # ------------------------------------------------------------ lifecycle

    def start(self) -> Cluster:
        """Start all, and wait until the nodes are idle. Raises AssertionError with the logs."""
        for folder in (self.folder / "munge", self.folder / "state"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._write_config()
        self._munge.start()
        self._wait(lambda: (self.folder / "munge" / "socket").exists(), lambda: "munged listens", self._munge)
        self._controller.start()
        for slurmd in self._slurmds.values():
            slurmd.start()
        self.wait_idle(*self.nodes)
        return self

    def stop(self) -> None:
        """Kill all, with all jobs."""
        for kept in (*self._slurmds.values(), self._controller, self._munge):
            kept.kill()

    def _munged(self) -> list[str]:
        at = self.folder / "munge"
        options = [f"--{name}-file={at / name}" for name in ("key", "pid", "log", "seed")]
        return [programs.program("munged"), "--foreground", "--force", f"--socket={at / 'socket'}", *options]

    def _write_config(self) -> None:
        ports = [free_port() for _ in self.nodes]
        nodes = [
            NODE.format(name=name, host=socket.gethostname(), port=port, cores=self._cores)
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        text = CONFIG.format(
            host=socket.gethostname(),
            user=user_name(),
            folder=self.folder,
            controller_port=free_port(),
            first_port=ports[0],
            remember_s=self._remember_s,
            kill_wait_s=self._kill_wait_s,
            nodes="\n".join(nodes),
        )
        self.config.write_text(text)

    # ------------------------------------------------------------ questions

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands, without stand-ins. Raises AssertionError if it fails."""
        done = self._command(*command)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        return done.stdout

    def _command(self, *command: str) -> subprocess.CompletedProcess[str]:
        environ = self.environ | {"PATH": os.environ["PATH"]}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=COMMAND_S, check=False)

    def jobs(self) -> dict[str, str]:
        """Return the states of all jobs that the controller still lists, by id."""
        return dict(line.split() for line in self.run("squeue", "-h", "-t", "all", "-o", "%i %T").splitlines())

    def active_jobs(self) -> set[str]:
        """Return the ids of jobs that have not ended."""
        return set(self.run("squeue", "-h", "-o", "%i").split())

    def wait_job(self, job: str, *states: str) -> str:
        """Wait until a job is in one of these states (RUNNING, COMPLETED ...); return which."""
        what = f"job {job} is {' or '.join(states)}"
        self._wait(lambda: self.jobs().get(job) in states, lambda: f"{what}, but: {self.jobs()}", self._controller)
        return self.jobs()[job]

    def wait_idle(self, *nodes: str) -> None:
        self.wait_nodes("idle", *nodes)

    def wait_nodes(self, state: str, *nodes: str, limit_s: float = START_S) -> None:
        """Wait until these nodes are in a state as sinfo says it: idle, down (also down*) ..."""

        said = ""

        def reached() -> bool:
            nonlocal said
            done = self._command("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T")
            said = done.stdout + done.stderr
            states = {line.split()[1].replace("down*", "down") for line in done.stdout.splitlines()}
            return done.returncode == 0 and states == {state}

        what = f"nodes {', '.join(nodes)} are {state}"
        self._wait(reached, lambda: f"{what}, but: {said} with jobs {self.jobs()}", self._controller, limit_s=limit_s)

    def _wait(
        self, reached: Callable[[], bool], what: Callable[[], str], daemon: Kept, limit_s: float = START_S
    ) -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            assert daemon.running, f"Slurm does not run: {daemon.tail()}"
            if reached():
                return
            time.sleep(0.05)
        logs = "\n".join(kept.tail() for kept in (daemon, *self._slurmds.values()))
        raise AssertionError(f"not in {limit_s:.0f} s: {what()}\n{logs}")

    def mend(self) -> None:
        """End all jobs and start what does not run, until all nodes are idle."""
        if not self._controller.running:
            self.start_controller()
        for slurmd in self._slurmds.values():
            if not slurmd.running:
                slurmd.start()
        if active := self.active_jobs():
            self._command("scancel", "--signal=KILL", *active)
            self._command("scancel", *active)
        try:
            self.wait_nodes("idle", *self.nodes, limit_s=MEND_S)
        except AssertionError:  # a node that came back too early may stay as it is
            self.stop()
            shutil.rmtree(self.folder / "state")
            self.start()

    # ------------------------------------------------------------ faults

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd, its steps and its jobs, at once. The controller notices in 15 s."""
        self._slurmds[name].kill()

    def boot_node(self, name: str) -> None:
        """Start a killed node again. Slurm uses it as soon as it has registered."""
        self._slurmds[name].start()

    def start_node(self, name: str) -> None:
        """Start a killed node again, and wait until it is idle."""
        self.boot_node(name)
        self.wait_idle(name)

    def node_processes(self, name: str) -> set[int]:
        """Return the processes on a node: slurmd, steps, and all that jobs started."""
        return self._slurmds[name].descendants()

    def kill_controller(self) -> None:
        """Kill slurmctld with what it has not saved. Jobs go on running."""
        self._controller.kill()

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state. Jobs go on running."""
        self._controller.terminate()

    def start_controller(self) -> None:
        """Start slurmctld again, with its saved state, and wait until it answers."""
        self._controller.start()
        self._wait(lambda: self._command("squeue", "-h").returncode == 0, lambda: "slurmctld answers", self._controller)

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def cancel(self, *jobs: str) -> None:
        """Cancel jobs as somebody else would."""
        self.run("scancel", *jobs)
