"""One ``run()``: from what the user asked for to what became of it. Both clients go through here."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import dagster_pipes
import msgspec

from dagster_slurmbus import _compat
from dagster_slurmbus.failures import failure, from_error
from dagster_slurmbus.files import LocalFile
from dagster_slurmbus.forwarding import Forwarder
from dagster_slurmbus.messages import RelayedMessageReader, RequestContextInjector
from dagster_slurmbus.narrator import Narrator
from dagster_slurmbus.outcomes import (
    CompletedJob,
    Metadata,
    Tail,
    is_one_task,
    outputs_metadata,
    prefixed,
    succeeded,
    success_metadata,
)
from dagster_slurmbus.provenance import CommitLookup, provenance_metadata, versions
from dagster_slurmbus.values import inside
from slurmbus.client import Following, SiteClient
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import CommandPlan, FileRef, JobOptions, JobSpec, Record
from slurmbus_protocol.subjects import Stream, new_ulid

OUTPUTS_LIMIT = 64 * 1024**2
ACCOUNTING_PATIENCE = 5.0
"""Seconds that a finished job of several tasks waits for accounting's figures; its step is done either way."""
PIPES_MODULE = "dagster_pipes.py"

_LIVE = {"PYTHONUNBUFFERED": "1"}
"""Without it a Python payload keeps its output back until 8 KiB have come together. Source: python(1), ``-u``."""
_INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_NAME_LENGTH = 64
_LABEL_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one ``run()`` asks for, checked."""

    plan: CommandPlan
    options: JobOptions
    env: Mapping[str, str]
    files: tuple[LocalFile, ...] = ()
    outputs: tuple[str, ...] = ()
    outputs_limit: int = OUTPUTS_LIMIT
    outputs_dir: Path | None = None
    cwd: str | None = None
    work_base: str | None = None
    extras: Mapping[str, Any] | None = None
    ship_pipes_module: bool = True

    @property
    def code_folder(self) -> Path | None:
        """The folder whose git commit is the code's: the first file's, which is the payload where there is one."""
        return self.files[0].path.resolve().parent if self.files else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How ``run()`` behaves while the job is under way."""

    forward_stdio: bool = True
    forward_termination: bool = True
    termination_timeout_seconds: float = 20.0


class Invocation:
    """One job on behalf of one step.

    Args:
        context: of the step.
        connect: gives the site's client; called when everything was checked.
        request: what shall run.
        conduct: how to behave meanwhile.
    """

    def __init__(
        self, context: _compat.Context, connect: Callable[[], SiteClient], request: Request, conduct: Conduct
    ) -> None:
        self._context = _compat.op_context(context)
        self._connect = connect
        self._request = request
        self._conduct = conduct
        self._key = new_ulid()
        self._reader = RelayedMessageReader(context.log.warning)
        self._injector = RequestContextInjector()
        self._forwarder = Forwarder()
        self._stderr = Tail()
        self._last: Record | None = None
        self._begun = time.monotonic()

    def run(self) -> CompletedJob:
        """Submit the job, follow it to its end, and give its results.

        Raises:
            dagster.Failure: the job failed, or something between here and the agent did.
        """
        try:
            with CommitLookup(self._request.code_folder) as lookup:
                return self._run(self._connect(), lookup)
        except SlurmbusError as error:
            raise from_error(error, self._whereabouts()) from error
        except _INTERRUPTS as interrupt:
            if not _compat.has_retry_policy(self._context):
                raise
            # Dagster's in-process executor runs an interrupted step that has a retry policy again.
            raise dg.Failure(
                f"the run was interrupted during job {self._key}",
                metadata=self._whereabouts(),
                allow_retries=False,
            ) from interrupt

    def _run(self, client: SiteClient, lookup: CommitLookup) -> CompletedJob:
        with dg.open_pipes_session(self._context, self._injector, self._reader, self._request.extras) as session:
            files = [client.upload(file.path, file.target) for file in self._request.files]
            record = self._run_job(client, self._spec(client, files))
            self._reader.finish(record.starts[-1].number if record.starts else 0)
        record = _with_accounting(client, record)
        if not succeeded(record):
            raise failure(record, self._stderr, self._reader.payload_exception)
        outputs = self._fetch_outputs(client, record)
        metadata: Metadata = {
            **success_metadata(record),
            **outputs_metadata(outputs),
            **prefixed({"added_seconds": self._added_seconds(record)}),
            **provenance_metadata(files, lookup.result(), versions(agent=_agent_version(client))),
        }
        return CompletedJob(session, record=record, outputs=outputs, metadata=metadata)

    def _added_seconds(self, record: Record) -> dg.MetadataValue[Any] | None:
        """Give the time of this ``run()`` without that from Slurm's yes to the end of the payload."""
        try:
            with_slurm = record.timings["ended"] - record.timings["submitted"]
        except KeyError:
            return None
        return dg.MetadataValue.float(max(0.0, time.monotonic() - self._begun - with_slurm))

    def _spec(self, client: SiteClient, files: list[FileRef]) -> JobSpec:
        request = self._request
        module = None
        if request.ship_pipes_module and all(file.path != PIPES_MODULE for file in files):
            module = client.upload(Path(dagster_pipes.__file__), PIPES_MODULE, executable=False)
        return JobSpec(
            name=_NOT_IN_A_NAME.sub("_", _compat.step_key(self._context))[:_NAME_LENGTH],
            plan=request.plan,
            options=request.options,
            env={**_LIVE, **request.env},
            cwd=request.cwd,
            work_base=request.work_base,
            files=tuple(files),
            outputs=request.outputs,
            outputs_limit=request.outputs_limit,
            pipes_context=self._injector.data,
            pipes_module=module,
            labels=self._labels(),
        )

    def _labels(self) -> dict[str, str]:
        context = self._injector.context
        labels = {
            "dagster_run": context["run_id"],
            "dagster_job": context["job_name"],
            "dagster_step": _compat.step_key(self._context),
            "dagster_assets": ",".join(context["asset_keys"] or ()),
            "dagster_partition": context["partition_key"],
        }
        return {name: value[:_LABEL_LENGTH] for name, value in labels.items() if value}

    def _run_job(self, client: SiteClient, spec: JobSpec) -> Record:
        call = _compat.next_call(self._context)
        _compat.record_launch(
            self._context,
            client=launch_client(call),
            key=self._key,
            extras={"site": client.site, "call": call, "request": request_hash(spec, self._context.run_id)},
        )
        narrator = Narrator(client.site, self._key, info=self._context.log.info, warning=self._context.log.warning)
        with client.follow(self._key) as following:
            try:
                client.submit(spec, key=self._key)
                for event in following:
                    if isinstance(event, Finished):
                        narrator.state(event.record)
                        return event.record
                    self._take(event, narrator)
            except _INTERRUPTS:
                with _compat.capture_interrupts():
                    self._leave(client, following, narrator)
                raise
        raise RuntimeError(f"following job {self._key} ended without its final record")

    def _take(self, event: Event, narrator: Narrator) -> None:
        match event:
            case Output(start=start, stream=Stream.MESSAGES, data=data):
                self._reader.feed(start, data)
            case Output(stream=stream, data=data):
                if stream is Stream.STDERR:
                    self._stderr.feed(data)
                if self._conduct.forward_stdio:
                    self._forwarder.write(stream, data)
            case StateChanged(record=record) | Finished(record=record):
                self._last = record
                narrator.state(record)
            case Gap():
                narrator.gap(event)
            case Waiting():
                narrator.waiting(event)

    def _leave(self, client: SiteClient, following: Following, narrator: Narrator) -> None:
        """Cancel the job when its run was terminated; otherwise only stop following it."""
        log, job = self._context.log, f"job {self._key} on site {client.site}"
        if not (self._conduct.forward_termination and _compat.ends_for_good(self._context)):
            log.warning(
                "this step was interrupted and stops following its job, but %s goes on. "
                "See it with 'slurmbus logs -f %s', end it with 'slurmbus cancel %s'",
                job,
                self._key,
                self._key,
            )
            return
        log.info("the run was terminated: cancelling %s", job)
        try:
            client.cancel(self._key, reason=f"Dagster run {self._context.run_id} was terminated")
            deadline = time.monotonic() + self._conduct.termination_timeout_seconds
            while (left := deadline - time.monotonic()) > 0:
                event = following.wait(left)
                if event is not None:
                    self._take(event, narrator)
                if isinstance(event, Finished):
                    return
        except SlurmbusError as error:
            log.warning("%s couldn't be cancelled: %s. Do it with 'slurmbus cancel %s'", job, error, self._key)
        else:
            log.warning("%s has been told to end and hasn't yet; its agent goes on trying", job)

    def _fetch_outputs(self, client: SiteClient, record: Record) -> dict[str, Path]:
        if record.outputs_error:
            self._context.log.warning("not all outputs came back: %s", record.outputs_error)
        if not record.outputs:
            return {}
        step = _NOT_IN_A_NAME.sub("_", _compat.step_key(self._context))
        folder = self._request.outputs_dir or (_compat.files_directory(self._context) / "slurmbus" / step / self._key)
        return {
            ref.path: client.download(ref, folder / inside(ref.path, "the agent's outputs")) for ref in record.outputs
        }

    def _whereabouts(self) -> Metadata:
        """Say where to look for the job, for failures that aren't the job's."""
        last = self._last
        return prefixed(
            {
                "key": dg.MetadataValue.text(self._key),
                "job_id": dg.MetadataValue.int(last.job_id) if last and last.job_id is not None else None,
                "state": dg.MetadataValue.text(last.state.value) if last else None,
                "spool": dg.MetadataValue.text(last.spool) if last and last.spool else None,
            }
        )


def launch_client(call: int) -> str:
    """Give the client name in Dagster's launch handle.

    Dagster's own lookup finds the newest handle of a client name, so each call in a step has a name of its own.
    """
    return f"slurmbus:{call}"


def request_hash(spec: JobSpec, run_id: str) -> str:
    """Hash what a job asks for, so that a later attempt can tell whether it asks for the same.

    What differs between attempts by itself is left out: the Pipes context, the labels, and the run's id wherever it
    stands in arguments and environment.
    """
    same = msgspec.structs.replace(spec, pipes_context=None, pipes_module=None, labels={})
    data = msgspec.json.encode(same, order="sorted")
    return hashlib.sha256(data.replace(run_id.encode(), b"{run_id}")).hexdigest()


def _with_accounting(client: SiteClient, record: Record) -> Record:
    """Wait a little for accounting's figures where the runner's own aren't enough."""
    if record.accounting is not None or record.scheduler == "local" or not record.starts:
        return record
    if is_one_task(record) and record.starts[-1].usage is not None:
        return record
    return client.wait_for_accounting(record.key, ACCOUNTING_PATIENCE)


def _agent_version(client: SiteClient) -> str | None:
    try:
        agents = client.heartbeats()
    except SlurmbusError:  # the job is done: an agent or a bus that is away now has no say in that
        return None
    return agents[0].heartbeat.version if agents else None
