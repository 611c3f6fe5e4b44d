"""The Scheduler protocol, its value types and its errors.

A call ends in one of four ways, and the difference decides whether a payload can run twice:

* it returns: Slurm did it or answered;
* :class:`Refused`: Slurm said no, in its own words; nothing happened and nothing will;
* :class:`Unavailable`: Slurm wasn't asked (a ping failed, the budget is spent); nothing happened;
* :class:`OutcomeUnknown`: the call was sent and no answer came; it may have been, or may still be, carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import msgspec

from slurmbus_protocol import errors
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Accounting, JobOptions, Partition, SchedulerHealth


class SchedulerError(SlurmbusError):
    """The scheduler couldn't do what it was asked for."""


class Refused(SchedulerError):
    """Slurm refused the call."""

    code: ClassVar[str] = "refused"


class Unavailable(SchedulerError):
    """Slurm doesn't answer; the call wasn't sent."""

    code: ClassVar[str] = "scheduler-unavailable"
    retryable: ClassVar[bool] = True


class BudgetSpent(Unavailable):
    """So many calls were made lately that this one would have to wait for too long; it wasn't sent."""

    code: ClassVar[str] = errors.BudgetSpent.code


class OutcomeUnknown(SchedulerError):
    """Slurm was asked and didn't answer in time; the call may still be carried out."""

    code: ClassVar[str] = "outcome-unknown"
    retryable: ClassVar[bool] = True


class NoAccounting(SchedulerError):
    """The site keeps no accounting: there is nobody to ask about jobs that the controller has forgotten."""

    code: ClassVar[str] = "no-accounting"


CONTROLS = frozenset({"submit", "cancel", "requeue"})
"""The calls that change something."""
ANY_ID = 0
"""In questions to accounting: whatever id the job of this name has. Slurm's ids begin at 1."""


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is submitted: a batch script with its environment and resources; or a job array of them.

    The tasks of an array have one name, script, environment and set of resources; the script tells them apart by
    SLURM_ARRAY_TASK_ID. Everywhere else a task is a job of its own: its ``job_id`` is the array's and its ``name`` the
    array's with the index in brackets, see :mod:`slurmbus_agent.scheduler.array`.
    """

    name: str
    """Unique for a job key; Slurm's accounting keeps it everywhere, so it is what jobs are found by. Of an array
    without brackets."""
    script: str
    work_dir: str
    """An existing folder in which the script starts."""
    output: str
    """Where the script's own stdout and stderr go (the payload's go elsewhere); in an array, each ARRAY_TASK in it
    stands for the task's index."""
    environment: dict[str, str]
    """All of it: nothing is inherited from the agent."""
    options: JobOptions
    comment: str = ""
    array: tuple[int, ...] = ()
    """The indexes of an array's tasks, ascending; none for a single job."""
    array_throttle: int | None = None
    """How many tasks of the array may run at the same time."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller says about one job at one moment. Source of the words: squeue(1), scontrol(1).

    The tasks of an array come one by one, also those that Slurm itself still keeps in one record (``12_[3-9%2]``). Of
    tasks that are cancelled while they wait Slurm keeps nothing; their array is still there, unlike a forgotten one.
    """

    job_id: int
    """Of an array's task the array's (%A, SLURM_ARRAY_JOB_ID)."""
    name: str
    """Of an array's task with its index in brackets."""
    state: str
    """Slurm's base state: PENDING, RUNNING, COMPLETED, … (never COMPLETING)."""
    flags: tuple[str, ...] = ()
    """State flags such as COMPLETING, REQUEUED, REQUEUE_HOLD, SPECIAL_EXIT, STOPPED."""
    reason: str | None = None
    partition: str | None = None
    nodes: int | None = None
    node_list: str | None = None
    alloc_cpus: int | None = None
    exit_code: int | None = None
    """Exit code of the batch script, 0 to 255; None while it hasn't ended."""
    signal: int | None = None
    submit_time: float | None = None
    start_time: float | None = None
    start_estimate: float | None = None
    """When the controller expects a pending job to start; a guess."""
    end_time: float | None = None
    restarts: int = 0
    task_job_id: int | None = None
    """The id that Slurm gave to this task of an array alone (%i of squeue's %A_%a, SLURM_JOB_ID), once it has one."""


class AccountingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job in Slurm's accounting (its latest start); tasks of an array one by one, as in an Observation."""

    job_id: int
    name: str
    final: bool
    """False while accounting still shows it as running, pending or requeued."""
    accounting: Accounting
    node_list: str | None = None
    submit_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler's own process costs its host."""

    pid: int = 0
    """0 when there is none."""
    rss: int = 0
    """Resident bytes."""
    cpu_seconds: float = 0.0
    """Of the process that runs; those that have ended count as the agent's children."""
    records: dict[str, int] = {}
    """Records that Slurm gave in answer, by kind of call."""


class Scheduler(Protocol):
    """What the agent needs of a scheduler. Every method may raise Unavailable or OutcomeUnknown."""

    kind: str
    lease_deadline: Callable[[], float | None] | None
    """Gives the CLOCK_BOOTTIME until which the agent may act; asked right before each call that changes something."""

    async def ping(self) -> float:
        """Ask the controller whether it is there; give the seconds that took."""
        ...

    async def turn(self) -> None:
        """Come back when the budget allows a question, so that whoever waits can put several into one."""
        ...

    async def submit(self, job: BatchJob) -> int:
        """Submit a job or an array, in one call, and give its id; Refused when Slurm says no."""
        ...

    async def jobs(self) -> list[Observation]:
        """Give all jobs of this user that the controller still knows, in one call."""
        ...

    async def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job, or one task of the array with this id; None is the controller's answer that it knows none."""
        ...

    async def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give what accounting knows of these (id, name) pairs submitted after ``since``; unknown ones are left out.

        A row is only given when id *and* name fit: ids are recycled. With ``ANY_ID`` the name alone has to fit. The
        tasks of one array are asked for together.

        Raises:
            NoAccounting: the site keeps none.
        """
        ...

    async def accounting_backlog(self) -> int:
        """Give how many messages the controller still holds for accounting; until it is 0, accounting isn't settled."""
        ...

    async def cancel(self, job_id: int, name: str) -> bool:
        """Cancel the job if it has this name; False when the controller doesn't know such a job any more.

        The name of an array's tasks may have several indexes in its brackets; those tasks are cancelled in one call,
        and never any other one.
        """
        ...

    async def requeue(self, job_id: int, name: str) -> bool:
        """Send the running job back to the queue if it has this name; False when the controller knows no such job.

        Of an array it is one task, and never any other one. Refused when it doesn't run. It isn't safe to repeat: a
        second one would end the next start.
        """
        ...

    async def partitions(self) -> list[Partition]:
        """Give the partitions that this user can see."""
        ...

    @property
    def health(self) -> SchedulerHealth:
        """Whether it answers, since when, and how often it was called; never blocks."""
        ...

    @property
    def footprint(self) -> Footprint:
        """What it costs this host besides the agent's own process; never blocks."""
        ...

    async def aclose(self) -> None:
        """Let go of processes and connections; jobs go on."""
        ...
