"""Jobs as processes of this machine, for laptops and quick tests.

A job is looked after by a process of its own (:mod:`slurmbus_agent.scheduler.local_job`), so it goes on when the agent
ends or is killed. All jobs start at once, however many there are; what their options mean here stands in
:mod:`slurmbus_agent.scheduler.local_options`. The folder must be on this machine: its pipes tell whether a job is
looked after.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from slurmbus_agent.scheduler import local_job, local_options
from slurmbus_agent.scheduler.array import ARRAY_TASK, split_name, task_name
from slurmbus_agent.scheduler.base import ANY_ID, AccountingRow, BatchJob, Footprint, Observation, Refused, Unavailable
from slurmbus_protocol.messages import Accounting, Partition, SchedulerHealth

P = ParamSpec("P")
R = TypeVar("R")

MIN_JOB_AGE = 300.0
"""Seconds for which a finished job can be observed; afterwards only accounting knows it. Slurm's own default."""
KEEP = 30 * 86400.0
"""Seconds for which accounting knows a finished job."""
KILL_WAIT = 5.0
"""Seconds between SIGTERM and SIGKILL. Slurm's default is 30; at a laptop somebody waits for it."""

_STATE_FILE = re.compile(r"(\d+)\.(?:json|waiting)")
_ARRAY_FILE = re.compile(r"(\d+)\.array")


class _State(msgspec.Struct, kw_only=True):
    """What stands in a job's state file."""

    id: int
    name: str
    state: str
    submit_time: float
    node: str
    alloc_cpus: int
    flags: tuple[str, ...] = ()
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    start_time: float | None = None
    end_time: float | None = None
    cpu_seconds: float = 0.0
    max_rss: int | None = None
    array_id: int | None = None
    index: int | None = None

    @property
    def known_as(self) -> tuple[int, str]:
        """The id and the name by which others know it."""
        if self.array_id is None or self.index is None:
            return self.id, self.name
        return self.array_id, task_name(self.name, self.index)

    def observation(self) -> Observation:
        job_id, name = self.known_as
        return Observation(
            job_id=job_id,
            name=name,
            state=self.state,
            flags=self.flags,
            reason=self.reason,
            partition="local",
            nodes=1,
            node_list=self.node if self.start_time else None,
            alloc_cpus=self.alloc_cpus,
            exit_code=self.exit_code,
            signal=self.signal,
            submit_time=self.submit_time,
            start_time=self.start_time,
            end_time=self.end_time,
            task_job_id=self.id if self.array_id is not None and self.start_time else None,
        )

    def row(self) -> AccountingRow:
        elapsed = (self.end_time or time.time()) - self.start_time if self.start_time else 0.0
        job_id, name = self.known_as
        return AccountingRow(
            job_id=job_id,
            name=name,
            final=self.end_time is not None,
            accounting=Accounting(
                state=self.state,
                exit_code=self.exit_code or 0,
                signal=self.signal or 0,
                elapsed=max(0.0, elapsed),
                cpu_seconds=self.cpu_seconds,
                alloc_cpus=self.alloc_cpus,
                max_rss=self.max_rss,
                alloc_nodes=1,
            ),
            node_list=self.node if self.start_time else None,
            submit_time=self.submit_time,
            start_time=self.start_time,
            end_time=self.end_time,
        )


class _Array(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in an array's file."""

    tasks: tuple[tuple[int, int], ...]
    """Index and id of each."""
    slots: int
    """How many run at the same time."""
    spec: dict[str, Any]
    """What all of them share."""
    placeholder: str = ARRAY_TASK


_decoder = msgspec.json.Decoder(_State)
_array_decoder = msgspec.json.Decoder(_Array)


class LocalScheduler:
    """Runs jobs as local processes and keeps their states in a folder."""

    kind = "local"
    lease_deadline: Callable[[], float | None] | None = None

    def __init__(
        self, folder: Path, *, kill_wait: float = KILL_WAIT, min_job_age: float = MIN_JOB_AGE, minute: float = 60.0
    ) -> None:
        """Use ``folder``, which is made at the first call; ``minute`` is how long a minute of a time limit lasts."""
        self._folder = folder.absolute()
        self._kill_wait = kill_wait
        self._min_job_age = min_job_age
        self._minute = minute
        self._node = socket.gethostname()
        self._calls: Counter[str] = Counter()
        self._since = time.time()
        self._error: str | None = None
        self._finished: dict[int, _State] = {}
        self._supervisors: set[int] = set()
        self._reaping = threading.Lock()

    async def ping(self) -> float:
        """Give the seconds that a look at the folder took."""
        begun = time.perf_counter()
        await self._call("ping", os.stat, self._folder)
        return time.perf_counter() - begun

    async def turn(self) -> None:
        """Come back at once: files may be read at any time."""

    async def submit(self, job: BatchJob) -> int:
        """Start the job and give its id."""
        return await self._call("submit", self._submit, job)

    async def jobs(self) -> list[Observation]:
        """Give all jobs but those that finished more than ``min_job_age`` ago."""
        return await self._call("jobs", self._jobs)

    async def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job or task, or None when there is none or it finished more than ``min_job_age`` ago."""
        return await self._call("job", self._job, job_id, task)

    async def accounting_backlog(self) -> int:
        """Nothing: a job's own file is its accounting."""
        return 0

    async def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give what is known of these jobs."""
        return await self._call("accounting", self._accounting, jobs, since)

    async def cancel(self, job_id: int, name: str) -> bool:
        """End a job; True also when it had already ended."""
        return await self._call("cancel", self._cancel, job_id, name)

    async def requeue(self, job_id: int, name: str) -> bool:  # noqa: ARG002  # the protocol's
        """Refuse: there is no queue to which a process could go back."""
        raise Refused("a local process can't be requeued", hint="cancel it, and submit it again")

    async def partitions(self) -> list[Partition]:
        """Give one partition: this machine."""
        self._calls["partitions"] += 1
        return [Partition(name="local", state="UP", nodes=1, cpus=os.cpu_count() or 1, default=True)]

    @property
    def health(self) -> SchedulerHealth:
        """Whether the folder can be used."""
        return SchedulerHealth(
            kind=self.kind,
            responding=self._error is None,
            since=self._since,
            error=self._error,
            calls=dict(self._calls),
        )

    @property
    def footprint(self) -> Footprint:
        """Nothing: jobs aren't the agent's."""
        return Footprint()

    async def aclose(self) -> None:
        """Nothing is held: jobs go on."""

    async def _call(self, kind: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        self._calls[kind] += 1

        def run() -> R:
            self._prepare()
            return function(*args, **kwargs)

        try:
            result = await asyncio.to_thread(run)
        except OSError as error:
            self._became(f"the folder of local jobs can't be used: {error}")
            raise Unavailable(self._error, hint=f"look at {self._folder}") from error
        self._became(None)
        return result

    def _became(self, error: str | None) -> None:
        if (error is None) != (self._error is None):
            self._since = time.time()
        self._error = error

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._reaping:
            self._supervisors = {pid for pid in self._supervisors if not _reaped(pid)}

    def _submit(self, job: BatchJob) -> int:
        if not job.script.startswith("#!/"):
            raise Refused("this is no batch script: its first line doesn't start with '#!' and a path")
        if not Path(job.work_dir).is_dir():
            raise Refused(f"the working directory {job.work_dir} isn't there")
        local_options.check(job.options)
        if job.array:
            return self._submit_array(job)
        job_id = self._new_id()
        try:
            return self._start(job_id, job)
        except (OSError, Unavailable):
            self._file(job_id, "draft").unlink(missing_ok=True)
            local_job.clean_up(str(self._folder), job_id)
            raise

    def _spec(self, job_id: int, job: BatchJob) -> dict[str, Any]:
        limit = job.options.time_limit_minutes
        early = local_options.early_signal(job.options)
        return {
            "environment": job.environment | self._environment(job_id, job),
            "work_dir": job.work_dir,
            "output": job.output,
            "time_limit": None if limit is None else limit * self._minute,
            "early_signal": None if early is None else (early.number, early.seconds * self._minute / 60),
            "kill_wait": self._kill_wait,
        }

    def _state(self, job_id: int, job: BatchJob) -> _State:
        return _State(
            id=job_id,
            name=job.name,
            state="PENDING",
            submit_time=time.time(),
            node=self._node,
            alloc_cpus=_tasks(job) * (job.options.cpus_per_task or 1),
        )

    def _submit_array(self, job: BatchJob) -> int:
        """Write down an array, and start who works it off; a task is there as soon as it is written down."""
        array_id = self._new_id(1 + len(job.array))
        tasks = tuple(zip(job.array, range(array_id + 1, array_id + 1 + len(job.array)), strict=True))
        spec = self._spec(array_id, job)
        spec["environment"] |= {
            "SLURM_ARRAY_JOB_ID": str(array_id),
            "SLURM_ARRAY_TASK_COUNT": str(len(job.array)),
            "SLURM_ARRAY_TASK_MAX": str(job.array[-1]),
            "SLURM_ARRAY_TASK_MIN": str(job.array[0]),
        }
        slots = min(len(tasks), job.array_throttle or os.cpu_count() or 1)
        array = _Array(tasks=tasks, slots=slots, spec=spec)
        self._check_lease()
        local_job.write(str(self._file(array_id, "array")), msgspec.to_builtins(array))
        self._file(array_id, "script").write_text(job.script, encoding="utf-8", errors="surrogateescape")
        state = self._state(array_id, job)
        for index, job_id in tasks:
            task = msgspec.structs.replace(state, id=job_id, array_id=array_id, index=index)
            local_job.write(str(self._file(job_id, "waiting")), msgspec.to_builtins(task))
        self._work_off(array_id, array)
        return array_id

    def _work_off(self, array_id: int, array: _Array) -> None:
        """Start who works in the slots of an array in which nobody does."""
        for slot in range(array.slots):
            lock = local_job.lock_slot(str(self._folder), array_id, slot)
            if lock is not None:
                os.close(lock)
                with open(os.devnull, "rb") as nothing:
                    pid = self._spawn(array_id, nothing.fileno(), str(slot))
                with self._reaping:
                    self._supervisors.add(pid)

    def _start(self, job_id: int, job: BatchJob) -> int:
        state = self._state(job_id, job)
        local_job.write(str(self._file(job_id, "spec")), self._spec(job_id, job))
        local_job.write(str(self._file(job_id, "draft")), msgspec.to_builtins(state))
        self._file(job_id, "script").write_text(job.script, encoding="utf-8", errors="surrogateescape")
        control = self._file(job_id, "control")
        os.mkfifo(control, 0o600)
        # Open for reading from before the job can be seen until its supervisor ends.
        pipe = os.open(control, os.O_RDWR | os.O_CLOEXEC)
        try:
            pid = self._spawn(job_id, pipe)
        finally:
            os.close(pipe)
        with self._reaping:
            self._supervisors.add(pid)
        with contextlib.suppress(FileNotFoundError):  # the supervisor was quicker
            self._file(job_id, "draft").rename(self._file(job_id, "json"))
        return job_id

    def _spawn(self, job_id: int, pipe: int, *slot: str) -> int:
        self._check_lease()
        log = str(self._folder / "supervisors.log")
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", local_job.__file__, str(self._folder), str(job_id), *slot],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, pipe, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )

    def _check_lease(self) -> None:
        if self.lease_deadline is None:
            return
        deadline = self.lease_deadline()
        if deadline is None or time.clock_gettime(time.CLOCK_BOOTTIME) >= deadline:
            raise Unavailable("the agent's lease is over; nothing was done")

    def _environment(self, job_id: int, job: BatchJob) -> dict[str, str]:
        tasks = _tasks(job)
        cpus = job.options.cpus_per_task or 1
        return {
            "SLURMBUS_SCHEDULER": self.kind,
            local_job.MARK: local_job.mark_of(str(self._folder), job_id),
            "SLURM_CLUSTER_NAME": "local",
            "SLURM_CPUS_ON_NODE": str(tasks * cpus),
            "SLURM_CPUS_PER_TASK": str(cpus),
            "SLURM_JOB_CPUS_PER_NODE": str(tasks * cpus),
            "SLURM_JOBID": str(job_id),
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_NAME": job.name,
            "SLURM_JOB_NODELIST": self._node,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_PARTITION": "local",
            "SLURM_JOB_UID": str(os.getuid()),
            "SLURM_LOCALID": "0",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NODELIST": self._node,
            "SLURM_NPROCS": str(tasks),
            "SLURM_NTASKS": str(tasks),
            "SLURM_PROCID": "0",
            "SLURM_SUBMIT_DIR": job.work_dir,
            "SLURM_SUBMIT_HOST": self._node,
            "SLURMD_NODENAME": self._node,
        }

    def _new_id(self, count: int = 1) -> int:
        """Give an id that no other process gets and that no job ever had here; and as many after it as are wanted."""
        counter = os.open(self._folder / "last-id", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(counter, fcntl.LOCK_EX)
            job_id = int(os.pread(counter, 32, 0) or b"0") + 1
            while any(self._file(job_id, kind).exists() for kind in ("json", "spec", "waiting", "array")):
                job_id += 1  # the counter was lost, with the power for example
            os.pwrite(counter, str(job_id + count - 1).encode(), 0)
        finally:
            os.close(counter)
        return job_id

    def _file(self, job_id: int, kind: str) -> Path:
        return Path(local_job.file_of(str(self._folder), job_id, kind))

    def _ids(self) -> list[int]:
        names = (entry.name for entry in self._folder.iterdir())
        return sorted({int(match[1]) for name in names if (match := _STATE_FILE.fullmatch(name))})

    def _array(self, array_id: int) -> _Array | None:
        try:
            return _array_decoder.decode(self._file(array_id, "array").read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _own_ids(self, job_id: int, indexes: tuple[int, ...] | None) -> list[int]:
        """Give the ids under which a job, or tasks of an array, are kept here."""
        if indexes is None:
            return [job_id]
        array = self._array(job_id)
        return [own for index, own in array.tasks if index in indexes] if array else []

    def _look_after_arrays(self, waiting: set[int], known: set[int]) -> None:
        """Go on with arrays whose workers were killed, and remove what is left of those that nobody remembers."""
        for array_id in waiting:
            array = self._array(array_id)
            if array is not None:
                with contextlib.suppress(Unavailable):  # without the lease; whoever has it goes on
                    self._work_off(array_id, array)
        for entry in list(self._folder.iterdir()):
            match = _ARRAY_FILE.fullmatch(entry.name)
            if match and int(match[1]) not in known and time.time() - entry.stat().st_mtime > KEEP:
                for left in self._folder.glob(f"{match[1]}.*"):
                    left.unlink(missing_ok=True)

    def _jobs(self) -> list[Observation]:
        now = time.time()
        observations = []
        waiting: set[int] = set()
        arrays: set[int] = set()
        for job_id in self._ids():
            state = self._read(job_id)
            if state is not None and state.array_id is not None:
                arrays.add(state.array_id)
                if state.state == "PENDING":
                    waiting.add(state.array_id)
            if state is None or (state.end_time is not None and now - state.end_time > KEEP):
                self._forget(job_id)
            elif self._observable(state, now):
                observations.append(state.observation())
        self._look_after_arrays(waiting, arrays)
        return observations

    def _job(self, job_id: int, task: int | None) -> Observation | None:
        own = self._own_ids(job_id, None if task is None else (task,))
        state = self._read(own[0]) if own else None
        return state.observation() if state is not None and self._observable(state, time.time()) else None

    def _observable(self, state: _State, now: float) -> bool:
        return state.end_time is None or now - state.end_time <= self._min_job_age

    def _forget(self, job_id: int) -> None:
        self._finished.pop(job_id, None)
        self._file(job_id, "json").unlink(missing_ok=True)

    def _accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        wanted = set(jobs)
        ids = {own for job_id, name in wanted for own in self._own_ids(job_id, split_name(name)[1])}
        if any(job_id == ANY_ID for job_id, _ in wanted):
            ids = set(self._ids())
        states = [state for state in map(self._read, sorted(ids)) if state is not None and state.submit_time >= since]
        return [state.row() for state in states if {state.known_as, (ANY_ID, state.known_as[1])} & wanted]

    def _cancel(self, job_id: int, name: str) -> bool:
        array, indexes = split_name(name)
        found = [self._cancel_one(own, array) for own in self._own_ids(job_id, indexes)]
        return any(found)

    def _cancel_one(self, job_id: int, name: str) -> bool:
        state = self._read(job_id)
        if state is None or state.name != name or not self._observable(state, time.time()):
            return False
        if state.array_id is not None and state.state == "PENDING" and self._cancel_waiting(state):
            return True
        pipe = None if state.end_time is not None else self._control(job_id)
        if pipe is not None:
            try:
                self._check_lease()
                with contextlib.suppress(BrokenPipeError):  # it has just ended
                    os.write(pipe, b"c")
            finally:
                os.close(pipe)
        return True

    def _cancel_waiting(self, state: _State) -> bool:
        """Cancel a task whose turn hasn't come; False when it has come meanwhile."""
        self._check_lease()
        pipe = local_job.take(str(self._folder), state.id)
        if pipe is None:
            return False
        try:
            ended = msgspec.structs.replace(state, state="CANCELLED", exit_code=0, signal=0, end_time=time.time())
            local_job.write(str(self._file(state.id, "json")), msgspec.to_builtins(ended), durable=True)
            local_job.clean_up(str(self._folder), state.id)
        finally:
            os.close(pipe)
        return True

    def _control(self, job_id: int) -> int | None:
        """Open the job's control pipe; None when nobody looks after the job."""
        try:
            return os.open(self._file(job_id, "control"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def _read(self, job_id: int) -> _State | None:
        """Read a job's state; one whose supervisor is gone has failed with its node."""
        if job_id in self._finished:
            return self._finished[job_id]
        waiting = self._load(job_id, "waiting")  # first: it becomes the other
        if waiting is not None:
            return waiting
        state = self._load(job_id)
        if state is not None and state.end_time is None:
            pipe = self._control(job_id)
            if pipe is None:
                # Again: it may have ended properly in between.
                state = self._load(job_id)
                if state is not None and state.end_time is None:
                    state = self._fail(state)
            else:
                os.close(pipe)
        if state is not None and state.end_time is not None:
            self._finished[job_id] = state
        return state

    def _load(self, job_id: int, kind: str = "json") -> _State | None:
        try:
            return _decoder.decode(self._file(job_id, kind).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            # A power cut may leave the state of an unfinished job empty: nobody knows that job any more.
            return None

    def _fail(self, state: _State) -> _State:
        local_job.kill_all(local_job.mark_of(str(self._folder), state.id))
        state.state = "NODE_FAIL"
        state.flags = ()
        state.reason = "the process that looked after the job was killed, or the machine restarted"
        state.end_time = time.time()
        local_job.write(str(self._file(state.id, "json")), msgspec.to_builtins(state), durable=True)
        local_job.clean_up(str(self._folder), state.id)
        return state


def _tasks(job: BatchJob) -> int:
    return job.options.ntasks or job.options.ntasks_per_node or 1


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
