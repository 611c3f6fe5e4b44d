"""One job in an agent: makes each step of its lifecycle durable, then carries out what follows from it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slurmbus_agent import arrays, budgets, events, lifecycle
from slurmbus_agent.arrays import ArrayQueue
from slurmbus_agent.events import Event, Instruction
from slurmbus_agent.records import RecordStore
from slurmbus_agent.relay import Relay
from slurmbus_agent.runner.facts import kept
from slurmbus_agent.scheduler.array import ARRAY_TASK
from slurmbus_agent.scheduler.base import BatchJob, OutcomeUnknown, Refused, Scheduler, Unavailable
from slurmbus_agent.scheduler.comment import compose
from slurmbus_agent.secret_values import SecretValues, coming_start
from slurmbus_agent.spool import AGENT_NODE, Claim, EndReport, JobDir, SpoolError
from slurmbus_agent.staging import Stager
from slurmbus_agent.tasks import spawn
from slurmbus_agent.watcher import Watcher
from slurmbus_protocol import logs, traces
from slurmbus_protocol.errors import BlobMissing, BusFull, BusUnreachable, SlurmbusError
from slurmbus_protocol.messages import (
    CancelAsked,
    ControlRefused,
    Environment,
    JobSpec,
    Record,
    RequeueAsked,
    Start,
)
from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)

BATCH_OUTPUT_TAIL = 2000
RETRY_AFTER = 2.0
"""Seconds until a step is repeated that failed because the bus or the shared file system was away."""
STALLED_AFTER = 1.0
"""Seconds without progress after which the rest of an ended start is read from the spool instead of the link."""

_KEPT = (events.CancelRequested, events.RequeueRequested, events.RequeueAnswered)
"""Events after which the spool gets the record: a bus that starts anew brings their requests again."""

_STAMPS = {
    events.StagingGoesOn: "environment",
    events.Staged: "staged",
    events.Submitted: "submitted",
    events.Claimed: "claimed",
    events.Ended: "ended",
    events.Drained: "drained",
    events.OutputsCollected: "outputs",
}


@dataclass(frozen=True)
class Tools:
    """What all jobs of an agent share."""

    records: RecordStore
    scheduler: Scheduler
    relay: Relay
    watcher: Watcher
    stager: Stager
    arrays: ArrayQueue | None = None
    """There while the agent leads."""
    seal_key: str | None = None
    """To which secret values are sealed."""


class Job:
    """Carries one record from its request to its end.

    Args:
        record: as it is on the bus.
        request: what was asked for; of a task of an array, the whole array.
        folder: its spool.
        tools: what it shares with others.
    """

    def __init__(self, record: Record, request: JobSpec, folder: JobDir, tools: Tools) -> None:
        self.record = record
        self._request = request
        self.folder = folder
        self._tools = tools
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[None] | None]] = asyncio.Queue()
        self._running: dict[Instruction, asyncio.Task[None]] = {}
        self._retired = False
        self._progress = asyncio.Event()
        self.linked: int | None = None
        """The start whose runner is connected, if any."""
        self._secret: bytes | None = None
        sealed = request.sealed
        self._secrets = SecretValues(sealed, tools.seal_key, folder) if sealed is not None else None
        self._told_staging = 0.0
        self._told_phase = ""

    @property
    def slurm_name(self) -> str:
        """The job's name in Slurm: for people, and unique by its key and task."""
        return arrays.slurm_name(self.record)

    @property
    def spec(self) -> JobSpec:
        """What was asked for; a thousand tasks don't keep their copies of it."""
        return arrays.spec_of(self._request, self.record)

    @property
    def environment(self) -> Environment | None:
        """What it asks to run in; the tasks of an array have it in common."""
        return self._request.environment

    def throttle(self, array_size: int) -> int | None:
        """Give how many tasks of each array that the request becomes may run at the same time."""
        if self._request.array_throttle is None:
            return None
        parts = len({task.index // array_size for task in self._request.tasks})
        return max(1, self._request.array_throttle // parts)

    def secret(self) -> bytes | None:
        """Give what the job's runner proves itself with; None before the job was staged."""
        if self._secret is None:
            plan = self.folder.read_plan()
            self._secret = plan.secret if plan else None
        return self._secret

    def post(self, event: Event) -> None:
        """Tell the job what happened."""
        self._inbox.put_nowait((event, None))

    async def tell(self, event: Event) -> None:
        """Tell the job what happened, and come back when that is durable; at once when the job is over.

        Cancelled when this agent has to leave the job to another one before: nothing of it may be confirmed then.
        """
        if self._retired:
            return
        done = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((event, done))
        await done

    async def run(self) -> None:
        """Live until nothing is left to do.

        Raises:
            Fenced: another agent has taken over.
        """
        record = self.record
        index = record.task if record.tasks else None
        logs.about(job=record.key, task=index, trace_id=traces.trace_id(record.trace) or None)
        self.post(events.Begun(taken_up=True))
        try:
            async with asyncio.TaskGroup() as group:
                while not self._retired:
                    event, done = await self._inbox.get()
                    await self._step(event, group)
                    if done is not None and not done.done():
                        done.set_result(None)
                for task in list(self._running.values()):
                    task.cancel()
        finally:
            self._tools.watcher.forget(self.slurm_name)
            self._tools.relay.forget(self.record.key, self.record.task)
            while not self._inbox.empty():
                _, done = self._inbox.get_nowait()
                if done is not None and not done.done():
                    if self._retired:
                        done.set_result(None)
                    else:
                        done.cancel()

    async def _step(self, event: Event, group: asyncio.TaskGroup) -> None:
        record, instructions = lifecycle.advance(self.record, event)
        if self._secrets is not None:
            await self._hand_secrets(self._secrets, record, group)
        if record != self.record:
            stamp = _STAMPS.get(type(event))
            if stamp and stamp not in record.timings:
                record = msgspec.structs.replace(record, timings={**record.timings, stamp: time.time()})
            if record.state != self.record.state:
                log.info("job %s %s: %s", record.key, record.job_id or "", record.state)
            self.record = await self._tools.records.write(record)
        if isinstance(event, _KEPT):
            await self._keep_record()
        if isinstance(event, events.Claimed) and self.linked is not None and self.record.verdict is None:
            self._tools.watcher.calm(self.slurm_name)
        for instruction in instructions:
            if isinstance(instruction, events.Retire):
                await self._keep_record()
                self._retired = True
            elif instruction not in self._running:
                self._running[instruction] = spawn(group, self._carry_out(instruction))

    async def _hand_secrets(self, secrets: SecretValues, record: Record, group: asyncio.TaskGroup) -> None:
        """Put the secret variables where a start may look for them; leave none behind when the job is over."""
        if record.state.is_final:
            await secrets.burn()
        elif (start := coming_start(record)) is not None and start not in secrets.provided:
            spawn(group, secrets.provide(record, start))

    async def _keep_record(self) -> None:
        """Keep in the spool what a bus that starts anew couldn't know: the controls, and how the job ended."""
        try:
            await asyncio.to_thread(self.folder.write_record, self.record)
        except SpoolError as error:
            log.warning("job %s: its record can't be kept in the spool: %s", self.record.key, error)

    async def _carry_out(self, instruction: Instruction) -> None:
        try:
            await self._do(instruction)
        finally:
            self._running.pop(instruction, None)

    async def _do(self, instruction: Instruction) -> None:
        handler: Callable[[Any], Awaitable[None]] = self._HANDLERS[type(instruction)].__get__(self)
        try:
            await handler(instruction)
        except SlurmbusError as error:
            log.warning("job %s: trying again: %s", self.record.key, error)
            await asyncio.sleep(RETRY_AFTER)
            self.post(events.Begun())

    # ------------------------------------------------------------------ staging and submitting

    async def _stage(self, _: events.Stage) -> None:
        try:
            staged = await self._stage_when_complete()
            if self._secrets is not None:
                self._secrets.open(self.record)
                await self._secrets.provide(self.record, 0)
        except BusUnreachable:
            raise
        except SlurmbusError as error:
            self.post(events.StagingFailed(code=error.code, message=error.message, hint=error.hint))
        else:
            self.post(staged)

    async def _stage_when_complete(self) -> events.Staged:
        """Stage; a file that is missing may be on its way: its client puts it on a bus that started anew once more."""
        deadline = time.monotonic() + budgets.BLOB_PATIENCE
        while True:
            try:
                shared = self._request.files if self.record.tasks else ()
                return await self._tools.stager.stage(self.folder, self.record, self.spec, self._tell_staging, shared)
            except BlobMissing:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_AFTER)

    def _tell_staging(self, doing: str) -> None:
        """Show what takes so long; each word is a record on the bus, so not too often."""
        now, phase = time.monotonic(), doing.partition(",")[0]
        if phase != self._told_phase or now - self._told_staging >= budgets.STAGING_TOLD_EVERY:
            self._told_staging, self._told_phase = now, phase
            self.post(events.StagingGoesOn(doing=doing))

    async def _submit(self, _: events.SubmitJob) -> None:
        try:
            if self.record.tasks and self._tools.arrays is not None:
                job_id = await self._tools.arrays.submit(self)
            else:
                job_id = await self._tools.scheduler.submit(self.batch_job())
        except Refused as error:
            self.post(events.SubmitRefused(message=error.message, hint=error.hint))
        except Unavailable as error:
            self.post(events.SubmitNotSent(message=error.message))
        except OutcomeUnknown as error:
            self.post(events.SubmitUnknown(message=error.message))
        else:
            self.post(events.Submitted(job_id=job_id))

    def batch_job(self) -> BatchJob:
        """Give what Slurm gets; of a task of an array, what it has in common with its siblings."""
        return BatchJob(
            name=arrays.array_name(self.record),
            script=self._tools.stager.batch_script(self.folder, self.record),
            work_dir=self._work_dir,
            output=self._batch_output(ARRAY_TASK),
            environment=self._tools.stager.environment(),
            options=self.record.options,
            comment=compose(self.record.labels, self.record.options.comment),
        )

    @property
    def _work_dir(self) -> str:
        """Where the batch script starts; a task's own folder may go before its siblings begin."""
        if self.record.tasks:
            return str(self.folder.shared)
        return self.record.work_dir or str(self.folder.path)

    def _batch_output(self, index: str | int) -> str:
        """Give the file of the batch script's own output, of an array's task with this index in Slurm."""
        if self.record.tasks:
            return f"{self.folder.shared}/batch-{self.record.array_base}-{index}.out"
        return str(self.folder.batch_output)

    async def _look_up(self, _: events.LookUp) -> None:
        looked = await self._tools.watcher.look_up(self.slurm_name, self.record.created_at)
        if looked is None:
            await asyncio.sleep(lifecycle.RETRY_SUBMIT_AFTER)
            self.post(events.SubmitAgain())
        else:
            self.post(looked)

    async def _look_for_twins(self, _: events.LookForTwins) -> None:
        self._tools.watcher.look_for_twins()

    # ------------------------------------------------------------------ following

    async def _watch(self, instruction: events.Watch) -> None:
        if self.record.job_id is not None:
            self._tools.watcher.watch(self.slurm_name, self.record.job_id, self.post, urgent=instruction.urgent)

    async def _ask_accounting(self, instruction: events.AskAccounting) -> None:
        if self.record.job_id is None:
            return
        self._tools.watcher.ask_accounting(
            self.slurm_name,
            self.record.job_id,
            self.record.submit_time or self.record.created_at,
            self.post,
            again=instruction.again,
            figures=instruction.figures,
            soon=self._is_awaited(),
        )

    def _is_awaited(self) -> bool:
        """Tell whether somebody waits for accounting's figures, because it was said or because nobody else has them."""
        options, live = self.record.options, self.record.starts[-1].live if self.record.starts else None
        has_gpus = bool(options.gpus or options.gpus_per_node or "gpu" in (options.gres or ""))
        has_steps = live is not None and live.steps
        several = max(options.ntasks or 1, options.nodes or 1, options.ntasks_per_node or 1) > 1
        return self._request.accounting_soon or several or has_gpus or has_steps

    async def _cancel_job(self, instruction: events.CancelJob) -> None:
        try:
            if self.record.tasks and self._tools.arrays is not None:
                await self._tools.arrays.cancel(instruction.job_id, self.slurm_name)
            else:
                await self._tools.scheduler.cancel(instruction.job_id, self.slurm_name)
        except (Unavailable, OutcomeUnknown, Refused) as error:
            log.warning("job %s: the cancel is repeated later: %s", self.record.key, error)
        self.post(events.Poked())

    async def _requeue_job(self, instruction: events.RequeueJob) -> None:
        answer: dict[str, str] = {"outcome": "done"}
        try:
            if not await self._tools.scheduler.requeue(instruction.job_id, self.slurm_name):
                answer = {"outcome": "refused", "code": Refused.code, "message": "Slurm doesn't know the job any more"}
        except (Refused, Unavailable) as error:  # nothing happened, and it isn't tried again
            answer = {"outcome": "refused", "code": error.code, "message": error.message, "hint": error.hint}
        except OutcomeUnknown as error:
            answer = {"outcome": "unknown", "code": error.code, "message": error.message}
        self.post(events.RequeueAnswered(id=instruction.id, **answer))

    async def look_for_claims(self) -> None:
        """Learn from the spool which starts have been claimed."""
        claims = await asyncio.to_thread(self.folder.claims)
        self.post(events.Claimed(starts=tuple(_as_start(claim) for claim in claims)))

    async def _read_claims(self, _: events.ReadClaims) -> None:
        await self.look_for_claims()
        await self._read_report()

    async def _read_report(self) -> None:
        """Learn from the spool what a runner without a link has reported."""
        for start in self.record.starts:
            if start.ended_at is not None or start.number == self.linked:
                continue
            report = await asyncio.to_thread(self.folder.report, start.number)
            if report is not None and report.end is not None:
                self.ended(start.number, report.end)

    async def _take_claim(self, instruction: events.TakeClaim) -> None:
        claim = Claim(
            start=instruction.start,
            job_id=self.record.job_id or 0,
            node=AGENT_NODE,
            nonce=self.record.key,
            claimed_at=time.time(),
        )
        await asyncio.to_thread(self.folder.claim, claim)
        claims = await asyncio.to_thread(self.folder.claims)
        words = await asyncio.to_thread(self._batch_words)
        self.post(events.Claimed(starts=tuple(_as_start(claim) for claim in claims), batch_output=words))

    def _batch_words(self) -> str:
        try:
            path = Path(self._batch_output(self.record.task - self.record.array_base))
            text = path.read_text(errors="replace")
        except OSError:
            return ""
        return text[-BATCH_OUTPUT_TAIL:].strip()

    def ended(self, start: int, end: EndReport) -> None:
        """Take the runner's report of its end from the spool."""
        self.post(ended_event(start, end))

    # ------------------------------------------------------------------ bytes

    def moved(self) -> None:
        """Hear that the link brought bytes of this job."""
        self._progress.set()

    async def _drain(self, instruction: events.Drain) -> None:
        report = await asyncio.to_thread(self.folder.report, instruction.start)
        if report is not None and report.end is not None:
            self.ended(instruction.start, report.end)
            sizes = dict(report.end.sizes)
        else:
            sizes = await asyncio.to_thread(self.folder.final_sizes, instruction.start)
        for stream in Stream:
            await self.catch_up(instruction.start, stream, sizes.get(stream, 0), ended=True)
            relayed = await self._tools.relay.offset(self.record.key, self.record.task, instruction.start, stream)
            sizes[stream.value] = max(sizes.get(stream, 0), relayed)  # a size that was read elsewhere may be stale
        self.post(events.Drained(start=instruction.start, sizes=sizes))

    def limit(self, stream: Stream) -> int | None:
        """Tell up to where each start's stream is relayed in full; None: all of it."""
        return None if stream is Stream.MESSAGES else self._request.stream_limit

    async def catch_up(self, start: int, stream: Stream, size: int, *, ended: bool = False) -> bool:
        """Bring a stream on the bus up to ``size`` bytes: by the link while it delivers, else from the spool.

        Beyond the stream's limit only the newest lines are brought, and the end when the stream has ``ended``.

        Returns:
            True when the spool had something to add.
        """
        limit = self.limit(stream)
        full = size if limit is None else min(size, limit)
        record, added = self.record, False
        while (offset := await self._tools.relay.offset(record.key, record.task, start, stream)) < size:
            if offset < full:
                if self.linked == start and await self._link_moves():
                    continue
                moved = await self._bring(start, stream, offset, min(full, offset + budgets.SPOOL_READ))
            else:
                moved = await self._bring_newest(start, stream, offset, size, ended=ended)
                if not ended:
                    return added or moved
            if not moved:
                log.warning("job %s: %s of start %d ends at %d, not %d", record.key, stream, start, offset, size)
                break
            added = True
        return added

    async def _bring(self, start: int, stream: Stream, begin: int, end: int) -> bool:
        """Relay a byte range from the spool; False when the spool has nothing of it."""
        record, relay = self.record, self._tools.relay
        async with relay.reading(stream):
            data = await asyncio.to_thread(self.folder.read, start, stream, begin, end - begin)
            if data:
                limit = self.limit(stream)
                await relay.put(record.key, record.task, start, stream, begin, data, limit=limit)
        return bool(data)

    async def _bring_newest(self, start: int, stream: Stream, offset: int, size: int, *, ended: bool) -> bool:
        """Relay the newest lines beyond the limit when it is time, or the end; False when there is nothing to relay."""
        record, relay = self.record, self._tools.relay
        if not ended and (self.linked == start or not relay.wants_sample(record.key, record.task, start, stream)):
            return False
        begin = max(offset, size - (budgets.LAST_BYTES if ended else budgets.SAMPLE_BYTES))
        async with relay.reading(stream):
            data = await asyncio.to_thread(self.folder.read, start, stream, begin, size - begin)
            limit = self._request.stream_limit
            return await relay.sample(record.key, record.task, start, stream, begin, data, limit=limit, ended=ended)

    async def _link_moves(self) -> bool:
        self._progress.clear()
        try:
            async with asyncio.timeout(STALLED_AFTER):
                await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def _collect_outputs(self, _: events.CollectOutputs) -> None:
        try:
            outputs, error = await self._tools.stager.collect(self.record, self.spec)
        except (BusFull, OSError) as failure:  # the job is what counts, and its outputs are still where they are
            outputs, error = (), str(failure)
        self.post(events.OutputsCollected(outputs=outputs, error=error))

    async def _later(self, instruction: events.Later) -> None:
        await asyncio.sleep(instruction.delay)
        self.post(instruction.event)

    _HANDLERS: dict[type[Instruction], Callable[..., Awaitable[None]]] = {  # noqa: RUF012  # never changed
        events.Stage: _stage,
        events.SubmitJob: _submit,
        events.LookUp: _look_up,
        events.LookForTwins: _look_for_twins,
        events.Watch: _watch,
        events.AskAccounting: _ask_accounting,
        events.CancelJob: _cancel_job,
        events.RequeueJob: _requeue_job,
        events.ReadClaims: _read_claims,
        events.TakeClaim: _take_claim,
        events.Drain: _drain,
        events.CollectOutputs: _collect_outputs,
        events.Later: _later,
    }

    async def cancel(self, asked: CancelAsked) -> None:
        """Ask for the end of the job; comes back when that is durable."""
        await self.tell(events.CancelRequested(cancel=asked))

    async def requeue(self, asked: RequeueAsked) -> None:
        """Ask for another start of the running job; comes back when that, or its refusal, is durable."""
        await self.tell(events.RequeueRequested(requeue=asked))

    async def refuse_control(self, refused: ControlRefused) -> None:
        """Let whoever asked for a control see that it was refused; comes back when that is durable."""
        await self.tell(events.ControlWasRefused(refused=refused))


def ended_event(start: int, end: EndReport) -> events.Ended:
    """Turn a runner's report into an event."""
    return events.Ended(
        start=start,
        exit_code=end.exit_code,
        signal=end.signal,
        error=end.error,
        error_code=end.error_code,
        usage=end.usage,
        live=end.live,
        facts=kept(end.facts),
        ended_at=end.ended_at,
    )


def _as_start(claim: Claim) -> Start:
    return Start(
        number=claim.start, job_id=claim.job_id, node=claim.node, nonce=claim.nonce, started_at=claim.claimed_at
    )
