"""The whole system: a real cluster with two login nodes, a real bus, and two agents of one site."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from chaos import points
from chaos.workload import RUNS
from slurmbus.home import Home, SchedulerKind
from slurmbus.owner import ServerOwner
from slurmbus_cluster import Cluster, ClusterError
from slurmbus_cluster.agents import AGENT, AgentProcess, install_agent

SITE = "chaos-alice"
USER = "alice"
LOGINS = ("login", "login2")
HOSTS = ("ctld", "c1", "c2", *LOGINS)
SCRATCH = "/pool"
SPOOL = f"{SCRATCH}/slurmbus"
SCRATCH_SIZE = "384m"
BALLAST = f"{SCRATCH}/ballast"
CLOCKS = "/home/alice/clocks"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
MIN_JOB_AGE = 10
"""Seconds after which the controller forgets a finished job: short, so that many are forgotten while nobody looks."""
REASON = "chaos"
"""Why nodes are drained that shall stay so."""
POINTED = "/opt/chaos"
"""Where the agent that stops at points is installed."""

T = TypeVar("T")


class BusServer:
    """The nats-server of a home, to be killed, frozen and emptied.

    The server dies with the thread that started it, also when this process is killed; so one thread does it all.
    """

    def __init__(self, home: Home, host: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bus")
        self._owner = self._do(lambda: ServerOwner(home, host))
        self._folder = home.bus_folder

    def _do(self, action: Callable[[], T]) -> T:
        return self._thread.submit(action).result()

    def __enter__(self) -> Self:
        self._do(self._owner.server.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._owner.server.stop)
        self._thread.shutdown()

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._do(self._owner.server.kill)

    def restart(self) -> None:
        """Start it again over what it had stored."""
        self._do(self._owner.server.restart)

    def restart_empty(self) -> None:
        """Start another, empty one in its place."""
        shutil.rmtree(self._folder / "jetstream")
        self.restart()

    def freeze(self) -> None:
        """Let it hang: connections stay open, nothing answers."""
        self._do(lambda: self._owner.server.signal(signal.SIGSTOP))

    def thaw(self) -> None:
        """Let it go on."""
        self._do(lambda: self._owner.server.signal(signal.SIGCONT))


@dataclass(frozen=True)
class Reached:
    """A process that stopped itself at a labelled point."""

    host: str
    pid: int
    agent: int | None
    """The agent's process when this is its child."""


@dataclass(frozen=True)
class Agents:
    """The two agents, by the name of their host."""

    by_host: dict[str, AgentProcess]

    def other(self, host: str) -> AgentProcess:
        """Give the one that isn't on this host."""
        return next(agent for name, agent in self.by_host.items() if name != host)


class Rig:
    """Everything, started and removed by a `with` statement.

    Args:
        folder: where logs and the bus's data go.
        progress: takes one line of text per step.
        pointed: run the agents so that they can be stopped at labelled points.
        scheduler: by what the agents submit: ``native`` or ``commands``.
    """

    def __init__(
        self,
        folder: Path,
        progress: Callable[[str], None],
        *,
        pointed: bool = False,
        scheduler: SchedulerKind = "native",
    ) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self._progress = progress
        self._pointed = pointed
        self._scheduler: SchedulerKind = scheduler
        self.draining = False
        """Whether a fault keeps jobs from starting on nodes just now."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.cluster = stack.enter_context(Cluster(self._progress, HOSTS, shared={SCRATCH: SCRATCH_SIZE}))
            self._prepare_hosts()
            self.home.add_site(SITE, scheduler=self._scheduler, slurm_conf="/etc/slurm/slurm.conf", spool=SPOOL)
            self.bus = stack.enter_context(BusServer(self.home, self.cluster.gateway))
            self.agents = Agents({host: self._make_agent(host) for host in LOGINS})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for agent in self.agents.by_host.values():
                with contextlib.suppress(ClusterError):  # it doesn't run
                    agent.kill()
        finally:
            self._stack.close()

    def start_agents(self) -> None:
        """Start both; they come up by themselves, one of them as the standby."""
        for host in LOGINS:
            self.agents.by_host[host].start()

    def _prepare_hosts(self) -> None:
        cluster = self.cluster
        install_agent(cluster)
        for host in HOSTS:
            cluster.exec(host, ["sed", "-i", f"s/^MinJobAge=.*/MinJobAge={MIN_JOB_AGE}/", "/etc/slurm/slurm.conf"])
        cluster.daemon("restart", "slurmctld")
        cluster.wait_idle()
        cluster.exec("login", ["mkdir", "-p", RUNS, CLOCKS, points.FOLDER], user=USER)
        for host in LOGINS:
            cluster.exec("login", ["sh", "-c", f"echo +0 >{CLOCKS}/{host}"], user=USER)
            if self._pointed:
                here = Path(__file__).parent
                files = {name: (here / name).read_bytes() for name in ("pointed_agent.py", "points.py")}
                cluster.host(host).copy_files(files, POINTED)

    def _make_agent(self, host: str) -> AgentProcess:
        env = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": f"{CLOCKS}/{host}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONFAULTHANDLER": "1",
            "FAKETIME_DISABLE_SHM": "1",  # a killed process leaves its segments behind, for the next one of that id
        }
        command = ("/opt/slurmbus/bin/python", f"{POINTED}/pointed_agent.py") if self._pointed else (AGENT,)
        return AgentProcess(
            self.cluster,
            SITE,
            self.home.bundle_path(SITE),
            user=USER,
            host=host,
            command=command,
            env=env,
            log_file=self.folder / f"agent-{host}.log",
        )

    # What may be done to the hosts

    def signal(self, host: str, pid: int, number: int) -> None:
        """Send a signal to one process of a host."""
        self.cluster.exec(host, ["kill", f"-{number}", str(pid)], check=False)

    def children(self, host: str, pid: int) -> list[int]:
        """Give the processes that a process of a host has started."""
        found = self.cluster.exec(host, ["ps", "-o", "pid=", "--ppid", str(pid)], check=False).stdout
        return [int(word) for word in found.split()]

    def arm(self, label: str) -> None:
        """Have the next process that comes to a labelled point stop there."""
        script = f'rm -f {points.REACHED}; printf %s "$1" >{points.ARMED}.new; mv {points.ARMED}.new {points.ARMED}'
        self.cluster.exec("login", ["sh", "-c", script, "sh", label], user=USER)

    def await_point(self, seconds: float) -> Reached | None:
        """Wait until the armed point is reached, and say where; None when it wasn't, and then it is no longer armed."""
        script = (
            f"for _ in $(seq {int(seconds * 20)}); do [ -e {points.REACHED} ] && break; sleep 0.05; done; "
            f"cat {points.REACHED} 2>/dev/null || rm -f {points.ARMED}"
        )
        said = self.cluster.exec("ctld", ["sh", "-c", script], timeout=seconds + 30).stdout
        if not said:
            return None
        who = json.loads(said)
        return Reached(who["host"], int(who["pid"]), int(who["parent"]) if who["child"] else None)

    def set_clock(self, host: str, seconds: int) -> None:
        """Let the agent of a login node believe that it is earlier or later; at most 2 s later it does."""
        text = f"{seconds:+d}"
        self.cluster.exec("login", ["sh", "-c", f"echo {text} >{CLOCKS}/{host}"], user=USER)

    def cut(self, host: str, chain: str) -> None:
        """Drop what comes into a host (INPUT) or what leaves it (OUTPUT); a connection is half open then."""
        way = "-i" if chain == "INPUT" else "-o"
        self.cluster.exec(host, ["iptables", "-A", chain, "!", way, "lo", "-j", "DROP"])

    def mend(self, host: str, chain: str) -> None:
        """Take a cut back."""
        self.cluster.exec(host, ["iptables", "-F", chain])

    def fill_disk(self) -> None:
        """Take every byte that the spool's file system has left."""
        self.cluster.exec("ctld", ["sh", "-c", f"cat /dev/zero >{BALLAST} 2>/dev/null; true"])

    def free_disk(self) -> None:
        """Give it back."""
        self.cluster.exec("ctld", ["rm", "-f", BALLAST])

    def set_nodes(self, nodes: str, state: str) -> None:
        """Keep jobs from starting on nodes (`drain`), or let them (`resume`)."""
        command = ["scontrol", "update", f"nodename={nodes}", f"state={state}", f"reason={REASON}"]
        self.cluster.exec("ctld", command, check=False)

    def resume_nodes(self) -> None:
        """Let jobs start again on nodes that nobody drains on purpose now, and those that the controller holds.

        A controller that is killed soon after a resume remembers the drain.
        """
        drained = self.cluster.exec("ctld", ["sinfo", "-R", "-h", "-o", "%n %E"], check=False).stdout
        for line in drained.splitlines():
            node, _, reason = line.partition(" ")
            if reason != REASON or not self.draining:
                self.set_nodes(node, "resume")
        waiting = self.cluster.exec("ctld", ["squeue", "-h", "-t", "PD", "-o", "%A %r"], check=False).stdout
        held = [line.partition(" ")[0] for line in waiting.splitlines() if "held" in line.lower()]
        if held:
            self.cluster.exec("ctld", ["scontrol", "release", ",".join(held)], check=False)

    def keep_logs(self) -> None:
        """Keep what Slurm's daemons said, for whoever looks into a broken promise."""
        for host in ("ctld", "c1", "c2"):
            said = self.cluster.exec(host, ["sh", "-c", "tail -n +1 /var/log/slurm/slurm*.log"], check=False).stdout
            (self.folder / f"slurm-{host}.log").write_text(said, errors="replace")

    def await_save(self, seconds: float = 15.0) -> None:
        """Wait until the controller has saved what it knows now; it saves every 5 s at most, after a change."""
        saved = ["stat", "-c", "%Y.%i", "/var/lib/slurm/slurmctld/job_state"]
        before = self.cluster.exec("ctld", saved).stdout
        probe = ["sbatch", "--wrap", "true", "-o", "/dev/null", "-J", "save"]
        self.cluster.exec("ctld", probe, user="bob", workdir="/tmp", check=False)
        deadline = time.monotonic() + seconds
        while self.cluster.exec("ctld", saved).stdout == before and time.monotonic() < deadline:
            time.sleep(0.1)

    def wait_serving(self, daemon: str, seconds: float = 30.0) -> None:
        """Wait until a daemon that was restarted answers questions, not only listens."""
        question = {"slurmctld": ["scontrol", "ping"], "slurmdbd": ["sacctmgr", "-n", "show", "cluster"]}[daemon]
        deadline = time.monotonic() + seconds
        while True:
            said = self.cluster.exec("ctld", question, check=False)
            if said.exit_code == 0 and "DOWN" not in said.stdout:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{daemon} doesn't answer: {said.stdout}{said.stderr}")
            time.sleep(0.2)
