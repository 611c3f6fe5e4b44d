"""What can happen to a job, and what the lifecycle may tell the shell to do about it."""

from __future__ import annotations

import msgspec

from slurmbus_agent.scheduler.base import AccountingRow, Observation
from slurmbus_protocol.messages import CancelAsked, ControlRefused, FileRef, Live, RequeueAsked, Start, Usage


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to one job."""


class Begun(Event, frozen=True, kw_only=True):
    """An agent took the job up: a new request, or after a restart. Or a step failed and all is looked at again."""

    taken_up: bool = False
    """It took the job up: nothing that an earlier agent had begun for it is under way."""


class StagingGoesOn(Event, frozen=True, kw_only=True):
    """Making the spool ready takes its time; this is what is being done."""

    doing: str


class Staged(Event, frozen=True, kw_only=True):
    """The spool is ready."""

    spool: str
    work_dir: str
    environment: str | None = None
    """The digest of the installed environment that the job uses."""


class StagingFailed(Event, frozen=True, kw_only=True):
    """The spool can't be made ready."""

    code: str
    message: str
    hint: str = ""


class Submitted(Event, frozen=True, kw_only=True):
    """Slurm took the job."""

    job_id: int


class SubmitRefused(Event, frozen=True, kw_only=True):
    """Slurm said no."""

    message: str
    hint: str = ""


class SubmitNotSent(Event, frozen=True, kw_only=True):
    """Slurm wasn't asked; nothing happened."""

    message: str


class SubmitUnknown(Event, frozen=True, kw_only=True):
    """Slurm was asked and no answer came."""

    message: str


class SubmitAgain(Event, frozen=True, kw_only=True):
    """Time to try the submit again."""


class Looked(Event, frozen=True, kw_only=True):
    """Slurm was asked for the job's name; the controller answered, and so did accounting where the site has one."""

    observation: Observation | None
    """What the controller knows."""
    row: AccountingRow | None = None
    """What accounting knows, when the controller knows nothing."""


class TwinSeen(Event, frozen=True, kw_only=True):
    """Slurm has another job of this name."""

    job_id: int
    over: bool
    """It has ended."""


class Observed(Event, frozen=True, kw_only=True):
    """The controller said something about the job."""

    observation: Observation


class Poked(Event, frozen=True, kw_only=True):
    """Something was done to the job, and Slurm should be asked what became of it."""


class Unlinked(Event, frozen=True, kw_only=True):
    """The runner's connection ended before it had reported its end: it may have been killed."""

    start: int


class Denied(Event, frozen=True, kw_only=True):
    """The controller answered that it doesn't know the job."""

    removed: bool = False
    """It knows the array of which this was a task: Slurm keeps nothing of waiting tasks that are cancelled."""


class Accounted(Event, frozen=True, kw_only=True):
    """Accounting was asked, as often as it should be; None: it never had a final row for the job."""

    row: AccountingRow | None


class Claimed(Event, frozen=True, kw_only=True):
    """These starts have been claimed in the spool, in order."""

    starts: tuple[Start, ...]
    batch_output: str = ""
    """The end of the batch script's own output, when no runner ever reported."""


class Ended(Event, frozen=True, kw_only=True):
    """The runner reported the end of a start."""

    start: int
    exit_code: int | None
    signal: int | None
    error: str | None
    usage: Usage | None
    ended_at: float
    error_code: str | None = None
    live: Live | None = None
    facts: dict[str, str] = {}


class LiveSeen(Event, frozen=True, kw_only=True):
    """The runner said what the job uses."""

    start: int
    live: Live


class FactsFound(Event, frozen=True, kw_only=True):
    """The launcher has found something out."""

    start: int
    facts: dict[str, str]


class Drained(Event, frozen=True, kw_only=True):
    """Every byte of a start has been relayed."""

    start: int
    sizes: dict[str, int]


class OutputsCollected(Event, frozen=True, kw_only=True):
    """The outputs that the request named are on the bus, as far as they exist."""

    outputs: tuple[FileRef, ...]
    error: str | None = None


class CancelRequested(Event, frozen=True, kw_only=True):
    """Somebody asked durably for the end of the job."""

    cancel: CancelAsked


class ControlWasRefused(Event, frozen=True, kw_only=True):
    """Somebody asked for something that he may not do to this job; he shall hear that."""

    refused: ControlRefused


class RequeueRequested(Event, frozen=True, kw_only=True):
    """Somebody asked for another start of the running job."""

    requeue: RequeueAsked


class RequeueAnswered(Event, frozen=True, kw_only=True):
    """What came of telling Slurm to requeue the job."""

    id: str
    outcome: str
    """As in RequeueAsked."""
    code: str = ""
    message: str = ""
    hint: str = ""


class CancelAgain(Event, frozen=True, kw_only=True):
    """Time to repeat a cancel."""


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the shell shall do."""


class Stage(Instruction, frozen=True, kw_only=True):
    """Make the spool ready."""


class SubmitJob(Instruction, frozen=True, kw_only=True):
    """Submit the batch job."""


class LookUp(Instruction, frozen=True, kw_only=True):
    """Ask Slurm for the job's name."""


class Watch(Instruction, frozen=True, kw_only=True):
    """Ask the controller about the job soon; urgently when its end is near."""

    urgent: bool = False


class AskAccounting(Instruction, frozen=True, kw_only=True):
    """Ask accounting about the job, until it has a final row or was asked often enough."""

    figures: bool = False
    """Only the figures are wanted; otherwise the answer decides, and none counts while the controller still holds
    news for accounting."""
    again: tuple[float, ...] = ()
    """Seconds between the questions."""


class CancelJob(Instruction, frozen=True, kw_only=True):
    """Cancel the job, on the condition that it has our name."""

    job_id: int


class RequeueJob(Instruction, frozen=True, kw_only=True):
    """Tell Slurm to requeue the job, on the condition that it has our name. This one is never carried out again."""

    id: str
    job_id: int


class ReadClaims(Instruction, frozen=True, kw_only=True):
    """Read the claims in the spool."""


class LookForTwins(Instruction, frozen=True, kw_only=True):
    """Ask Slurm whether it has more than one job of this name."""


class TakeClaim(Instruction, frozen=True, kw_only=True):
    """Claim this start for the agent, so that no payload can start any more; a running one that sees it ends."""

    start: int


class Drain(Instruction, frozen=True, kw_only=True):
    """Relay a start to its end: the sizes that the runner reported, else the end of its files."""

    start: int


class CollectOutputs(Instruction, frozen=True, kw_only=True):
    """Put the outputs on the bus."""


class Later(Instruction, frozen=True, kw_only=True):
    """Give this event after a while."""

    delay: float
    event: Event


class Retire(Instruction, frozen=True, kw_only=True):
    """Nothing is left to do for this job."""
