"""Every message that crosses the bus.

Structs are frozen. A field that is added later gets a default; nothing is renamed, reused or removed. Times are
seconds since 1970 as floats, durations are seconds, sizes are bytes unless the name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from slurmbus_protocol.plans import AnyPlan
from slurmbus_protocol.plans import CommandPlan as CommandPlan  # noqa: PLC0414 - it has always been found here
from slurmbus_protocol.states import JobState

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Ulid = Annotated[str, msgspec.Meta(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
Token = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,64}$")]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
EnvironmentName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
JobName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
TaskIndex = Annotated[int, msgspec.Meta(ge=0, lt=100_000)]
TaskName = Annotated[str, msgspec.Meta(max_length=256)]
MiB = Positive


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that stands inside a message."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that travels by itself; each subclass names its type and version."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1


class FileRef(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A file that travels as a blob."""

    path: str
    """Where it goes, relative to the job's working directory; never leaves it."""
    sha256: Sha256
    size: NonNegative
    executable: bool = False


class JobOptions(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a job asks Slurm for. None leaves it to Slurm's defaults. Source of the meanings: sbatch(1)."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    time_limit_minutes: Positive | None = None
    nodes: Positive | None = None
    ntasks: Positive | None = None
    ntasks_per_node: Positive | None = None
    cpus_per_task: Positive | None = None
    mem_per_node_mib: MiB | None = None
    mem_per_cpu_mib: MiB | None = None
    gpus_per_node: str | None = None
    """``[type:]count``"""
    gres: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    requeue: bool = False
    comment: str | None = None
    """The user's own; it stands after what Slurmbus itself notes there."""
    nodes_max: Positive | None = None
    """``nodes`` is then the least that will do."""
    node_counts: str | None = None
    """Several numbers of nodes that would do: ``1,3,8`` or ``2-16:2``."""
    unlimited_time: bool = False
    all_memory: bool = False
    """All of each node's memory; excludes the fields that say how much."""
    mem_per_gpu_mib: MiB | None = None
    time_min_minutes: Positive | None = None
    begin: str | None = None
    deadline: str | None = None
    delay_boot_minutes: NonNegative | None = None
    dependency: str | None = None
    kill_on_invalid_dep: bool | None = None
    hold: bool = False
    nice: int | None = None
    priority: str | None = None
    signal: str | None = None
    requeue_expedite: bool = False
    no_kill: bool = False
    oom_kill_step: bool | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    wckey: str | None = None
    mcs_label: str | None = None
    ntasks_per_core: Positive | None = None
    ntasks_per_socket: Positive | None = None
    ntasks_per_gpu: Positive | None = None
    mincpus: Positive | None = None
    cpus_per_gpu: Positive | None = None
    overcommit: bool = False
    tmp_mib: MiB | None = None
    mem_bind: str | None = None
    mem_update: str | None = None
    gpus: str | None = None
    gpus_per_task: str | None = None
    gpus_per_socket: str | None = None
    gpu_bind: str | None = None
    gpu_freq: str | None = None
    gres_flags: str | None = None
    tres_per_task: str | None = None
    tres_bind: str | None = None
    licenses: str | None = None
    resources: str | None = None
    bb: str | None = None
    prefer: str | None = None
    batch: str | None = None
    cluster_constraint: str | None = None
    node_extra: str | None = None
    exclusive_scope: str | None = None
    """With whom the nodes aren't shared: ``user``, ``mcs`` or ``topo``."""
    oversubscribe: bool = False
    contiguous: bool = False
    spread_job: bool = False
    use_min_nodes: bool = False
    switches: str | None = None
    segment: Positive | None = None
    spread_segments: bool = False
    consolidate_segments: bool = False
    core_spec: NonNegative | None = None
    thread_spec: NonNegative | None = None
    sockets_per_node: Positive | None = None
    cores_per_socket: Positive | None = None
    threads_per_core: Positive | None = None
    hint: str | None = None
    distribution: str | None = None
    cpu_freq: str | None = None
    power: str | None = None
    reboot: bool = False
    wait_all_nodes: bool | None = None
    network: str | None = None
    resv_ports: str | None = None
    stepmgr: bool = False
    propagate: str | None = None
    profile: str | None = None
    acctg_freq: str | None = None
    context: str | None = None
    container: str | None = None
    container_id: str | None = None
    container_type: str | None = None
    extra: dict[str, str] = {}
    """Options of sbatch that have no field here, by their long names; an empty value is a flag."""


class EnvironmentRef(Value, frozen=True, kw_only=True, omit_defaults=True, tag="packed"):
    """An environment that travels as blobs; the site installs it once, for all jobs that name it."""

    digest: Sha256
    """SHA-256 of its manifest (:mod:`slurmbus_protocol.environments`), which is a blob like the files that it names."""
    size: NonNegative
    """Bytes of the manifest."""
    title: str = ""
    """For people."""


class NamedEnvironment(Value, frozen=True, kw_only=True, omit_defaults=True, tag="named"):
    """An environment that is installed on the site already."""

    name: EnvironmentName
    """Under which it was pushed, or the beginning of its digest."""


class FolderEnvironment(Value, frozen=True, kw_only=True, omit_defaults=True, tag="folder"):
    """A virtual environment or a conda prefix that is there already."""

    path: str
    """An absolute folder on the compute nodes."""


class ModulesEnvironment(Value, frozen=True, kw_only=True, omit_defaults=True, tag="modules"):
    """Environment modules of the site, loaded before the payload."""

    load: tuple[str, ...]
    use: tuple[str, ...] = ()
    """Folders with further modules."""
    purge: bool = False
    """Unload first what the login shell has loaded."""


class ImageEnvironment(Value, frozen=True, kw_only=True, omit_defaults=True, tag="image"):
    """An Apptainer image in which the payload runs."""

    path: str
    """An absolute path on the compute nodes."""
    binds: tuple[str, ...] = ()
    """Further folders that are seen inside, in Apptainer's own words: ``/scratch`` or ``/data:/mnt:ro``."""
    options: tuple[str, ...] = ()
    """Further words for ``apptainer exec``: ``--nv``."""
    program: str = "apptainer"


Environment = EnvironmentRef | NamedEnvironment | FolderEnvironment | ModulesEnvironment | ImageEnvironment


class TaskSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What one task of a job array has of its own; everything else it shares with its siblings."""

    index: TaskIndex
    """The task's number in subjects, spool and Slurm; stays the same when the task is run again by itself."""
    name: TaskName = ""
    """For people: the partition key or the parameters."""
    args: tuple[str, ...] = ()
    """Go after the plan's arguments."""
    argv: tuple[str, ...] = ()
    """Stands in the place of the plan's command; ``args`` still follow."""
    env: dict[str, str] = {}
    """Over the job's."""
    files: tuple[FileRef, ...] = ()
    """Besides the job's; one with the same path stands in its place."""
    pipes_context: bytes | None = None
    """A JSON object whose members go over those of the job's Pipes context: extras, partition_key, …"""


class Sealed(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Secret environment values that only the site's agent can read: see :mod:`slurmbus_protocol.sealing`."""

    to: Sha256
    """The public key that they were sealed to, 64 hex digits."""
    data: Annotated[bytes, msgspec.Meta(max_length=256 * 1024)]
    names: tuple[str, ...] = ()
    """Of the variables, for people; the agent goes by what is sealed."""


class TraceContext(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The trace that a job belongs to, and the span in it that is its parent. Source: W3C Trace Context, level 1."""

    traceparent: Annotated[str, msgspec.Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    tracestate: Annotated[str, msgspec.Meta(max_length=512)] = ""


class JobSpec(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What shall run, with what, and what shall come back."""

    name: JobName
    """For people; the job's name in Slurm is this and the job key."""
    plan: AnyPlan
    options: JobOptions = JobOptions()
    env: dict[str, str] = {}
    cwd: str | None = None
    """An absolute folder on the site; None is the job's own working directory."""
    work_base: str | None = None
    """An absolute folder on the site under which the working directory is made; None is the spool."""
    work_word: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """What stands in the plan's ``argv`` for the path of the job's own working directory, which only the agent knows:
    with it a payload that came along is found from another ``cwd``."""
    files: tuple[FileRef, ...] = ()
    outputs: tuple[str, ...] = ()
    """Files, relative to the working directory, that come back as blobs."""
    outputs_limit: NonNegative = 64 * 1024 * 1024
    stream_limit: Positive = 64 * 1024 * 1024
    """Bytes of stdout and of stderr that each start streams in full; of what follows only the newest lines, at a
    bounded rate, and the end. All of it stays in the spool. Pipes messages have no limit of this kind."""
    pipes_context: bytes | None = None
    """Dagster Pipes' context as JSON; None runs the payload without a Pipes session."""
    pipes_module: FileRef | None = None
    """The ``dagster_pipes`` module to put beside the payload."""
    labels: dict[str, str] = {}
    """Where the job comes from (run, step, asset): for people and for the comment in Slurm."""
    environment: Environment | None = None
    """What the payload runs in; None is what the login shell gives."""
    tasks: tuple[TaskSpec, ...] = ()
    """The tasks of a job array, by ascending index; none for a single job."""
    array_throttle: Positive | None = None
    """How many tasks may run at the same time."""
    sealed: Sealed | None = None
    """Secret variables, which stand over ``env``; an array's tasks have them in common."""
    trace: TraceContext | None = None
    """Goes into the payload's environment as TRACEPARENT and TRACESTATE, and into the record and the agent's log."""
    accounting_soon: bool = False
    """Somebody will wait for accounting's figures: it is asked as soon as the job has ended."""


class Submit(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Run this job, once."""

    TYPE: ClassVar[str] = "submit"
    key: Ulid
    site: Token
    expires_at: float
    submitter: str
    job: JobSpec


class Cancel(Message, frozen=True, kw_only=True, omit_defaults=True):
    """End this job, or one task of it."""

    TYPE: ClassVar[str] = "cancel"
    id: Ulid
    key: Ulid
    site: Token
    expires_at: float
    submitter: str
    reason: str = ""
    task: TaskIndex | None = None
    """Only this task of an array; None is all of them."""


class Requeue(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Send this running job, or one task of an array, back to the queue: it starts again from its beginning."""

    TYPE: ClassVar[str] = "requeue"
    id: Ulid
    key: Ulid
    site: Token
    expires_at: float
    submitter: str
    reason: str = ""
    task: TaskIndex | None = None
    """Which task of an array; None for a single job."""


Control = Cancel | Requeue
"""What is asked of a job that was submitted."""


class Problem(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An error that crosses the bus; ``code`` is a code of :mod:`slurmbus_protocol.errors`."""

    TYPE: ClassVar[str] = "problem"
    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Usage(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What the processes under the runner used (getrusage of its children); tasks of an srun aren't among them."""

    cpu_seconds: float
    max_rss: NonNegative
    """Memory of the process with most of it, in bytes; see ``Live.peak_rss`` for all of them together."""
    elapsed: float


class Live(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a running job uses on one node: where its runner is, which sees that node only."""

    at: float
    node: str
    cpus: Positive
    """CPUs that the job has on this node."""
    cpu_seconds: float
    """CPU time so far."""
    cpu_percent: float
    """CPU time since the last look, of what the CPUs could have given: 0 to 100."""
    rss: NonNegative
    """Memory of all processes together, in bytes."""
    peak_rss: NonNegative
    """The most that was seen of ``rss``, or the kernel's own peak where the job has a cgroup."""
    processes: NonNegative
    read_bytes: NonNegative | None = None
    """Bytes read so far by system calls, from whatever file system."""
    written_bytes: NonNegative | None = None
    memory_limit: NonNegative | None = None
    """Bytes of memory that the job may use on this node, where that is known."""
    steps: bool = False
    """It was seen to run job steps of its own (srun), of which accounting knows more."""


class Start(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One start of a job on a node."""

    number: NonNegative
    job_id: NonNegative
    node: str
    nonce: str
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    """What went wrong outside the payload, in the runner's own words."""
    error_code: str | None = None
    sizes: dict[str, int] | None = None
    """Bytes of each stream, known when the start has ended and everything was relayed."""
    usage: Usage | None = None
    live: Live | None = None
    """What it used when the runner last looked; the last one stays when it has ended."""
    facts: dict[str, str] = {}
    """What the launcher has found out, for people: the address of a dashboard, for example."""
    task_job_id: NonNegative | None = None
    """Of an array's task: its own Slurm id (SLURM_JOB_ID); ``job_id`` is the array's (SLURM_ARRAY_JOB_ID)."""


class AccountingStep(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a job in Slurm's accounting. Source of the fields: sacct(1); None is what wasn't recorded."""

    step: str
    """``batch``, ``extern`` or a number."""
    name: str
    state: str
    exit_code: int = 0
    signal: int = 0
    elapsed: float = 0.0
    tasks: NonNegative | None = None
    nodes: NonNegative | None = None
    alloc_cpus: NonNegative | None = None
    cpu_seconds: float = 0.0
    """CPU time of all tasks, waited-for processes included (sacct's TotalCPU)."""
    max_rss: NonNegative | None = None
    """Memory of the task with most of it, in bytes."""
    ave_rss: NonNegative | None = None
    disk_read: NonNegative | None = None
    """Bytes of all tasks (TRESUsageInTot, fs/disk)."""
    disk_written: NonNegative | None = None
    energy_joules: float | None = None
    gpu_memory: NonNegative | None = None
    """Bytes of the task with most of it (TRESUsageInMax, gres/gpumem)."""
    gpu_percent: float | None = None
    """Mean over the tasks (TRESUsageInAve, gres/gpuutil)."""
    start_time: float | None = None
    end_time: float | None = None


class Used(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What all steps of a job used together; None is what the cluster doesn't record."""

    disk_read: NonNegative | None = None
    disk_written: NonNegative | None = None
    energy_joules: float | None = None
    gpu_memory: NonNegative | None = None
    """Bytes of the task with most of it (gres/gpumem)."""
    gpu_percent: float | None = None
    """Mean over tasks and steps, by their time (gres/gpuutil)."""


class Accounting(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What Slurm's accounting says about the job. Source of the fields: sacct(1)."""

    state: str
    exit_code: int
    signal: int
    elapsed: float
    cpu_seconds: float
    alloc_cpus: NonNegative
    max_rss: NonNegative | None = None
    alloc_nodes: NonNegative = 0
    alloc_tres: str = ""
    used: Used | None = None
    cancelled_by: str = ""
    """Who cancelled the job in Slurm: a user name or id."""
    steps: tuple[AccountingStep, ...] = ()
    """At most 50: those that failed come before others when there are more, and the order stays."""
    steps_in_all: NonNegative = 0


class ControlRefused(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A control that wasn't carried out, and why; the last one of a job stands in its record."""

    id: Ulid
    at: float
    submitter: str
    code: str
    message: str
    hint: str = ""


class CancelAsked(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A cancel that was durably asked for; it is repeated until the state is final."""

    id: Ulid
    at: float
    submitter: str
    reason: str = ""


class RequeueAsked(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A requeue that was durably asked for; Slurm is told at most once."""

    id: Ulid
    at: float
    submitter: str
    reason: str = ""
    outcome: str = ""
    """``done``, ``refused`` (nothing happened) or ``unknown``; nothing while Slurm is being told."""
    message: str = ""
    """Why it was refused or isn't known."""


class Record(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The durable state of one job: the last message on its state subject, and the event of its last change."""

    TYPE: ClassVar[str] = "record"
    key: Ulid
    site: Token
    task: NonNegative = 0
    epoch: NonNegative
    """The lease under which this was written."""
    state: JobState
    name: str
    submitter: str
    request_sha256: str = ""
    """Hash of the request's body, empty when there was none (a cancel came first, or the bytes were bad)."""
    created_at: float
    updated_at: float
    labels: dict[str, str] = {}
    options: JobOptions = JobOptions()
    requeue: bool = False
    spool: str | None = None
    work_dir: str | None = None
    scheduler: str = ""
    submits: NonNegative = 0
    """How often a submit was begun; above 0 a job may exist in Slurm."""
    maybe_submitted: bool = False
    """A submit was begun and not answered by a definite no: a job with this name may exist in Slurm."""
    lookups: NonNegative = 0
    """How often in a row Slurm was asked for the job's name and knew none."""
    job_id: NonNegative | None = None
    verdict: JobState | None = None
    """Slurm's final state, known before every byte was relayed; becomes the state when that is done."""
    slurm_state: str | None = None
    """Slurm's own word, also for states that are only shown (SUSPENDED, REQUEUE_HOLD, …)."""
    reason: str | None = None
    """Slurm's reason while it waits or when it ended, or why it was rejected or lost."""
    hint: str | None = None
    error_code: str | None = None
    partition: str | None = None
    nodes: NonNegative | None = None
    node_list: str | None = None
    alloc_cpus: NonNegative | None = None
    submit_time: float | None = None
    start_time: float | None = None
    estimated_start: float | None = None
    """While it is pending: when Slurm expects it to start, if it has looked that far."""
    end_time: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    starts: tuple[Start, ...] = ()
    outputs_pending: bool = False
    outputs: tuple[FileRef, ...] = ()
    outputs_error: str | None = None
    accounting: Accounting | None = None
    cancel: CancelAsked | None = None
    twins: tuple[int, ...] = ()
    """Slurm jobs of the same name that lost the claim; they were told to end."""
    sealed: bool = False
    """The agent holds the claim after the last start: no other start can follow."""
    timings: dict[str, float] = {}
    """When the agent did what (accepted, staged, submit_sent, submit_done, …), for finding out who was slow."""
    environment: str | None = None
    """The digest of the installed environment in which it runs; None when it runs in none of those."""
    tasks: NonNegative = 0
    """How many tasks the array has that this is one of; 0 for a single job. Then ``job_id`` is the array's id."""
    task_name: str = ""
    """What the request calls the task: the partition key or the parameters."""
    array_base: NonNegative = 0
    """The task has Slurm's index ``task - array_base``: a long array is submitted as several."""
    task_job_id: NonNegative | None = None
    """The id that Slurm gave to this task alone, once it has one."""
    signer: str = ""
    """The public key that signed the request; controls are taken from it and from the keys that succeed it."""
    refused: ControlRefused | None = None
    trace: TraceContext | None = None
    """What the request said, for finding the job among the traces of who asked for it."""
    requeues: tuple[RequeueAsked, ...] = ()
    """Every one that was asked for, so that none is carried out again."""


class Chunk(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A byte range of a stream; key, task, start and stream stand in the subject."""

    TYPE: ClassVar[str] = "chunk"
    offset: NonNegative
    data: bytes
    skipped: NonNegative = 0
    """How many bytes right before ``offset`` were left out on purpose, because the stream is over its limit."""


class SchedulerHealth(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What the agent knows of what it submits to."""

    kind: str
    responding: bool
    since: float
    """Since when it has been responding, or not."""
    latency: float | None = None
    error: str | None = None
    calls: dict[str, int] = {}
    """Calls by kind since the agent started."""
    restarts: NonNegative = 0
    version: str = ""
    """Slurm's, e.g. ``24.11.5``; nothing for local processes and as long as it isn't known."""
    asked: bool = True
    """False from the agent's start until something was asked: so long it isn't known whether it responds."""

    @property
    def silent(self) -> bool:
        """Whether it was asked and doesn't respond."""
        return self.asked and not self.responding


class BudgetUse(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How much of one budget an agent has used, to be shown as ``used`` of ``limit``."""

    name: str
    """``cpu-time``, ``memory``, ``calls`` or ``stat-calls``; there may be others."""
    used: float
    limit: float
    unit: str
    """Of both: ``s``, ``B``, ``calls``, …"""
    window_seconds: float = 0.0
    """Over how long it was used; 0 for an amount of this moment."""


class Vitals(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What the agent measured of itself, with all the processes that it runs on the login node."""

    cpu_seconds: float = 0.0
    """Of the agent's process and of those that it started and that have ended, since the process began."""
    rss: NonNegative = 0
    """Resident bytes of the agent's own process."""
    open_files: NonNegative = 0
    jobs: dict[str, int] = {}
    """Unfinished jobs by state."""
    backlog: NonNegative = 0
    """Bytes that wait to be relayed."""
    bad_messages: NonNegative = 0
    bus_latency: float | None = None
    scheduler_rss: NonNegative = 0
    """Resident bytes of the scheduler's process."""
    scheduler_pid: NonNegative = 0
    """The scheduler's process; 0 when it isn't running."""
    records_returned: dict[str, int] = {}
    """Records that Slurm gave in answer, by kind of call, since the agent started."""
    stat_calls: NonNegative = 0
    """Looks at files of the spool since the agent started."""
    bus_bytes_in: NonNegative = 0
    bus_bytes_out: NonNegative = 0
    """Bytes of messages from and to the bus since the agent started."""
    link_connections: NonNegative = 0
    """Runners that are connected."""
    budgets: tuple[BudgetUse, ...] = ()
    slowed: str = ""
    """Why the agent does less than it could, in words; empty when it doesn't."""
    handovers: NonNegative = 0
    """How often the agent has given its work to a fresh process of itself, so as to stay below the site's limits."""
    link_bytes_in: NonNegative = 0
    link_bytes_out: NonNegative = 0
    """Bytes from and to runners since the agent started."""


class Heartbeat(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The lease of a site, renewed, and how its agent is; also published by standbys."""

    TYPE: ClassVar[str] = "heartbeat"
    site: Token
    agent_id: Token
    epoch: NonNegative
    leader: bool
    interval: float
    """Seconds until the next one is due."""
    lease_seconds: float
    host: str
    user: str
    pid: NonNegative
    version: str
    protocol: tuple[int, int]
    """The oldest and the newest protocol that this agent speaks."""
    capabilities: tuple[str, ...]
    started_at: float
    sent_at: float
    scheduler: SchedulerHealth
    vitals: Vitals = Vitals()
    alarms: tuple[str, ...] = ()
    released: bool = False
    """The agent stopped on purpose; whoever stands by may take over at once."""
    authority_expires_at: float | None = None
    """Until when the agent takes new jobs; a login renews it. None: it needs no authority (local processes)."""


class Ping(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Are you there?"""

    TYPE: ClassVar[str] = "ping"
    sent_at: float


class Pong(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Here I am."""

    TYPE: ClassVar[str] = "pong"
    sent_at: float
    agent_id: Token
    epoch: NonNegative


class AskPartitions(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Which partitions are there?"""

    TYPE: ClassVar[str] = "ask-partitions"


class Partition(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One partition, as far as choosing one needs it."""

    name: str
    state: str
    nodes: NonNegative
    cpus: NonNegative
    default: bool = False
    max_time_minutes: int | None = None
    node_states: dict[str, NonNegative] = {}
    """How many of its nodes are in which state, in sinfo's words: ``{"idle": 3, "drained": 1}``."""


class Partitions(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to AskPartitions."""

    TYPE: ClassVar[str] = "partitions"
    partitions: tuple[Partition, ...]


class ReadRange(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Read bytes of a stream from the spool, because the bus doesn't hold them any more."""

    TYPE: ClassVar[str] = "read-range"
    key: Ulid
    task: NonNegative
    start: NonNegative
    stream: str
    offset: NonNegative
    length: Positive


class AskLog(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Read the agent's own log."""

    TYPE: ClassVar[str] = "ask-log"
    length: Positive
    offset: NonNegative | None = None
    """From where on; None is the end of what there is."""


class LogTail(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to AskLog."""

    TYPE: ClassVar[str] = "log-tail"
    host: str
    path: str
    """The file on that host; empty when the agent writes its log elsewhere."""
    offset: NonNegative = 0
    data: bytes = b""


class AskPlatform(Message, frozen=True, kw_only=True, omit_defaults=True):
    """For what must an environment be made, to run on this site?"""

    TYPE: ClassVar[str] = "ask-platform"


class SitePython(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A Python of the site on which environments can be built."""

    path: str
    version: str
    """All of it: ``3.12.4``."""
    implementation: str = "cpython"
    free_threaded: bool = False


class Platform(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to AskPlatform, in the words of Python's ``platform`` module."""

    TYPE: ClassVar[str] = "platform"
    system: str
    machine: str
    libc: str = ""
    libc_version: str = ""
    """Of macOS its own version."""
    pythons: tuple[SitePython, ...] = ()
    """The one that is preferred comes first."""


class AskEnvironments(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Which environments are installed?"""

    TYPE: ClassVar[str] = "ask-environments"
    digests: tuple[Sha256, ...] = ()
    """Only these; they count as used now, since whoever asks so is about to use them."""


class InstalledEnvironment(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One environment on a site."""

    digest: Sha256
    title: str
    kind: str
    path: str
    names: tuple[str, ...] = ()
    size: NonNegative = 0
    files: NonNegative = 0
    python: str = ""
    installed_at: float = 0.0
    used_at: float = 0.0
    jobs: tuple[str, ...] = ()
    """Keys of the unfinished jobs that use it."""


class Environments(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to AskEnvironments."""

    TYPE: ClassVar[str] = "environments"
    environments: tuple[InstalledEnvironment, ...] = ()
    unused_days: float = 0.0
    """Days after which the site removes one that nobody uses; inf is never."""


class InstallEnvironment(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Install this environment; a signed question that is asked again until it is installed."""

    TYPE: ClassVar[str] = "install-environment"
    site: Token
    expires_at: float
    submitter: str
    environment: EnvironmentRef
    name: EnvironmentName | None = None
    """By which jobs may name it; it stands for the environment that was given the name last."""
    again: bool = False
    """Try it at once, although it failed a moment ago."""


class RemoveEnvironment(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Remove this environment unless a job uses it; a signed question."""

    TYPE: ClassVar[str] = "remove-environment"
    site: Token
    expires_at: float
    submitter: str
    digest: Sha256


class EnvironmentStatus(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to InstallEnvironment and RemoveEnvironment."""

    TYPE: ClassVar[str] = "environment-status"
    digest: Sha256
    ready: bool
    """True when it is installed."""
    path: str | None = None
    doing: str = ""
    """What is being done at this moment."""


class TrustKey(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Accept requests of this key, too; a question signed by a key that is trusted."""

    TYPE: ClassVar[str] = "trust-key"
    site: Token
    expires_at: float
    submitter: str
    key: Sha256
    """The public key: 64 hex digits."""
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    succeeds: bool = False
    """It stands in the place of the key that signs this, which is accepted for a while yet."""


class RevokeKey(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Accept nothing of this key any more, nor of those that it brought in; a question signed by another one."""

    TYPE: ClassVar[str] = "revoke-key"
    site: Token
    expires_at: float
    submitter: str
    key: Sha256


class AskKeys(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Whose requests are accepted?"""

    TYPE: ClassVar[str] = "ask-keys"


class SiteKey(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A key that a site knows."""

    name: str
    key: str
    by: str = ""
    """The key that brought it in; nothing when a login did."""
    succeeds: str = ""
    retires_at: float | None = None
    """When it ends: another one stands in its place."""
    revoked: bool = False


class SiteKeys(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to AskKeys, TrustKey and RevokeKey."""

    TYPE: ClassVar[str] = "site-keys"
    keys: tuple[SiteKey, ...] = ()


MESSAGE_TYPES: tuple[type[Message], ...] = (
    Submit,
    Cancel,
    Requeue,
    Problem,
    Record,
    Chunk,
    Heartbeat,
    Ping,
    Pong,
    AskPartitions,
    Partitions,
    ReadRange,
    AskLog,
    LogTail,
    AskPlatform,
    Platform,
    AskEnvironments,
    Environments,
    InstallEnvironment,
    RemoveEnvironment,
    EnvironmentStatus,
    TrustKey,
    RevokeKey,
    AskKeys,
    SiteKeys,
)
