"""Slurm through its own commands, for the many sites whose Slurm pyslurm doesn't know.

Works with Slurm 22.05 to 26.05. Each call starts one process (a cancel two), so it costs some 10 ms of CPU time where
pyslurm takes 1: see docs/guides/schedulers.md.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from slurmbus_agent.scheduler import requeueing, sacct, sbatch, squeue, words
from slurmbus_agent.scheduler.array import expression, split_name, task_name
from slurmbus_agent.scheduler.base import (
    ANY_ID,
    AccountingRow,
    BatchJob,
    NoAccounting,
    Observation,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from slurmbus_agent.scheduler.command import Ended, environment, run
from slurmbus_agent.scheduler.hints import Node
from slurmbus_agent.scheduler.words import Meaning
from slurmbus_protocol.messages import Partition
from slurmbus_protocol.states import FINAL

NEEDED = ("sbatch", "squeue", "scancel", "scontrol", "sdiag", "sinfo")
"""The commands without which no job can be followed; sacct is missed where a site keeps no accounting."""
FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin", "/cm/shared/apps/slurm/current/bin")
"""Where sites keep the commands, after PATH: an agent that cron starts has a short one."""
PING, READ, CONTROL = 2.5, 9.0, 18.0
"""Seconds for a command, each a little less than the agent's patience (limits.CallLimits): so a late command, and not
the process that waits for it, is killed."""
CTLD_FILTERS = (24, 11)
"""From this version on ``scancel --ctld`` has the controller compare the name. Before, scancel itself compared it after
it had loaded everybody's jobs, and took all tasks of a pending array for one."""

_CLOCKS = 60.0
"""Seconds by which the clocks of a login node and its controller may differ."""
_VERSION = re.compile(r"^slurm\S* (\d+)\.(\d+)\S*", re.MULTILINE)
_UP = re.compile(r"^Slurmctld\(.*\) at .* is UP", re.MULTILINE)
_BACKLOG = re.compile(r"^\s*DBD Agent queue size:\s*(\d+)", re.MULTILINE)
_KILL_ERROR = re.compile(r"^scancel: error: Kill job error on job id \S+: (.*)$", re.MULTILINE)
_GONE = frozenset({"Invalid job id specified", "Job/step already completing or completed"})
_OTHER_NAME = " != filter name "
_NO_STORAGE = "accounting storage is disabled"
_SETTING = re.compile(r"(\w+)=(\S*)")


def find(name: str) -> str | None:
    """Give the path of a command of Slurm's."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *FOLDERS]))


def version_of(path: str, env: Mapping[str, str], patience: float = READ) -> str:
    """Give the version that a command says it has, e.g. ``24.11.5``; nothing when it says something else."""
    found = _VERSION.search(run([path, "--version"], env=env, patience=patience).stdout)
    return found[0].partition(" ")[2] if found else ""


class CommandsBackend:
    """Slurm's controller and accounting, asked by Slurm's commands.

    Args:
        conf: slurm.conf, where the commands don't find it by themselves.
        owner: a pipe whose other end the agent holds open; when it has gone, a command that runs is killed.
    """

    def __init__(self, conf: str | None, owner: int | None = None) -> None:
        named = conf or os.environ.get("SLURM_CONF")
        if named and not Path(named).exists():  # the commands would wait for it for a minute
            raise Unavailable(f"there is no slurm.conf at {named}", hint="correct the setting slurm_conf or SLURM_CONF")
        self._paths = {name: path for name in (*NEEDED, "sacct") if (path := find(name)) is not None}
        missing = [name for name in NEEDED if name not in self._paths]
        if missing:
            raise Unavailable(
                f"Slurm's commands aren't here: {', '.join(missing)}",
                hint=f"put their folder on the PATH of the agent (it looked in PATH and {', '.join(FOLDERS)})",
            )
        # Times are given to sacct and read from all commands without knowing a zone.
        os.environ["TZ"] = "UTC0"
        time.tzset()
        self._env = environment(conf)
        self._conf = {"SLURM_CONF": named} if named else {}
        self._owner = owner
        self._user = str(os.getuid())
        self.version = version_of(self._paths["sbatch"], self._env)

    @property
    def _filters(self) -> bool:
        """Whether the controller compares the names of jobs to be cancelled."""
        found = _VERSION.match(f"slurm {self.version}")
        return found is not None and (int(found[1]), int(found[2])) >= CTLD_FILTERS

    def _run(self, name: str, arguments: Sequence[str], patience: float = READ) -> Ended:
        return run(
            [self._paths[name], *arguments],
            env=self._env,
            patience=patience,
            stop_at=words.RETRYING,
            owner=self._owner,
        )

    def ping(self) -> None:
        """Ask the controller and its backups."""
        ended = self._run("scontrol", ["ping"], PING)
        if not _UP.search(ended.stdout):
            _unavailable(ended)

    def submit(self, job: BatchJob) -> int:
        """Submit a job or an array and give its id."""
        return sbatch.submit(
            job,
            sbatch=self._paths["sbatch"],
            conf=self._conf,
            patience=CONTROL,
            owner=self._owner,
            site=lambda: (self.partitions(), self._nodes()),
        )

    def jobs(self) -> list[Observation]:
        """Give this user's jobs, those that finished within MinJobAge included, in one question for these jobs only."""
        return self._look(["--user", self._user]) or []

    def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job or one task of an array; None is Slurm's "invalid job id"."""
        which = str(job_id) if task is None else f"{job_id}_{task}"
        for seen in self._look(["--jobs", which]) or []:
            if seen.job_id == job_id and (task is None or seen.name.endswith(f"[{task}]")):
                return seen
        return None

    def _look(self, which: Sequence[str]) -> list[Observation] | None:
        """Ask for jobs; None when the controller says that there is no such job."""
        mark = squeue.new_mark()
        ended = self._run("squeue", [*squeue.arguments(mark), *which])
        if ended.code == 0:
            return squeue.observations(ended.stdout, mark)
        if not ended.trouble and squeue.UNKNOWN_JOB in ended.stderr:
            return None
        return _unavailable(ended)

    def cancel(self, job_id: int, name: str) -> bool:
        """Cancel a job, or tasks of an array, after a look at its name; True also when it has already ended.

        The controller compares the name once more, from Slurm 24.11 on. Before, the id would have to be purged and
        handed out again between the look and the cancel, within some 20 ms, to hit a foreign job.
        """
        own, tasks = split_name(name)
        wanted = {name} if tasks is None else {task_name(own, task) for task in tasks}
        seen = [
            job for job in self._look(["--jobs", str(job_id)]) or [] if (job.job_id, job.name) in _pairs(job_id, wanted)
        ]
        if not seen:
            return False
        if all(job.state in FINAL and not job.flags for job in seen):
            return True
        which = str(job_id) if tasks is None else f"{job_id}_[{expression(tasks)}]"
        compared = ["--ctld", f"--name={own}"] if self._filters else []
        return _cancelled(self._run("scancel", [*compared, which], CONTROL))

    def requeue(self, job_id: int, name: str) -> bool:
        """Send a running job, or one task of an array, back to the queue after a look at its name."""
        task = requeueing.task_of(name)
        if not requeueing.is_meant(self.job(job_id, task), name):
            return False
        return requeueing.done(self._run("scontrol", ["requeue", requeueing.word(job_id, task)], CONTROL))

    def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give the latest start of each job that fits in id and name and was submitted after ``since``."""
        if "sacct" not in self._paths:
            raise NoAccounting("there is no sacct here: this site seems to keep no accounting")
        # sacct takes no start in the future, and clocks differ; what was submitted earlier is left out below.
        start = min(since, time.time() - _CLOCKS)
        ended = self._run("sacct", [word for word in sacct.arguments(jobs, start) if word != "--noheader"])
        if _NO_STORAGE in ended.stderr:
            raise NoAccounting("this site keeps no accounting (AccountingStorageType in slurm.conf)")
        printed = sacct.body(ended.stdout)
        if ended.code != 0 or printed is None:
            _unavailable(ended)
        wanted = set(jobs)
        found = (row for row in sacct.rows(printed) if {(row.job_id, row.name), (ANY_ID, row.name)} & wanted)
        return [row for row in found if row.submit_time is not None and row.submit_time >= math.floor(since)]

    def accounting_backlog(self) -> int:
        """Give how many messages slurmctld still holds for slurmdbd."""
        ended = self._run("sdiag", [])
        found = _BACKLOG.search(ended.stdout)
        return int(found[1]) if found else _unavailable(ended)

    def partitions(self) -> list[Partition]:
        """Give the partitions that this user can see."""
        ended = self._run("scontrol", ["--oneliner", "show", "partition"])
        rows = [dict(_SETTING.findall(line)) for line in ended.stdout.splitlines() if line.startswith("PartitionName=")]
        if ended.code != 0 or not (rows or "No partitions" in ended.stdout):
            _unavailable(ended)
        states = self._node_states()
        return [_partition(row, states.get(row["PartitionName"], {})) for row in rows]

    def _node_states(self) -> dict[str, dict[str, int]]:
        ended = self._run("sinfo", ["--all", "--noheader", "--format=@%R@%D@%T@"])
        if ended.code != 0:
            _unavailable(ended)
        found: dict[str, dict[str, int]] = {}
        for partition, nodes, state in re.findall(r"^@(.+)@(\d+)@([a-z_]+)\W*@$", ended.stdout, re.MULTILINE):
            states = found.setdefault(partition, {})
            states[state] = states.get(state, 0) + int(nodes)
        return found

    def _nodes(self) -> list[Node]:
        ended = self._run("sinfo", ["--all", "--Node", "--noheader", "--format=@%R@%c@%m@"])
        if ended.code != 0:
            _unavailable(ended)
        found = re.findall(r"^@(.+)@(\d+)\+?@(\d+)\+?@$", ended.stdout, re.MULTILINE)
        return [Node((partition,), int(cpus), int(memory)) for partition, cpus, memory in found]


def _pairs(job_id: int, names: set[str]) -> set[tuple[int, str]]:
    return {(job_id, name) for name in names}


def _cancelled(ended: Ended) -> bool:
    """Find out what a cancel did: scancel's exit code is 0 for many an error."""
    errors = [text for text in _KILL_ERROR.findall(ended.stderr) if text not in _GONE]
    if _OTHER_NAME in ended.stderr:
        return False
    for text in errors:
        match words.of_words(text):
            case Meaning.REFUSED:
                raise Refused(text)
            case Meaning.NOT_SENT:
                raise Unavailable(text)
            case Meaning.UNKNOWN:
                raise OutcomeUnknown(f"the cancel failed on its way: {text}")
    if ended.trouble or (ended.code != 0 and not _KILL_ERROR.search(ended.stderr)):
        raise OutcomeUnknown(f"the cancel failed on its way: {ended.said}")
    return True


def _partition(row: Mapping[str, str], node_states: dict[str, int]) -> Partition:
    return Partition(
        name=row["PartitionName"],
        state=row.get("State", ""),
        nodes=int(row.get("TotalNodes") or 0),
        cpus=int(row.get("TotalCPUs") or 0),
        default=row.get("Default") == "YES",
        max_time_minutes=_minutes(row.get("MaxTime", "")),
        node_states=node_states,
    )


def _minutes(text: str) -> int | None:
    """Read ``1-00:00:00``; None for UNLIMITED."""
    return math.ceil(sacct.duration(text) / 60) if ":" in text else None


def _unavailable(ended: Ended) -> NoReturn:
    raise Unavailable(ended.said)
