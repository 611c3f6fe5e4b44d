"""One ``run()``: from what the user asked for to what became of it. Both clients go through here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import dagster_pipes
import msgspec
from slurmbus.client import Following, SiteClient
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import CommandPlan, FileRef, JobOptions, JobSpec, Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid

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

OUTPUTS_LIMIT = 64 * 1024**2
ACCOUNTING_PATIENCE = 5.0
"""Seconds that a finished job of several tasks waits for accounting's figures; its step is done either way."""
PIPES_MODULE = "dagster_pipes.py"

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one ``run()`` asks for, checked."""

    plan: CommandPlan
    options: JobOptions
    files: tuple[LocalFile, ...] = ()
    outputs: tuple[str, ...] = ()
    outputs_limit: int = OUTPUTS_LIMIT
    outputs_dir: Path | None = None
    env: Mapping[str, str]
    cwd: str | None = None
    work_base: str | None = None
    extras: Mapping[str, Any] | None = None
    ship_pipes_module: bool = True
    code_folder: Path | None = None
    """Whose git commit stands in the metadata."""


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
        self._context = context
        self._connect = connect
        self._request = request
        self._conduct = conduct
        self._key = new_ulid()
        self._reader = RelayedMessageReader(context.log.warning)
        self._injector = RequestContextInjector()
        self._forwarder = Forwarder()
        self._stderr = Tail()
        self._last: Record | None = None

    def run(self) -> CompletedJob:
        """Submit the job, follow it to its end, and give its results.

        Raises:
            dagster.Failure: the job failed, or something between here and the agent did.
        """
        lookup = CommitLookup(self._request.code_folder) if self._request.code_folder else None
        try:
            client = self._connect()
            with dg.open_pipes_session(self._context, self._injector, self._reader, self._request.extras) as session:
                files = [client.upload(file.path, file.target) for file in self._request.files]
                record = self._run_job(client, self._spec(client, files))
                self._reader.finish(record.starts[-1].number if record.starts else 0)
            record = self._with_accounting(client, record)
            if not succeeded(record):
                raise failure(record, self._stderr, self._reader.payload_exception)
            outputs = self._fetch_outputs(client, record)
            took_part = versions(**_agent_version(client))
        except SlurmbusError as error:
            raise from_error(error, self._whereabouts()) from error
        finally:
            commit = lookup.result() if lookup else None
        metadata: Metadata = {
            **success_metadata(record),
            **outputs_metadata(outputs),
            **provenance_metadata(files, commit, took_part),
        }
        return CompletedJob(session, record=record, outputs=outputs, metadata=metadata)

    def _spec(self, client: SiteClient, files: list[FileRef]) -> JobSpec:
        request = self._request
        module = (
            client.upload(Path(dagster_pipes.__file__), PIPES_MODULE, executable=False)
            if request.ship_pipes_module
            else None
        )
        return JobSpec(
            name=_NOT_IN_A_NAME.sub("_", _compat.step_key(self._context))[:_NAME_LENGTH],
            plan=request.plan,
            options=request.options,
            env=dict(request.env),
            cwd=request.cwd,
            work_base=request.work_base,
            files=tuple(files),
            outputs=request.outputs,
            outputs_limit=request.outputs_limit,
            pipes_context=self._injector.data,
            pipes_module=module,
            labels=_labels(self._context),
        )

    def _run_job(self, client: SiteClient, spec: JobSpec) -> Record:
        call = _compat.next_call(self._context)
        _compat.record_launch(
            self._context,
            client=launch_client(call),
            key=self._key,
            extras={"site": client.site, "call": call, "request": request_hash(spec, self._context.run_id)},
        )
        try:
            client.submit(spec, key=self._key)
            with client.follow(self._key) as following:
                return self._follow(client, following)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as interrupt:
            with _compat.capture_interrupts():
                self._leave(client)
            if _compat.has_retry_policy(self._context):
                # Dagster's in-process executor would run an interrupted step with a retry policy again.
                raise dg.Failure(
                    f"the run was interrupted while job {self._key} was under way",
                    metadata=self._whereabouts(),
                    allow_retries=False,
                ) from interrupt
            raise

    def _follow(self, client: SiteClient, following: Following) -> Record:
        narrator = self._narrator(client)
        for event in following:
            if isinstance(event, Finished):
                narrator.state(event.record)
                return event.record
            self._take(event, narrator)
        raise RuntimeError(f"following job {self._key} ended without its final record")

    def _narrator(self, client: SiteClient) -> Narrator:
        return Narrator(client.site, self._key, info=self._context.log.info, warning=self._context.log.warning)

    def _take(self, event: Event, narrator: Narrator) -> None:
        match event:
            case Output(start=start, stream=Stream.MESSAGES, data=data):
                self._reader.feed(start, data)
            case Output(stream=stream, data=data):
                if stream is Stream.STDERR:
                    self._stderr.feed(data)
                if self._conduct.forward_stdio:
                    self._forwarder.write(stream, data)
            case StateChanged(record=record):
                self._last = record
                narrator.state(record)
            case Gap():
                narrator.gap(event)
            case Waiting():
                narrator.waiting(event)

    # ------------------------------------------------------------------ being interrupted

    def _leave(self, client: SiteClient) -> None:
        """Cancel the job when a person ended the run; otherwise only stop following it."""
        if not self._conduct.forward_termination or not _ends_for_good(self._context):
            self._context.log.warning(
                f"this step was interrupted, but nobody terminated its run: job {self._key} on site {client.site} goes "
                f"on. See it with 'slurmbus logs -f {self._key}', end it with 'slurmbus cancel {self._key}'"
            )
            return
        self._context.log.info(f"the run was terminated: cancelling job {self._key} on site {client.site}")
        try:
            client.cancel(self._key, reason=f"Dagster run {self._context.run_id} was terminated")
            ended = self._await_end(client)
        except SlurmbusError as error:
            self._context.log.error(
                f"job {self._key} on site {client.site} couldn't be cancelled: {error}. "
                f"Do it with 'slurmbus cancel {self._key}'"
            )
            return
        if not ended:
            self._context.log.warning(
                f"job {self._key} on site {client.site} has been told to end but hasn't yet; the agent goes on trying"
            )

    def _await_end(self, client: SiteClient) -> bool:
        narrator = self._narrator(client)
        deadline = _compat.monotonic() + self._conduct.termination_timeout_seconds
        return False
