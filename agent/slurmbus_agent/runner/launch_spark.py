"""Spark: a standalone cluster over the job's nodes, with the payload attached."""

from __future__ import annotations

import json
import os
import time
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from slurmbus_agent.runner.launch_crew import Crew, Member
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_lines import how_it_ended
from slurmbus_agent.runner.launch_spark_conf import (
    DAEMON_MIB,
    DEFAULTS_FOLDER,
    EXECUTOR_OPTIONS,
    Sizes,
    defaults,
    find_home,
    folder_of,
    java_options,
    write,
)
from slurmbus_agent.runner.launch_tunnel import tunnel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from slurmbus_agent.runner.launch_job import Launch

ORDER_WITHIN = 15.0
"""Seconds for what a node does at once."""
ATTEMPTS = 4
"""Times to start the master: a port that was free may be taken by somebody else before Spark has it."""
LOOK_EVERY = 0.1
"""Seconds between two looks at the master's page while the cluster starts."""
LOOK_WITHIN = 2.0
WORDS = 4
"""Lines of Spark's own words in an error."""
MASTER = "org.apache.spark.deploy.master.Master"
WORKER = "org.apache.spark.deploy.worker.Worker"
OPTIONS = (
    "-Dspark.authenticate=true -Dspark.ui.killEnabled=false -Dspark.port.maxRetries=0 -Dspark.master.rest.enabled=false"
)
"""Others have accounts on these nodes, too: who doesn't know the secret can neither submit nor end anything. The REST
server knows no secret, and its one port keeps a second master of the node in STANDBY for ever."""


def launch(job: Launch) -> int:
    """Run the payload with Spark, and give its exit code or minus its signal."""
    cluster = Cluster(job)
    try:
        cluster.start()
        return job.run(env=cluster.environment)
    finally:
        cluster.stop()


class Cluster:
    """A standalone Spark cluster: a master on this node, and a worker on each."""

    def __init__(self, job: Launch) -> None:
        self._job = job
        self._options = job.options
        self._begun = time.monotonic()
        self._until = self._begun + float(job.options["start_timeout"])
        self._home = find_home(job)
        self._crew = Crew(job, job.options["interface"])
        self._crew.on_ended = self._ended
        self._crew.on_gone = lambda member: self._worker_lost(member, "the node's helper is gone")
        self._secret = os.urandom(32).hex()
        self._open = build_opener(ProxyHandler({})).open  # a proxy of the site can't know these nodes
        self._folder = ""
        self._port = self._page_port = 0
        self._ready = False
        self._attempt = 0
        self._master_ended = ""
        self._failed = ""
        self._lost: set[str] = set()

    @property
    def address(self) -> str:
        """Where drivers find the cluster."""
        return f"spark://{self._crew.head_address}:{self._port}"

    @property
    def _page(self) -> str:
        return f"http://{self._crew.head_address}:{self._page_port}"

    @property
    def _here(self) -> str:
        return self._job.allocation.here.name

    @property
    def environment(self) -> dict[str, str]:
        """What the payload needs: a session that it makes without further words is the cluster's."""
        paths = [*os.environ.get("PYTHONPATH", "").split(":"), *self._home.python_path]
        return {
            **self._common(self._crew.members[self._here]),
            "SPARK_MASTER": self.address,
            "SPARK_SUBMIT_OPTS": f"{os.environ.get('SPARK_SUBMIT_OPTS', '')} {java_options(self._folder)}".strip(),
            "SPARK_CONF_DIR": self._folder + DEFAULTS_FOLDER,
            "PYTHONPATH": ":".join(path for path in paths if path),
        }

    def _common(self, member: Member) -> dict[str, str]:
        python = str(self._options["python"])
        return {
            "SPARK_HOME": self._home.folder,
            "SPARK_LOCAL_IP": member.address,
            "SPARK_LOCAL_DIRS": self._folder,
            "PYSPARK_PYTHON": python,
            "PYSPARK_DRIVER_PYTHON": python,
        }

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Start it, and come back when a worker of every node has registered.

        Raises:
            LaunchFailed: it names the nodes whose worker didn't.
        """
        self._crew.muster(self._left())
        members = self._crew.members
        sizes = Sizes(members.values(), self._here, self._options)
        self._folder = folder_of(self._crew, self._options["temp_dir"], ORDER_WITHIN)
        self._start_master()
        self._wait_for_master(lambda _about: True)
        for member in members.values():
            self._start_worker(member, sizes)
        self._wait_for_master(lambda about: not self._missing(about))
        self._ready = True
        host = members[self._here].address
        values = defaults(self.address, host, self._secret, sizes, self._options["conf"])
        values[EXECUTOR_OPTIONS] = f"{values.get(EXECUTOR_OPTIONS, '')} {java_options(self._folder)}".strip()
        write(self._folder + DEFAULTS_FOLDER, values)
        self._tell()

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _start_master(self) -> None:
        self._attempt += 1
        self._master_ended = ""
        answer = self._crew.ask({self._here: {"do": "ports", "count": 2}}, ORDER_WITHIN)[self._here]
        self._port, self._page_port = answer["ports"]
        member = self._crew.members[self._here]
        argv = [MASTER, "--host", member.address, "--port", str(self._port), "--webui-port", str(self._page_port)]
        self._start(member, "master", argv)

    def _start_master_again(self) -> None:
        """Choose other ports when the master ended because somebody took one of its; LaunchFailed otherwise."""
        order = {"do": "taken", "ports": [self._port, self._page_port]}
        answer = self._crew.ask({self._here: order}, ORDER_WITHIN)[self._here]
        if not answer["taken"] or self._attempt == ATTEMPTS:
            raise LaunchFailed(f"Spark's master can't be started on {self._here}: {self._master_ended}")
        self._start_master()

    def _start_worker(self, member: Member, sizes: Sizes) -> None:
        argv = [WORKER, "--host", member.address, "--port", "0", "--webui-port", "0"]
        argv += ["--cores", str(sizes.cores[member.name]), "--memory", f"{sizes.offered[member.name]}m"]
        self._start(member, "worker", [*argv, "--work-dir", f"{self._folder}/work", self.address])

    def _start(self, member: Member, name: str, argv: list[str]) -> None:
        own = os.environ.get("SPARK_DAEMON_JAVA_OPTS", "")
        env = {
            **self._common(member),
            "SPARK_DAEMON_JAVA_OPTS": f"{own} {java_options(self._folder)} {OPTIONS}".strip(),
            "SPARK_DAEMON_MEMORY": f"{DAEMON_MIB}m",
            "_SPARK_AUTH_SECRET": self._secret,  # an argument could be read by others on the node
        }
        order = {"do": "start", "name": name, "argv": [self._home.program, *argv], "env": env}
        self._crew.ask({member.name: order}, ORDER_WITHIN)

    def _wait_for_master(self, done: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the master's page says something.

        Raises:
            LaunchFailed: a part of the cluster can't be started, or not in time.
        """
        while True:
            about = self._ask_master()
            if about and done(about):
                return
            if self._failed:
                raise LaunchFailed(self._failed)
            if self._master_ended:
                self._start_master_again()
            if not self._left():
                raise LaunchFailed(
                    f"Spark wasn't ready within {float(self._options['start_timeout']):g} s: "
                    f"{', '.join(self._missing(about))} didn't register; allow more with start_timeout=…"
                )
            self._job.wait(lambda: bool(self._failed or self._master_ended), time.monotonic() + LOOK_EVERY)

    def _ask_master(self) -> dict[str, Any]:
        """Give what the master's page says; nothing while it isn't there, or when it is somebody else's."""
        try:
            with self._open(f"{self._page}/json/", timeout=LOOK_WITHIN) as answer:
                about: dict[str, Any] = json.loads(answer.read())
        except (URLError, OSError, ValueError):
            return {}
        return about if about.get("url") == self.address else {}

    def _missing(self, about: dict[str, Any]) -> list[str]:
        """Name the nodes without a registered worker."""
        alive = {str(worker["host"]) for worker in about.get("workers", ()) if worker.get("state") == "ALIVE"}
        return [member.name for member in self._crew.members.values() if member.address not in alive]

    def _tell(self) -> None:
        """Say that it is ready, and where its page is."""
        names, seconds = ", ".join(self._crew.members), time.monotonic() - self._begun
        self._job.say(f"Spark is ready on {names} after {seconds:.1f} s: {self.address}")
        facts = {"spark_master": self.address, "spark_ui": self._page}
        way = tunnel(self._job, self._crew.head_address, self._page_port)
        if way is not None:
            facts["spark_ui_tunnel"] = way
        self._job.tell(**facts)

    # ------------------------------------------------------------------ what happens meanwhile

    def _ended(self, member: Member, name: str, exit_code: int, tail: list[str]) -> None:
        """A part of the cluster ended by itself."""
        said = [line.strip() for line in tail if line.strip()][-WORDS:]
        words = ": ".join([how_it_ended(exit_code), *([" / ".join(said)] if said else [])])
        if name == "worker":
            self._worker_lost(member, words)
        elif self._ready:
            self._job.say(
                f"Spark's master on {member.name} is lost ({words}); the payload can't get executors any more"
            )
        else:
            self._master_ended = words

    def _worker_lost(self, member: Member, words: str) -> None:
        if not self._ready:
            self._failed = f"Spark's worker can't be started on {member.name}: {words}"
            return
        if member.name in self._lost:
            return
        self._lost.add(member.name)
        left = len(self._crew.members) - len(self._lost)
        if not left:
            raise LaunchFailed(f"Spark's last worker, on {member.name}, is lost ({words}); the payload was ended")
        of = f"{left} of {len(self._crew.members)} nodes"
        self._job.say(f"Spark's worker on {member.name} is lost ({words}); the cluster goes on with {of}")

    # ------------------------------------------------------------------ end

    def stop(self) -> None:
        """Stop everything on every node."""
        self._crew.stop()
