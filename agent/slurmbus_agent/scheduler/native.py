"""Slurm through pyslurm: the only module that imports it, in the scheduler's child process only.

pyslurm is compiled against one version of Slurm, blocks the whole process while it waits, and ends the process when it
finds no slurm.conf. Its other traps are told where they are stepped around.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slurmbus_agent.scheduler import commands, details, libslurm, sbatch
from slurmbus_agent.scheduler.base import (
    ANY_ID,
    AccountingRow,
    BatchJob,
    NoAccounting,
    Observation,
    OutcomeUnknown,
    Refused,
    SchedulerError,
    Unavailable,
)
from slurmbus_agent.scheduler.hints import Node, hint_for
from slurmbus_agent.scheduler.submission import beyond, description
from slurmbus_protocol.messages import Accounting, Partition
from slurmbus_protocol.states import FINAL

# Importing pyslurm initialises libslurm, which ends the process where it finds no slurm.conf, and leaves changed how
# Python loads every later extension module.
os.environ["PYSLURM_DISABLE_AUTO_INIT"] = "1"
_dlopen_flags = sys.getdlopenflags()
import pyslurm  # noqa: E402

sys.setdlopenflags(_dlopen_flags)

NO_VAL = 0xFFFFFFFE  # slurm.h

NO_RECORD = -1
"""pyslurm's error when the controller answered without a record: the id is somebody's whose jobs we may not see."""

# slurm_errno.h
NOT_CONNECTED = frozenset({1001, 1800})  # SLURM(CTLD)_COMMUNICATIONS_CONNECTION_ERROR: nothing was sent
SLURM_SAYS_NO = 2000  # from here on the controller itself has answered, except for:
NO_ANSWER = frozenset({5003, 5004, 5005})
"""PROTOCOL_INCOMPLETE_PACKET, SOCKET_IMPL_TIMEOUT, SOCKET_ZERO_BYTES_SENT: the call may still be carried out."""
NOT_NOW = frozenset(
    {
        2007,  # ESLURM_MAX_JOB_COUNT
        2016,  # ESLURM_NODES_BUSY
        2027,  # ESLURM_IN_STANDBY_MODE
        2131,  # ESLURM_IN_STANDBY_USE_BACKUP
    }
)
"""The controller's answers to a submit after which sbatch, too, tries again."""


_NO_STORAGE = "accounting_storage/none"


def _is_an_answer(errno: int) -> bool:
    """Tell whether the controller itself said this; a frozen one may still carry out what it was sent."""
    return errno >= SLURM_SAYS_NO and errno not in NO_ANSWER


class NativeBackend:
    """Slurm's controller and accounting, asked by pyslurm."""

    def __init__(self, conf: str | None) -> None:
        """Read slurm.conf: ``conf``, or the one that libslurm finds."""
        named = conf or os.environ.get("SLURM_CONF")
        if named and not Path(named).exists():  # libslurm would look for half a minute elsewhere
            raise Unavailable(f"there is no slurm.conf at {named}", hint="correct the setting slurm_conf or SLURM_CONF")
        # pyslurm hands the variables that begin so on to every job; an agent inside an allocation has many of them.
        for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            del os.environ[name]
        pyslurm.slurm_init(conf)
        os.environ.pop("SLURM_CONF", None)
        self._conf = {"SLURM_CONF": named} if named else {}
        self._user = os.getuid()
        self._library = libslurm.Library()
        self._scratch = libslurm.scratch_job(pyslurm.Job)
        libslurm.check_layout(self._library, self._scratch)
        self._job_state = libslurm.Field(self._library, self._scratch, "state", 3, "COMPLETED")
        self._job_exit = libslurm.Field(self._library, self._scratch, "exit_code", 37 << 8, 37)
        self._row_exit = libslurm.Field(self._library, pyslurm.db.Job(), "exit_code", 37 << 8, 37)
        self.version = "{}.{:02}.{}".format(*pyslurm.slurm_api_version())
        self._database: Any = None
        self._storage: str | None = None

    def ping(self) -> None:
        """Ask the controller, and its first backup when it doesn't answer."""
        try:
            pyslurm.slurmctld.ping(0)
        except pyslurm.RPCError as error:
            try:
                pyslurm.slurmctld.ping(1)
            except pyslurm.RPCError:
                raise _unavailable(error) from error

    def submit(self, job: BatchJob) -> int:
        """Submit a job and give its id.

        Slurm refuses some jobs (a configuration that no node has) after it gave them an id: those are seen as FAILED
        with the reason BadConstraints under their name afterwards.
        """
        if job.array:
            raise _no_arrays()
        not_for_pyslurm = beyond(job.options)
        if not_for_pyslurm:
            return self._submit_by_sbatch(job, not_for_pyslurm)
        with _spoken() as spoken:
            try:
                return int(pyslurm.JobSubmitDescription(**description(job)).submit())
            except (ValueError, TypeError) as error:
                # Raised before anything is sent: pyslurm checks what it is given.
                raise Refused(str(error)) from error
            except pyslurm.RPCError as error:
                failed = error
        if failed.errno in NOT_CONNECTED or failed.errno in NOT_NOW:
            raise _unavailable(failed) from failed
        if _is_an_answer(failed.errno):
            words = "; ".join(dict.fromkeys([str(failed), *spoken]))
            raise Refused(words, hint=hint_for(failed.errno, job.options, self._site)) from failed
        raise OutcomeUnknown(f"the submit failed on its way: {failed}") from failed

    def _submit_by_sbatch(self, job: BatchJob, options: list[str]) -> int:
        """Have sbatch submit what pyslurm can't express; it costs some 10 ms more."""
        command = commands.find("sbatch")
        if command is None:
            raise Refused(
                f"this agent can't ask Slurm for {', '.join(options)}: pyslurm can't, and sbatch isn't here",
                hint=f"put sbatch's folder on the agent's PATH, or leave {', '.join(options)} out",
            )
        return sbatch.submit(
            job, sbatch=command, conf=self._conf, patience=commands.CONTROL, owner=None, site=self._site
        )

    def jobs(self) -> list[Observation]:
        """Give this user's jobs, those that finished within MinJobAge included, in one call for these jobs only."""
        seen = []
        try:
            for job in self._library.jobs_of(self._user, self._scratch):
                with contextlib.suppress(UnicodeDecodeError):  # not one of ours: their names are ASCII
                    seen.append(self._observe(job))
        except libslurm.LoadFailed as error:
            raise _unavailable(pyslurm.RPCError(error.errno)) from error
        return seen

    def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job; None is Slurm's "invalid job id"."""
        if task is not None:
            raise _no_arrays()
        job = self._load(job_id)
        return None if job is None else self._observe(job)

    def cancel(self, job_id: int, name: str) -> bool:
        """Cancel a job by its id after a look at its name; True also when it has already ended.

        To hit a foreign job, the id would have to be purged and handed out again between the look and the cancel,
        within a millisecond. libslurm has a call that cancels by id and name, but pyslurm doesn't offer it.
        """
        job = self._load(job_id)
        if job is None or job.name != name:
            return False
        before = self._observe(job)
        if before.state in FINAL and not before.flags:
            return True
        try:
            pyslurm.Job(job_id).cancel()
        except pyslurm.RPCError as error:
            return self._after_failed_cancel(job_id, error)
        return True

    def _after_failed_cancel(self, job_id: int, error: Any) -> bool:
        """Find out what a cancel did: pyslurm takes what errno happens to hold for its outcome."""
        if error.errno in NOT_CONNECTED:
            raise _unavailable(error) from error
        if _is_an_answer(error.errno):
            raise Refused(str(error)) from error
        job = self._load(job_id)
        if job is None or self._observe(job).state in FINAL:
            return True
        raise OutcomeUnknown(f"the cancel failed on its way: {error}") from error

    def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give the latest start of each job that fits in id and name and was submitted after ``since``.

        pyslurm fails for a whole query when a step spans components of a heterogeneous job; then each job is asked for
        by itself and those that can't be read are left out.
        """
        if not self._keeps_accounting():
            raise NoAccounting("this site keeps no accounting (AccountingStorageType in slurm.conf)")
        wanted = set(jobs)
        by_name = [name for job_id, name in wanted if job_id == ANY_ID]
        by_both = [(job_id, name) for job_id, name in wanted if job_id != ANY_ID]
        rows = self._rows([], by_name, since) if by_name else []
        if by_both:
            try:
                rows += self._rows([job_id for job_id, _ in by_both], sorted({name for _, name in by_both}), since)
            except IndexError:
                for job_id, name in by_both:
                    with contextlib.suppress(IndexError):
                        rows += self._rows([job_id], [name], since)
        found = (self._account(row) for row in rows if {(row.id, row.name), (ANY_ID, row.name)} & wanted)
        fitting = [row for row in found if row.submit_time is not None and row.submit_time >= math.floor(since)]
        return details.of_sacct(fitting, since, commands.find("sacct"), self._conf)

    def _keeps_accounting(self) -> bool:
        """Ask the controller, once, where it keeps accounting."""
        if self._storage is None:
            try:
                self._storage = pyslurm.slurmctld.Config.load().accounting_storage_type or _NO_STORAGE
            except pyslurm.RPCError as error:
                raise _unavailable(error) from error
        return self._storage != _NO_STORAGE

    def accounting_backlog(self) -> int:
        """Give how many messages slurmctld still holds for slurmdbd (sdiag's "DBD Agent queue size")."""
        try:
            return int(pyslurm.slurmctld.diag().dbd_agent_queue_size)
        except pyslurm.RPCError as error:
            raise _unavailable(error) from error

    def partitions(self) -> list[Partition]:
        """Give the partitions that this user can see."""
        try:
            found = pyslurm.Partitions.load().values()
        except pyslurm.RPCError as error:
            raise _unavailable(error) from error
        return [
            Partition(
                name=partition.name,
                state=partition.state,
                nodes=partition.total_nodes,
                cpus=partition.total_cpus,
                default=partition.is_default,
                max_time_minutes=partition.max_time if isinstance(partition.max_time, int) else None,
            )
            for partition in found
        ]

    def _site(self) -> tuple[list[Partition], list[Node]]:
        try:
            nodes = pyslurm.Nodes.load().values()
        except pyslurm.RPCError as error:
            raise _unavailable(error) from error
        return self.partitions(), [
            Node(tuple(node.partitions), node.effective_cpus or 0, node.real_memory or 0) for node in nodes
        ]

    def _load(self, job_id: int) -> Any:
        try:
            return pyslurm.Job.load(job_id)
        except pyslurm.RPCError as error:
            if error.errno in {libslurm.INVALID_JOB_ID, NO_RECORD}:
                return None
            raise _unavailable(error) from error

    def _observe(self, job: Any) -> Observation:
        state, flags = self._library.words_of(self._job_state.of(job))
        ended = state in FINAL
        exit_code, signal = _split(self._job_exit.of(job)) if ended else (None, None)
        started = state != "PENDING"
        return Observation(
            job_id=job.id,
            name=job.name or "",
            state=state,
            flags=flags,
            reason=_word(job.state_reason),
            partition=job.partition,
            nodes=job.num_nodes,
            node_list=job.allocated_nodes,
            alloc_cpus=job.cpus if started else None,
            exit_code=exit_code,
            signal=signal,
            submit_time=job.submit_time,
            # Until then these are the controller's guesses.
            start_time=job.start_time if started else None,
            start_estimate=None if started else job.start_time,
            end_time=job.end_time if ended else None,
            restarts=job.requeue_count,
        )

    def _rows(self, ids: list[int], names: list[str], since: float) -> list[Any]:
        """Ask accounting on the connection that is kept, and once more on a new one: slurmdbd closes idle ones."""
        for attempt in (1, 2):
            try:
                if self._database is None:
                    self._database = pyslurm.db.Connection.open()
                else:
                    # Within a transaction the database shows for ever what it held at the first question.
                    self._database.rollback()
                # By name as well: of jobs with the same id accounting gives the latest only. A new filter each time,
                # because loading changes it.
                wanted = pyslurm.db.JobFilter(ids=ids, names=names, start_time=math.floor(since))
                return list(pyslurm.db.Jobs.load(wanted, self._database).values())
            except pyslurm.RPCError as error:
                self._database = None
                if attempt == 2:  # noqa: PLR2004 - the second of two
                    raise Unavailable(f"accounting can't be asked: {error}") from error
        raise AssertionError

    def _account(self, row: Any) -> AccountingRow:
        exit_code, signal = _split(self._row_exit.of(row))
        accounting = Accounting(
            state=row.state,
            exit_code=exit_code or 0,
            signal=signal or 0,
            elapsed=float(row.elapsed_time or 0),
            cpu_seconds=float(row.stats.total_cpu_time),
            alloc_cpus=row.cpus or 0,
            max_rss=row.stats.resident_memory or None,
            alloc_nodes=row.num_nodes or 0,
            alloc_tres=_tres(row.allocated_tres),
        )
        return AccountingRow(
            job_id=row.id,
            name=row.name,
            final=row.state in FINAL and row.end_time is not None,
            accounting=details.of_objects(row, accounting),
            node_list=_word(row.nodelist),
            submit_time=row.submit_time,
            start_time=row.start_time,
            end_time=row.end_time,
        )


@contextlib.contextmanager
def _spoken() -> Iterator[list[str]]:
    """Collect what libslurm prints to standard error, where it says more than in its error number."""
    said: list[str] = []
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as paper:
        os.dup2(paper.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            paper.seek(0)
            text = paper.read()
            os.write(2, text)
            # Each line begins with the program's name and mostly "error:".
            said += [re.sub(r"^\S+: (error: )?", "", line) for line in text.decode(errors="replace").splitlines()]


def _split(status: int) -> tuple[int | None, int | None]:
    """Give exit code and signal of a wait status."""
    if status == NO_VAL:
        return None, None
    if os.WIFSIGNALED(status):
        return 0, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), 0


def _word(text: str | None) -> str | None:
    return None if text in {None, "", "None", "None assigned"} else text


def _tres(resources: Any) -> str:
    """Write trackable resources as sacct does: ``cpu=4,mem=2000M,node=1,billing=4,gres/gpu=1``."""
    if resources is None:
        return ""
    counts = {"cpu": resources.cpu, "mem": resources.mem, "node": resources.node, "billing": resources.billing}
    counts |= {f"gres/{name}": resource for name, resource in resources.gres.items()}
    return ",".join(
        f"{name}={resource.count}{'M' if name == 'mem' else ''}" for name, resource in counts.items() if resource
    )


def _no_arrays() -> Refused:
    return Refused(
        "job arrays aren't submitted through pyslurm in this version", hint="set the scheduler to 'commands'"
    )


def _unavailable(error: Any) -> SchedulerError:
    return Unavailable(str(error))
