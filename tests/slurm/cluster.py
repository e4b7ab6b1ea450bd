"""A real Slurm on this one machine: its controller and some "nodes", all on loopback.

Every node is a slurmd of its own name, in namespaces of its own: jobs see its host name and its own
/dev/shm. Nothing outside the directory given is written; needs root and Debian's packages.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.launch import LIMIT_S, looks

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
TWO_EACH = ("--nodes=2", "--ntasks-per-node=2")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
LOOPBACK = {"UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo", "OMPI_MCA_btl_tcp_if_include": "lo"}

# how a job ends here; all other states of squeue(1) come before, some for a moment, like SIGNALING
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}

_NODE = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs -o size=50% tmpfs /dev/shm &&
exec slurmd -f "$3" -N "$1"
"""


@functools.cache
def missing() -> str:
    """Return why there can be no cluster here, or nothing."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (tests/slurm/install.sh)"
    own = ("unshare", "--uts", "--mount", "sh", "-c", "hostname n && mount -t tmpfs none /dev/shm")
    done = subprocess.run(own, capture_output=True, text=True, check=False)
    return f"root may not do here what a node needs: {done.stderr}" if done.returncode else ""


def until(true: Callable[[], bool], what: str, timeout_s: float = LIMIT_S) -> None:
    """Wait until `true()`; Slurm has nothing to wait on but its answers."""
    for _ in looks(timeout_s, 0.2):
        if true():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Cluster:
    """A running cluster; jobs run in `directory`/work.

    Parameters
    ----------
    directory : Path
        Empty; everything of the cluster is below.
    nodes, cpus : int
        Number of nodes, and of processors (and GPUs) that each says it has.

    Attributes
    ----------
    gpus : int
        Pretend GPUs of each node; 0 where root may not make devices.
    """

    def __init__(self, directory: Path, nodes: int = 2, cpus: int = 2) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.names = [f"node{i}" for i in range(1, nodes + 1)]
        for name in (
            "work",
            "state",
            "munge",
            *(f"spool/{n}" for n in self.names),
            *(f"tmp/{n}" for n in self.names),
        ):
            (directory / name).mkdir(parents=True)
        (directory / "munge").chmod(0o700)
        self._hosts()
        self.gpus = self._pretend_gpus(cpus)
        (directory / "slurm.conf").write_text(self._configuration(cpus), encoding="utf-8")
        key = directory / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.env = {**os.environ, **LOOPBACK, "SLURM_CONF": str(directory / "slurm.conf")}
        self.env |= {"OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        d = self.directory
        munge = [f"--{name}={d / where}" for name, where in self._munge_files().items()]
        self.run("munged", *munge, "--num-threads=2", "--force")
        self.run("slurmctld", "-c")
        for name in self.names:
            command = ["sh", "-c", _NODE, "sh", name, str(d / "hosts"), str(d / "slurm.conf")]
            self.run("unshare", "--uts", "--mount", *command)
        idle = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N")
        self.until(lambda: len(self.run(*idle).split()) == len(self.names), "all nodes idle")

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = LIMIT_S) -> None:
        """Wait until `true()`; if that does not come, say what the daemons say."""
        try:
            until(true, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.why()}") from None

    def why(self) -> str:
        """Return the cluster's state and the ends of its daemons' logs."""
        shown = []
        for command in (("squeue", "--long"), ("sinfo", "-N", "--long"), ("sinfo", "-R")):
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                shown.append(self.run(*command, timeout=10))
        for log in (*sorted(self.directory.glob("slurm*.log")), self.directory / "munge" / "log"):
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-15:]
                shown += [f"--- the end of {log.name}:", *lines]
        return "\n".join(shown)

    def stop(self) -> None:
        """End jobs and daemons."""
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            self.run("scancel", "--quiet", "--user", "root", timeout=10)
            until(lambda: not self.run("squeue", "-h"), "all jobs over", 30)
        pids = [int(p.read_text()) for p in sorted(self.directory.glob("slurm*.pid"))]
        for pid in (*pids, int((self.directory / "munged.pid").read_text())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in pids:
            try:
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"the end of {pid}", 20)
            except AssertionError:  # on a machine that is very busy
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def run(self, *command: str, timeout: float = 60, **env: str) -> str:
        """Run a command of Slurm's in the work directory; return what it prints."""
        try:
            done = subprocess.run(
                command,
                cwd=self.work,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"no answer: {error}") from None
        if done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def submit(self, script: Path, *args: str, options: tuple[str, ...] = (), **env: str) -> str:
        """Queue a batch script; return its job's number."""
        where = f"--output={self.work}/%j.log"
        return self.run("sbatch", "--parsable", where, *options, str(script), *args, **env).strip()

    def log(self, job: str) -> str:
        """Return what a job has printed so far."""
        path = self.work / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, job: str, text: str, timeout_s: float = LIMIT_S) -> str:
        """Wait until a job has printed `text`."""

        def over() -> bool:
            return text in self.log(job) or self.states(job) <= OVER

        try:
            self.until(over, f"{text!r} in the log of {job}", timeout_s)
            assert text in self.log(job), f"{self.states(job)} without {text!r}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- its log:\n{self.log(job)}") from None
        return self.log(job)

    def wait(self, job: str, timeout_s: float = LIMIT_S) -> str:
        """Wait until a job is over; return its state."""

        try:
            self.until(lambda: self.states(job) <= OVER, f"the end of job {job}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- its log:\n{self.log(job)}") from None
        (state,) = self.states(job)
        return state

    def rank_of(self, job: str, rank: int) -> int:
        """Return the process that is a rank of a job, not those that have started it."""
        wanted = f"SLURM_JOB_ID={job}".encode()
        names = (f"PMI_RANK={rank}".encode(), f"OMPI_COMM_WORLD_RANK={rank}".encode())
        found, parents = set(), set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended since
                variables = (process / "environ").read_bytes().split(b"\0")
                if wanted in variables and any(name in variables for name in names):
                    found.add(int(process.name))
                    parents.add(int((process / "stat").read_text().rpartition(")")[2].split()[1]))
        (pid,) = found - parents or {None}
        assert pid is not None, f"no rank {rank} of job {job} is running:\n{self.log(job)}"
        return pid

    def states(self, job: str) -> set[str]:
        """Return the states of a job, or of an array's tasks."""
        shown = self.run("scontrol", "show", "job", job)
        return {part.split()[0] for part in shown.split("JobState=")[1:]}

    def _pretend_gpus(self, count: int) -> int:
        """Make devices that Slurm hands out as GPUs: it asks for no more than that they are there.

        Every node gets the same ones, /dev/null by another name.
        """
        files = [self.directory / f"gpu{i}" for i in range(count)]
        try:
            for file in files:
                os.mknod(file, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except OSError:
            return 0
        names = f"NodeName={','.join(self.names)} Name=gpu File={self.directory}/gpu[0-{count - 1}]"
        (self.directory / "gres.conf").write_text(f"{names}\n", encoding="utf-8")
        return count

    def _hosts(self) -> None:
        known = Path("/etc/hosts").read_text(encoding="utf-8")
        nodes = "".join(f"127.0.0.1 {name}\n" for name in self.names)
        (self.directory / "hosts").write_text(f"{known}\n{nodes}", encoding="utf-8")

    def _munge_files(self) -> dict[str, str]:
        return {
            "key-file": "munge/key",
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "log-file": "munge/log",
            "seed-file": "munge/seed",
        }

    def _configuration(self, cpus: int) -> str:
        d, host, first = self.directory, socket.gethostname().partition(".")[0], _free_ports(9)
        last = first + len(self.names)
        nodes = f"node[1-{len(self.names)}]"
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        return f"""ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# also how long a job that goes back into the queue is held; usually two minutes
AuthInfo=socket={d}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={first}
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
# of each node its own: PMIx keeps sockets there
TmpFS={d}/tmp/%n
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
MessageTimeout=30
PropagateResourceLimits=NONE
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first + 1}-{last}] CPUs={cpus}{gres}
PartitionName=main Nodes={nodes} Default=YES MaxTime=60 PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes={nodes} MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end."""
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row, below those that are given out freely."""
    for base in range(12000 + secrets.randbelow(1000) * 15, 31000, count):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(base, base + count):
                probe = held.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return base
    raise AssertionError("no free ports")
