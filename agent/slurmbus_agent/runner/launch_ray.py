"""Ray: a cluster over the job's nodes with the payload attached, or the payload attached to a cluster that is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress

from slurmbus_agent.runner import launch_network
from slurmbus_agent.runner.launch_crew import Crew, Member
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_lines import how_it_ended
from slurmbus_agent.runner.launch_ray_node import INNER, Sizes, folder_of, sizes
from slurmbus_agent.runner.launch_ray_start import CLIENT_PORT, NO_RAY
from slurmbus_agent.runner.launch_ray_watch import SAYS
from slurmbus_agent.runner.payload import NotStarted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.launch_job import Launch

ORDER_WITHIN = 15.0
"""Seconds for what a node does at once."""
ATTEMPTS = 4
"""Times to start Ray on a node: a port that was free may be taken by somebody else before Ray has it."""
HEAD_PORTS = ("port", CLIENT_PORT, "dashboard_port")
"""The ports that Ray doesn't let the kernel choose, or that others must know before Ray runs."""
KERNEL_PORTS = (
    "node_manager_port",
    "object_manager_port",
    "min_worker_port",
    "max_worker_port",
    "dashboard_agent_listen_port",
)
ANSWERS_WITHIN = 5.0
REST = 0.5
"""Seconds between two attempts to start a worker, or the watch before it is ready."""
WATCH_REST = 5.0
"""Seconds until the watch is started again once the cluster is ready: each start of it costs the first node a second of
CPU time, and the head may be the one that is gone."""
IMPATIENT = "timed out during startup"
"""Ray's own words when a node wasn't there within the 30 s that it grants. Source: ray/_private/node.py."""
WORDS = 4
"""Lines of Ray's own words in an error."""
MIB = 1024 * 1024


def launch(job: Launch) -> int:
    """Run the payload with Ray, and give its exit code or minus its signal."""
    if job.options["ray_address"]:
        return _attach(job, str(job.options["ray_address"]))
    cluster = Cluster(job)
    try:
        cluster.start()
        return job.run(env=cluster.environment)
    finally:
        cluster.stop()


def _attach(job: Launch, address: str) -> int:
    """Run the payload with a cluster that is there already."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit() and not launch_network.answers(host, int(port), ANSWERS_WITHIN):
        raise LaunchFailed(
            f"ray_address: nothing answers at {address} from {job.allocation.here.name}; "
            "start the cluster first, or leave ray_address out to get one inside the job"
        )
    return job.run(env={"RAY_ADDRESS": address})


class Cluster:
    """A Ray cluster inside the job: a head on this node, and a worker on each other one."""

    def __init__(self, job: Launch) -> None:
        self._job = job
        self._options = job.options
        self._until = time.monotonic() + float(job.options["start_timeout"])
        self._begun = time.monotonic()
        self._crew = Crew(job, job.options["interface"])
        self._crew.on_line = self._hear
        self._crew.on_ended = self._ended
        self._crew.on_gone = self._gone
        self._folder = ""
        self._sizes: dict[str, Sizes] = {}
        self._ports: dict[str, int] = {}
        self._attempts = 0
        self._alive: set[str] = set()
        self._again: dict[str, float] = {}
        """When Ray shall be started again, by node."""
        self._failures: dict[str, int] = {}
        """How often Ray ended on a node although its head was there."""
        self._failure: str | None = None
        self._ready = False
        self._head_ended: str | None = None
        self._said: dict[str, list[str]] = {}
        self._dead: set[str] = set()
        self._about: dict[str, Any] = {}
        self._token = os.environ.get("RAY_AUTH_TOKEN") or os.urandom(32).hex()
        self._watch = 0
        self._stopping = False

    @property
    def address(self) -> str:
        """Where drivers find the cluster."""
        return f"{self._crew.head_address}:{self._ports['port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What the payload needs to attach with ``ray.init("auto")``; others on these nodes don't know the token."""
        return {"RAY_ADDRESS": self.address, **self._access()}

    def _access(self) -> dict[str, str]:
        if os.environ.get("RAY_AUTH_MODE", "token") != "token":
            return {}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Start it, and come back when every node has joined.

        Raises:
            LaunchFailed: it names the nodes that didn't join.
        """
        self._crew.muster(self._left())
        self._prepare()
        self._sizes = {member.name: sizes(member, self._options) for member in self._crew.members.values()}
        self._folder = folder_of(self._crew, self._options["temp_dir"], ORDER_WITHIN)
        self._start_head()
        for member in self._crew.members.values():
            if not self._is_head(member):
                self._start_worker(member)
        while not self._ready:
            if self._again:
                self._job.wait(self._something_to_do, min([self._until, *self._again.values()]))
            else:
                self._job.wait(lambda: self._something_to_do() or bool(self._again), self._until)
            if self._failure is not None:
                raise LaunchFailed(self._failure)
            if self._head_ended is not None:
                self._start_head_again(self._head_ended)
            now = time.monotonic()
            for name in [name for name, due in self._again.items() if due <= now]:
                del self._again[name]
                self._start_worker(self._crew.members[name])
            if now >= self._until and not self._ready:
                raise LaunchFailed(self._who_is_missing())
        self._tell()

    def _something_to_do(self) -> bool:
        return self._ready or self._failure is not None or self._head_ended is not None

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _prepare(self) -> None:
        commands = self._options["pre_start_commands"]
        if not commands:
            return
        try:
            self._crew.ask_all({"do": "prepare", "commands": "\n".join(commands)}, self._left())
        except LaunchFailed as error:
            raise LaunchFailed(f"pre_start_commands: {error}") from error

    def _is_head(self, member: Member) -> bool:
        return member.node is self._job.allocation.here

    def _start_head(self) -> None:
        """Start the head with ports that are free now, and the watch that asks it who has joined."""
        self._attempts += 1
        self._head_ended = None
        name = self._job.allocation.here.name
        answer = self._crew.ask({name: {"do": "ports", "count": len(HEAD_PORTS)}}, ORDER_WITHIN)[name]
        self._ports = dict(zip(HEAD_PORTS, answer["ports"]))  # noqa: B905 - since Python 3.10
        head: dict[str, Any] = {"head": True, **self._ports, "dashboard_host": "0.0.0.0"}  # noqa: S104 - it wants the token
        if not self._options["dashboard"]:
            del head["dashboard_port"], head["dashboard_host"]
            head["include_dashboard"] = "false"
        self._start_ray(self._crew.members[name], head)
        self._start_watch()

    def _start_watch(self) -> None:
        attempt = self._attempts

        def ended(_exit: int) -> None:  # the head was too slow for Ray's own patience, or somebody has killed it
            self._job.loop.later(WATCH_REST if self._ready else REST, lambda: self._start_watch_again(attempt))

        argv = [self._options["python"], self._job.runner, "--ray-watch", self.address, str(len(self._crew.members))]
        env = {**os.environ, **self._access()}
        self._watch = self._job.spawn(argv, env, self._hear_watch, ended)

    def _start_watch_again(self, attempt: int) -> None:
        """Start the watch of this attempt again, as long as there is something to watch."""
        if attempt != self._attempts or self._stopping or self._job.allocation.here.name in self._dead:
            return
        try:
            self._start_watch()
        except (NotStarted, OSError) as error:
            if not self._ready:
                raise
            self._job.say(f"nobody watches Ray's nodes any more: {error}")  # the payload goes on

    def _start_head_again(self, words: str) -> None:
        """Start everything again when somebody took one of the head's ports, or Ray lost patience with a slow node.

        Raises:
            LaunchFailed: it ended for another reason, or again and again.
        """
        here = self._job.allocation.here.name
        answer = self._crew.ask({here: {"do": "taken", "ports": list(self._ports.values())}}, ORDER_WITHIN)[here]
        if not (answer["taken"] or IMPATIENT in words) or self._attempts == ATTEMPTS:
            raise LaunchFailed(f"Ray can't be started on {here}: {words}")
        with suppress(ProcessLookupError):  # it has ended, too
            os.killpg(self._watch, signal.SIGKILL)
        self._crew.ask_all({"do": "clear"}, ORDER_WITHIN)
        self._start_head()
        self._again = {name: 0.0 for name, member in self._crew.members.items() if not self._is_head(member)}

    def _start_worker(self, member: Member) -> None:
        self._start_ray(member, {"address": self.address})

    def _start_ray(self, member: Member, options: dict[str, Any]) -> None:
        size = self._sizes[member.name]
        cpus = size.cpus
        if self._is_head(member) and self._options["head_cpus"] is not None:
            cpus = self._options["head_cpus"]
        options = {
            **options,
            "node_ip_address": member.address,
            "node_name": member.name,
            **dict.fromkeys(KERNEL_PORTS, 0),
            "num_cpus": cpus,
            "num_gpus": size.gpus,
            "memory": size.memory,
            "object_store_memory": size.object_store,
            "resources": json.dumps(self._options["resources_per_node"]),
            "temp_dir": self._folder + INNER,
            "disable_usage_stats": True,
            "block": True,
            "log_style": "record",
            "log_color": "false",
        }
        if size.slow_store:
            options["plasma_directory"] = self._folder
        if "head" not in options:  # what only a head may say; older versions of Ray insist
            del options["temp_dir"], options["disable_usage_stats"]
        argv = [self._options["python"], self._job.runner, "--ray-start", json.dumps(options)]
        env = {
            **self._access(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self._folder + INNER,
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(int(self._options["start_timeout"]) + 1),
        }
        order = {"do": "start", "name": "ray", "argv": argv, "env": env}
        self._crew.ask({member.name: order}, ORDER_WITHIN)

    # ------------------------------------------------------------------ what happens meanwhile

    def _hear(self, member: Member, name: str, line: str) -> None:
        if name == "prepare":
            self._job.say(f"[{member.name}] {line}")
        else:
            said = self._said.setdefault(member.name, [])
            said.append(line)
            del said[:-20]

    def _hear_watch(self, line: str) -> None:
        if not line.startswith(SAYS):
            return
        said = json.loads(line[len(SAYS) :])
        if "alive" not in said:
            self._about = said
            return
        self._alive = set(said["alive"])
        awaited = {member.address for member in self._crew.members.values()}
        if not self._ready:
            self._ready = awaited <= self._alive
            return
        for member in self._crew.members.values():
            if member.address not in self._alive:
                self._lost(member, "Ray doesn't hear from it any more")

    def _ended(self, member: Member, _name: str, exit_code: int, tail: list[str]) -> None:
        """Ray ended on a node: before the cluster is ready it may be started again, afterwards the node is lost."""
        words = self._words(exit_code, tail)
        if self._ready:
            self._lost(member, words)
        elif self._is_head(member):
            self._head_ended = words
        else:
            self._failures[member.name] = self._failures.get(member.name, 0) + bool(self._alive)
            self._again[member.name] = time.monotonic() + REST
            if self._failures[member.name] == ATTEMPTS or any(NO_RAY in line for line in tail):
                self._failure = f"Ray can't be started on {member.name}: {words}"

    def _gone(self, member: Member) -> None:
        if self._ready:
            self._lost(member, "the node's helper is gone")
        else:
            self._failure = f"{member.name} was lost while Ray started there"

    def _lost(self, member: Member, words: str) -> None:
        if not self._ready or member.name in self._dead:
            return
        self._dead.add(member.name)
        every = len(self._crew.members)
        goes_on = f"the cluster goes on with {every - len(self._dead)} of {every} nodes"
        if self._is_head(member):
            self._job.say(f"Ray's head on {member.name} is lost ({words}); the payload can't use the cluster any more")
        else:
            self._job.say(f"Ray's worker on {member.name} is lost ({words}); {goes_on}")

    def _words(self, exit_code: int, tail: list[str]) -> str:
        missing = [line.partition(" ")[2] for line in tail if line.startswith(NO_RAY)]
        if missing:
            return (
                f"python: {self._options['python']!r} has no Ray ({missing[0]}); install ray[default] there, "
                "or name the Python that has it with RayLauncher(python=…)"
            )
        said = [line for line in tail if line.strip()][-WORDS:]
        return ": ".join([how_it_ended(exit_code), " / ".join(said)] if said else [how_it_ended(exit_code)])

    def _who_is_missing(self) -> str:
        within = f"{float(self._options['start_timeout']):g} s"
        missing = [member for member in self._crew.members.values() if member.address not in self._alive]
        said = [f"{member.name} said: {lines[-1]}" for member in missing if (lines := self._said.get(member.name))]
        names = ", ".join(member.name for member in missing)
        return "; ".join(
            [f"Ray wasn't ready within {within}: {names} didn't join", *said, "allow more with start_timeout=…"]
        )

    def _tell(self) -> None:
        """Say that it is ready, and where its dashboard is."""
        job, members = self._job, self._crew.members
        seconds = time.monotonic() - self._begun
        version = self._about.get("ray", "")
        job.say(f"Ray {version} is ready on {', '.join(members)} after {seconds:.1f} s: {self.address}")
        for name, size in self._sizes.items():
            if size.slow_store:
                job.say(
                    f"{name}: /dev/shm has only {members[name].shared_memory // MIB:,} MiB left; "
                    f"Ray keeps its objects in {self._folder}, which is slower"
                )
        port = self._ports["dashboard_port"]
        if not self._options["dashboard"] or not launch_network.answers(self._crew.head_address, port, ANSWERS_WITHIN):
            return
        facts = {"ray_dashboard": f"http://{self._crew.head_address}:{port}"}
        login = os.environ.get("SLURM_SUBMIT_HOST")
        if login and not job.allocation.local:
            user = os.environ.get("USER") or str(os.getuid())
            facts["ray_dashboard_tunnel"] = f"ssh -N -L {port}:{self._crew.head_address}:{port} {user}@{login}"
        if self._access() and self._about.get("token"):
            facts["ray_dashboard_token_file"] = job.keep_secret("ray-token", self._token)
        job.tell(**facts)

    # ------------------------------------------------------------------ end

    def stop(self) -> None:
        """Stop everything on every node."""
        self._stopping = True
        self._crew.stop()
        if self._folder:  # on a node with much to do its helper may have been killed before it was done
            shutil.rmtree(self._folder, ignore_errors=True)
