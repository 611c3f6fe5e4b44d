"""What happened in a run, as each witness tells it: nothing in here is judged."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.workload import PlannedJob
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@dataclass
class Execution:
    """One run of a payload, from its own notes in the shared home."""

    job_id: int
    node: str
    pid: int
    begin: float
    last_seen: float
    end: float | None = None
    exit_code: int | None = None

    @property
    def over(self) -> float:
        """The latest moment at which it is known to have run."""
        return self.end if self.end is not None else self.last_seen


@dataclass(frozen=True)
class SlurmRow:
    """One start of one Slurm job, from accounting (`sacct --duplicates`)."""

    job_id: int
    name: str
    state: str
    exit_code: int
    signal: int
    node: str
    submit: float | None
    start: float | None
    end: float | None


@dataclass(frozen=True)
class StoredRecord:
    """One write of a job's record, from the bus."""

    sequence: int
    time: float
    record: Record


@dataclass(frozen=True)
class StoredChunk:
    """One write of bytes, from the bus."""

    start: int
    stream: Stream
    sequence: int
    offset: int
    size: int
    skipped: int


@dataclass(frozen=True)
class Piece:
    """Bytes that a reader was given."""

    start: int
    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True)
class MissingPiece:
    """Bytes of which a reader was told that nobody has them."""

    start: int
    stream: Stream
    offset: int
    length: int
    reason: str


@dataclass
class Spooled:
    """What the job's folder on the shared file system holds."""

    claims: dict[int, str] = field(default_factory=dict)
    """Start -> the claim's text."""
    sizes: dict[tuple[int, Stream], int] = field(default_factory=dict)
    contents: dict[tuple[int, Stream], bytes] = field(default_factory=dict)
    """Of starts whose payload didn't note its end: nothing but the file says what such a payload wrote."""


@dataclass
class JobHistory:
    """Everything that is known about one request."""

    plan: PlannedJob
    key: str = ""
    submit_sent: float | None = None
    accepted: float | None = None
    """When the client had reported the request as accepted by the bus."""
    cancel_sent: float | None = None
    cancel_accepted: float | None = None
    requeues: list[float] = field(default_factory=list)
    """When `scontrol requeue` was obeyed."""
    pieces: list[Piece] = field(default_factory=list)
    gaps: list[MissingPiece] = field(default_factory=list)
    seen: list[JobState] = field(default_factory=list)
    """The states that a reader was told, in order."""
    finished: Record | None = None
    """The record with which following it ended."""
    problem: str = ""
    """Why following it, or submitting it, ended otherwise."""
    records: list[StoredRecord] = field(default_factory=list)
    chunks: list[StoredChunk] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    rows: list[SlurmRow] = field(default_factory=list)
    spooled: Spooled = field(default_factory=Spooled)

    @property
    def last(self) -> Record | None:
        """The record as the bus holds it at the end."""
        return self.records[-1].record if self.records else None


@dataclass
class FaultHistory:
    """One disturbance, with what was done when."""

    kind: str
    target: str
    begin: float
    end: float
    """When its cause was taken away: the restarted part serves, the network is whole, the clock is right."""
    note: str = ""


@dataclass
class LeaseSighting:
    """Who held the lease from when on, seen on the bus."""

    time: float
    agent_id: str
    host: str
    epoch: int
    age: float


@dataclass
class StepHistory:
    """One Dagster step, from its run's event log and captured output."""

    id: str
    kills: int
    succeeded: bool
    stdout: bytes
    messages: list[str]
    materializations: list[dict[str, str]]
    keys: list[str]
    """The jobs that it submitted or found, in this order."""
    problem: str = ""


@dataclass
class RunHistory:
    """A whole run."""

    seed: int
    begin: float
    end: float = 0.0
    jobs: list[JobHistory] = field(default_factory=list)
    others: dict[str, JobState] = field(default_factory=dict)
    """The last states of the jobs that weren't submitted by the harness but by Dagster steps, by key."""
    faults: list[FaultHistory] = field(default_factory=list)
    leases: list[LeaseSighting] = field(default_factory=list)
    steps: list[StepHistory] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What the harness itself couldn't do."""
    deaths: list[str] = field(default_factory=list)
    """Agents that ended by themselves, with their last words."""
    unreached: list[tuple[str, str]] = field(default_factory=list)
    """Labelled points that nothing ran through, and in which case."""
