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
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from slurmbus_agent.scheduler import command, commands, details, libslurm, requeueing, sbatch
from slurmbus_agent.scheduler.array import expanded, expression, split_name, task_name
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


MOST_OWN_IDS = 10_000
"""Tasks of arrays whose own ids are remembered; Slurm's MaxJobCount is as large by default."""
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
        # Not into os.environ, which pyslurm hands on to jobs: lists of an array's tasks aren't cut short.
        os.putenv("SLURM_BITSTR_LEN", "0")
        self._user = os.getuid()
        self._library = libslurm.Library()
        self._scratch = libslurm.scratch_job(pyslurm.Job)
        libslurm.check_layout(self._library, self._scratch)
        self._job_state = libslurm.Field(self._library, self._scratch, "state", 3, "COMPLETED")
        # Of index 0 pyslurm says None, and so it does of a record that is about no task in particular.
        self._job_task = libslurm.Field(self._library, self._scratch, "array_task_id", 4711, 4711)
        self._row_task = libslurm.Field(self._library, pyslurm.db.Job(), "array_task_id", 4711, 4711)
        self._job_exit = libslurm.Field(self._library, self._scratch, "exit_code", 37 << 8, 37)
        self._row_exit = libslurm.Field(self._library, pyslurm.db.Job(), "exit_code", 37 << 8, 37)
        self.version = "{}.{:02}.{}".format(*pyslurm.slurm_api_version())
        self._own_ids: dict[tuple[int, str], int] = {}
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
                    seen += self._observe_all(job)
        except libslurm.LoadFailed as error:
            raise _unavailable(pyslurm.RPCError(error.errno)) from error
        return seen

    def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job, or a task of an array; None is Slurm's "invalid job id"."""
        if task is not None:
            return next((seen for seen in self._tasks(job_id) if split_name(seen.name)[1] == (task,)), None)
        job = self._load(job_id)
        return None if job is None else self._observe(job)

    def _tasks(self, array_id: int) -> list[Observation]:
        """Give the tasks of an array; libslurm's call for one job isn't the same in all versions."""
        return [seen for seen in self.jobs() if seen.job_id == array_id]

    def cancel(self, job_id: int, name: str) -> bool:
        """Cancel a job by its id after a look at its name; True also when it has already ended.

        To hit a foreign job, the id would have to be purged and handed out again between the look and the cancel,
        within a millisecond. libslurm has a call that cancels by id and name, but pyslurm doesn't offer it.
        """
        array, indexes = split_name(name)
        if indexes is not None:
            return self._cancel_tasks(job_id, array, indexes)
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

    def _cancel_tasks(self, array_id: int, array: str, indexes: tuple[int, ...]) -> bool:
        """Cancel those of an array's tasks that haven't ended, in one call, after a look at their names."""
        wanted = {task_name(array, index): index for index in indexes}
        found = [seen for seen in self._tasks(array_id) if seen.name in wanted]
        alive = [wanted[seen.name] for seen in found if seen.state not in FINAL or seen.flags]
        if not alive:
            return bool(found)
        errno = self._library.kill_tasks(array_id, expression(alive))
        if errno in {0, libslurm.ALREADY_DONE}:
            return True
        error = pyslurm.RPCError(errno)
        if errno in NOT_CONNECTED:
            raise _unavailable(error)
        if _is_an_answer(errno):
            raise Refused(str(error))
        raise OutcomeUnknown(f"the cancel failed on its way: {error}")

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

    def requeue(self, job_id: int, name: str) -> bool:
        """Send a running job back to the queue after a look at its name; see :meth:`cancel`."""
        task = requeueing.task_of(name)
        if not requeueing.is_meant(self.job(job_id, task), name):
            return False
        if task is not None:
            return self._requeue_task(requeueing.word(job_id, task))
        try:
            pyslurm.Job(job_id).requeue()
        except pyslurm.RPCError as error:
            if error.errno == libslurm.INVALID_JOB_ID:
                return False
            if error.errno in NOT_CONNECTED:
                raise _unavailable(error) from error
            if _is_an_answer(error.errno):
                raise Refused(str(error)) from error
            raise OutcomeUnknown(f"the requeue failed on its way: {error}") from error
        return True

    def _requeue_task(self, which: str) -> bool:
        """Have scontrol do it: pyslurm's call takes the id of a whole array only."""
        scontrol = commands.find("scontrol")
        if scontrol is None:
            raise Refused(
                "this agent can't requeue a task of an array: pyslurm can't, and scontrol isn't here",
                hint="put scontrol's folder on the agent's PATH",
            )
        env = command.environment(self._conf.get("SLURM_CONF"))
        return requeueing.done(command.run([scontrol, "requeue", which], env=env, patience=commands.CONTROL))

    def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give the latest start of each job that fits in id and name and was submitted after ``since``.

        pyslurm fails for a whole query when a step spans components of a heterogeneous job; then each job is asked for
        by itself and those that can't be read are left out.
        """
        if not self._keeps_accounting():
            raise NoAccounting("this site keeps no accounting (AccountingStorageType in slurm.conf)")
        wanted = set(jobs)
        by_name = sorted({split_name(name)[0] for job_id, name in wanted if job_id == ANY_ID})
        by_both = sorted({self._asked_as(job_id, name) for job_id, name in wanted if job_id != ANY_ID})
        rows = self._rows([], by_name, since) if by_name else []
        if by_both:
            try:
                rows += self._rows([job_id for job_id, _ in by_both], sorted({name for _, name in by_both}), since)
            except IndexError:
                for job_id, name in by_both:
                    with contextlib.suppress(IndexError):
                        rows += self._rows([job_id], [name], since)
        fitting = [
            one
            for row in rows
            for one in self._account(row)
            if {(one.job_id, one.name), (ANY_ID, one.name)} & wanted
            and one.submit_time is not None
            and one.submit_time >= math.floor(since)
        ]
        return details.of_sacct(fitting, since, commands.find("sacct"), self._conf)

    def _asked_as(self, job_id: int, name: str) -> tuple[int, str]:
        """Give the id and the name by which accounting is asked: a task's own id spares it all the siblings."""
        return self._own_ids.get((job_id, name), job_id), split_name(name)[0]

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
        return self._partitions(self._nodes())

    def _site(self) -> tuple[list[Partition], list[Node]]:
        nodes = self._nodes()
        return self._partitions(nodes), [
            Node(tuple(node.partitions), node.effective_cpus or 0, node.real_memory or 0) for node in nodes
        ]

    def _nodes(self) -> list[Any]:
        try:
            return list(pyslurm.Nodes.load().values())
        except pyslurm.RPCError as error:
            raise _unavailable(error) from error

    def _partitions(self, nodes: list[Any]) -> list[Partition]:
        try:
            found = pyslurm.Partitions.load().values()
        except pyslurm.RPCError as error:
            raise _unavailable(error) from error
        states: dict[str, Counter[str]] = defaultdict(Counter)
        for node in nodes:
            for name in node.partitions:
                states[name][_node_state(node.state)] += 1
        return [
            Partition(
                name=partition.name,
                state=partition.state,
                nodes=partition.total_nodes,
                cpus=partition.total_cpus,
                default=partition.is_default,
                max_time_minutes=partition.max_time if isinstance(partition.max_time, int) else None,
                node_states=dict(states[partition.name]),
            )
            for partition in found
        ]

    def _load(self, job_id: int) -> Any:
        try:
            return pyslurm.Job.load(job_id)
        except pyslurm.RPCError as error:
            if error.errno in {libslurm.INVALID_JOB_ID, NO_RECORD}:
                return None
            raise _unavailable(error) from error

    def _observe_all(self, job: Any) -> list[Observation]:
        """Give what a record says: of one job, of a task, or of the tasks that share it while they wait.

        Slurm forgets waiting tasks that are cancelled; when none is left, the record is shown under the array's name.
        """
        seen = self._observe(job)
        if job.array_id is None:
            return [seen]
        indexes = _indexes(job.array_tasks_waiting, self._job_task.of(job))
        if not indexes:
            return [msgspec.structs.replace(seen, job_id=job.array_id)]
        own = None if job.array_tasks_waiting else job.id
        tasks = [
            msgspec.structs.replace(seen, job_id=job.array_id, name=task_name(seen.name, index), task_job_id=own)
            for index in indexes
        ]
        if own is not None:
            self._remember_own_id(tasks[0], own)
        return tasks

    def _remember_own_id(self, task: Observation, own: int) -> None:
        self._own_ids[task.job_id, task.name] = own
        if len(self._own_ids) > MOST_OWN_IDS:
            del self._own_ids[next(iter(self._own_ids))]

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

    def _account(self, row: Any) -> list[AccountingRow]:
        """Give what a row says: of one job, of a task, or of the tasks that never came to have rows of their own."""
        account = self._account_one(row)
        if row.array_id is None:
            return [account]
        indexes = _indexes(row.array_tasks_waiting, self._row_task.of(row))
        return [
            msgspec.structs.replace(account, job_id=row.array_id, name=task_name(account.name, index))
            for index in indexes
        ]

    def _account_one(self, row: Any) -> AccountingRow:
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


def _indexes(waiting: str | None, index: int) -> tuple[int, ...]:
    """Give the tasks that a record is about."""
    if waiting:
        return expanded(waiting)
    return () if index == libslurm.NO_VAL else (index,)


def _split(status: int) -> tuple[int | None, int | None]:
    """Give exit code and signal of a wait status."""
    if status == libslurm.NO_VAL:
        return None, None
    if os.WIFSIGNALED(status):
        return 0, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), 0


def _word(text: str | None) -> str | None:
    return None if text in {None, "", "None", "None assigned"} else text


def _node_state(shown: str) -> str:
    """Give sinfo's word for what ``scontrol show node`` shows: ``drained`` for ``IDLE+DRAIN``, as sinfo orders them."""
    base, *flags = shown.lower().split("+")
    busy = base in {"allocated", "mixed"} or "completing" in flags
    if "maintenance" in flags and base != "down" and "drain" not in flags:
        return "maint"
    if "drain" in flags:
        return "draining" if busy else "drained"
    if "fail" in flags:
        return "failing" if busy else "fail"
    if base in {"idle", "allocated"} and "completing" in flags:
        return "completing"
    if base == "idle":
        return next((flag for flag in ("reserved", "planned") if flag in flags), base)
    return base


def _tres(resources: Any) -> str:
    """Write trackable resources as sacct does: ``cpu=4,mem=2000M,node=1,billing=4,gres/gpu=1``."""
    if resources is None:
        return ""
    counts = {"cpu": resources.cpu, "mem": resources.mem, "node": resources.node, "billing": resources.billing}
    counts |= {f"gres/{name}": resource for name, resource in resources.gres.items()}
    return ",".join(
        f"{name}={resource.count}{'M' if name == 'mem' else ''}" for name, resource in counts.items() if resource
    )


def _unavailable(error: Any) -> SchedulerError:
    return Unavailable(str(error))
