"""One ``run()``: from what the user asked for to what became of it. Both clients go through here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import dagster_pipes
import msgspec

from dagster_slurmbus import _compat, tracing
from dagster_slurmbus.again import NO_POLICY, Ladder, Policy, changes, options_of
from dagster_slurmbus.environments import Telling
from dagster_slurmbus.failures import describe, failure, from_error
from dagster_slurmbus.files import LocalFile
from dagster_slurmbus.messages import RelayedMessageReader, RequestContextInjector
from dagster_slurmbus.metrics import gpus_asked_for, metrics_metadata
from dagster_slurmbus.outcomes import (
    CompletedJob,
    Metadata,
    Tail,
    needs_accounting,
    outputs_metadata,
    prefixed,
    succeeded,
    success_metadata,
)
from dagster_slurmbus.own_metrics import OwnMetrics, own_metadata
from dagster_slurmbus.provenance import CommitLookup, provenance_metadata, versions
from dagster_slurmbus.reattach import (
    Choice,
    Found,
    Launches,
    OnChangedRequest,
    attempt_client,
    choose,
    launch_client,
    request_hash,
    request_parts,
)
from dagster_slurmbus.tables import attempt_row, attempts_metadata
from dagster_slurmbus.values import inside, wrong
from dagster_slurmbus.watching import INTERRUPTS, Conduct, Watching
from slurmbus.client import SiteClient
from slurmbus.environments import AnyEnvironment, Pack, Shipper
from slurmbus_protocol.errors import BlobMissing, RequestExpired, SlurmbusError
from slurmbus_protocol.messages import Environment, FileRef, JobOptions, JobSpec, Record
from slurmbus_protocol.plans import AnyPlan
from slurmbus_protocol.subjects import new_ulid

OUTPUTS_LIMIT = 64 * 1024**2
STREAM_LIMIT = 64 * 1024**2
ACCOUNTING_PATIENCE = 5.0
"""Seconds that a finished job waits for figures that accounting alone has; its step is done either way."""
ACCOUNTING_WANTED = 15.0
"""The same when accounting's figures were asked for: the agent's last of its quick questions is after 10 s."""
PIPES_MODULE = "dagster_pipes.py"
RUN_LABEL = "dagster_run"
DEPLOYMENT_LABEL = "dagster_deployment"
"""Says whose jobs these are: several Dagster deployments may share a site."""

T = TypeVar("T")
Connect = Callable[[str | None], SiteClient]
"""Gives the client of a site; of the configured one for None."""

_LIVE = {"PYTHONUNBUFFERED": "1"}
"""Without it a Python payload keeps its output back until 8 KiB have come together. Source: python(1), ``-u``."""
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_NAME_LENGTH = 64
_LABEL_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one ``run()`` asks for, checked."""

    plan: AnyPlan
    options: JobOptions
    env: Mapping[str, str]
    files: tuple[LocalFile, ...] = ()
    environment: AnyEnvironment | None = None
    outputs: tuple[str, ...] = ()
    outputs_limit: int = OUTPUTS_LIMIT
    stream_limit: int = STREAM_LIMIT
    outputs_dir: Path | None = None
    cwd: str | None = None
    work_word: str | None = None
    """Stands in the plan for the job's own working directory."""
    work_base: str | None = None
    extras: Mapping[str, Any] | None = None
    ship_pipes_module: bool = True
    reattach_key: str | None = None
    again: Policy = NO_POLICY
    metrics: OwnMetrics | None = None
    wait_for_accounting: bool = False
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sealed when the job is submitted. Only the names are a part of what is asked for."""

    @property
    def code_folder(self) -> Path | None:
        """The folder whose git commit is the code's: the first file's, which is the payload where there is one."""
        return self.files[0].path.resolve().parent if self.files else None


@dataclass(frozen=True, slots=True)
class Done:
    """A job that was followed to its end."""

    client: SiteClient
    record: Record
    stderr: Tail
    files: list[FileRef]
    """What it ran, where that is known."""
    reattached: bool = False


class Invocation:
    """One ``run()`` on behalf of one step.

    Args:
        context: of the step.
        connect: gives a site's client; called when everything was checked.
        request: what shall run.
        conduct: how to behave meanwhile.
    """

    def __init__(self, context: _compat.Context, connect: Connect, request: Request, conduct: Conduct) -> None:
        self._context = _compat.op_context(context)
        self._connect = connect
        self._request = request
        self._conduct = conduct
        self._reader = RelayedMessageReader(context.log.warning, partial(_compat.times_logged, self._context))
        self._injector = RequestContextInjector()
        self._call = ""
        self._environment: Environment | None = None
        self._pack: Pack | None = None
        self._base: Mapping[str, str] = {}
        self._ladder = Ladder(request.again)
        self._watching: Watching | None = None
        run_id = new_ulid() if _compat.is_invoked_directly(self._context) else self._context.run_id
        self._trace = tracing.of_call(run_id, _compat.step_key(self._context))
        self._begun = time.monotonic()

    def run(self) -> CompletedJob:
        """Submit the job, or find the one of an earlier attempt; follow it to its end, and give its results.

        Raises:
            dagster.Failure: the job failed, or something between here and the agent did.
        """
        return self._guarded(self._run)

    def _guarded(self, run: Callable[[CommitLookup], T]) -> T:
        """Turn whatever ends a call into what Dagster understands."""
        try:
            with self._trace, CommitLookup(self._request.code_folder) as lookup:
                return run(lookup)
        except SlurmbusError as error:
            raise from_error(error, self._whereabouts()) from error
        except INTERRUPTS as interrupt:
            # Dagster runs an interrupted step that has a retry policy again. After a redeploy that is right: it finds
            # its job. After a Terminate it would submit another one.
            if not (_compat.has_retry_policy(self._context) and _compat.ends_for_good(self._context)):
                raise
            raise dg.Failure("the run was terminated", metadata=self._whereabouts(), allow_retries=False) from interrupt

    def _run(self, lookup: CommitLookup) -> CompletedJob:
        with dg.open_pipes_session(self._context, self._injector, self._reader, self._request.extras) as session:
            client = self._connect(None)
            self._call = launch_client(self._context, self._request.reattach_key)
            self._pack_environment(client)
            launches = Launches.of(self._context)
            files = self._hashed() if launches else self._uploaded(client)
            self._base = self._parts(self._spec(files))
            found = self._found(launches, client.site)
            if found is not None:
                done = self._go_on(client, found, self._parts(self._spec(files)))
            else:
                done = self._submit(client, new_ulid(), files if not launches else None)
            record = self._ended(done)
            while self._climb(record):
                done = self._submit(client, new_ulid())
                record = self._ended(done)
            self._reader.finish(record.starts[-1].number if record.starts else 0)
        figures = {**metrics_metadata(record), **attempts_metadata(self._attempts(record))}
        if not succeeded(record):
            exception, attempts = self._reader.payload_exception, self._ladder.number + 1
            raise failure(record, done.stderr, exception, attempts=attempts, more=figures)
        outputs = self._fetch_outputs(done.client, record)
        metadata: Metadata = {
            **figures,
            **success_metadata(record),
            **outputs_metadata(outputs),
            **prefixed(self._about_this_attempt(record, reattached=done.reattached)),
            **provenance_metadata(
                done.files, lookup.result() if done.files else None, versions(agent=_agent_version(done.client))
            ),
        }
        metadata |= own_metadata(self._request.metrics, record, outputs, metadata, self._context.log.warning)
        return CompletedJob(session, record=record, outputs=outputs, metadata=metadata)

    def _about_this_attempt(self, record: Record, *, reattached: bool) -> dict[str, dg.MetadataValue[Any] | None]:
        """Give the time of this ``run()`` without that from Slurm's yes to the end of the payload."""
        if reattached:
            return {"reattached": dg.MetadataValue.bool(True)}
        if self._ladder.number:
            return {}
        try:
            with_slurm = record.timings["ended"] - record.timings["submitted"]
        except KeyError:
            return {}
        return {"added_seconds": dg.MetadataValue.float(max(0.0, time.monotonic() - self._begun - with_slurm))}

    # ------------------------------------------------------------------ again, with more memory or time

    def _found(self, launches: Launches, site: str) -> Found | None:
        """Give what an earlier attempt of this step launched last for this call."""
        found = launches.take(self._call, site, self._base)
        last = launches.take_again(found.launch.client if found else self._call, self._base)
        if last is None or last.again is None:
            return found
        if self._request.again != NO_POLICY and last.again["base"] == request_hash(self._base):
            self._ladder = Ladder(self._request.again, last.again["before"])
            self._request = replace(self._request, options=options_of(last.again["options"]))
        return last

    def _climb(self, record: Record) -> bool:
        """Ask for more in the next job, when this one ended for the lack of it and that is wanted."""
        options = self._ladder.more(record)
        if options is None:
            return False
        self._context.log.warning(
            "%s. Running it again with %s, as attempt %d",
            describe(record).partition("; ask for ")[0],
            changes(self._request.options, options),
            self._ladder.number + 2,
        )
        self._ladder.climb(attempt_row(self._ladder.number + 1, record))
        self._request = replace(self._request, options=options)
        self._reader.another_job()
        return True

    def _attempts(self, record: Record) -> list[dict[str, Any]]:
        return [*self._ladder.before, attempt_row(self._ladder.number + 1, record)]

    # ------------------------------------------------------------------ a new job

    def _submit(self, client: SiteClient, key: str, files: list[FileRef] | None = None) -> Done:
        """Submit and follow; the launch handle is written before anything is published."""
        self._check_run()
        files = self._uploaded(client) if files is None else files
        plain = self._spec(files)
        parts = self._parts(plain)
        self._ship_environment(client)
        spec = msgspec.structs.replace(
            plain,
            pipes_module=self._pipes_module(client),
            labels=self._labels(),
            trace=self._trace.context(self._call),
            accounting_soon=self._request.wait_for_accounting,
        )
        extras: dict[str, Any] = {"site": client.site, "request": request_hash(parts), "parts": parts}
        if self._ladder.number:
            options = msgspec.to_builtins(self._request.options)
            extras["again"] = {"base": request_hash(self._base), "options": options, "before": self._ladder.before}
        name = attempt_client(self._call, self._ladder.number)
        _compat.record_launch(self._context, client=name, key=key, extras=extras)
        self._watching = watching = self._watch(client, key)
        record = watching.follow(lambda: client.submit(spec, key=key, secret_env=self._request.secret_env))
        return Done(client, record, watching.stderr, files)

    def _check_run(self) -> None:
        over = _compat.status_of_ended_run(self._context)
        if over is not None:  # nobody would see what comes of it
            raise wrong(f"run {self._context.run_id} is over ({over}): this step submits nothing any more")

    def _watch(self, client: SiteClient, key: str) -> Watching:
        return Watching(self._context, client, key, self._conduct, self._reader)

    def _uploaded(self, client: SiteClient) -> list[FileRef]:
        return [client.upload(file.path, file.target) for file in self._request.files]

    def _pack_environment(self, client: SiteClient) -> None:
        """Put the environment together; what it comes to is a part of the request."""
        if self._request.environment is not None:
            shipper = Shipper(client, Telling(self._context.log.info))
            self._environment, self._pack = shipper.wire(self._request.environment)

    def _ship_environment(self, client: SiteClient) -> None:
        """Bring the environment to the bus, unless the site has it."""
        if self._pack is not None:
            Shipper(client, Telling(self._context.log.info)).upload(self._pack)

    def _hashed(self) -> list[FileRef]:
        """Give the files without uploading them: perhaps nothing has to be submitted."""
        return [file.ref() for file in self._request.files]

    def _pipes_module(self, client: SiteClient) -> FileRef | None:
        request = self._request
        if not request.ship_pipes_module or any(file.target == PIPES_MODULE for file in request.files):
            return None
        return client.upload(Path(dagster_pipes.__file__), PIPES_MODULE, executable=False)

    def _spec(self, files: list[FileRef]) -> JobSpec:
        """Put together what the user asks for."""
        request = self._request
        return JobSpec(
            name=_NOT_IN_A_NAME.sub("_", _compat.step_key(self._context))[:_NAME_LENGTH],
            plan=request.plan,
            options=request.options,
            env={**_LIVE, **request.env},
            cwd=request.cwd,
            work_base=request.work_base,
            work_word=request.work_word,
            files=tuple(files),
            outputs=request.outputs,
            outputs_limit=request.outputs_limit,
            stream_limit=request.stream_limit,
            pipes_context=self._injector.data,
            environment=self._environment,
        )

    def _parts(self, spec: JobSpec) -> dict[str, str]:
        return request_parts(
            spec, self._context.run_id, _compat.partition(self._context), sorted(self._request.secret_env)
        )

    def _labels(self) -> dict[str, str]:
        context = self._injector.context
        labels = {
            RUN_LABEL: context["run_id"],
            "dagster_job": context["job_name"],
            "dagster_step": _compat.step_key(self._context),
            "dagster_assets": ",".join(context["asset_keys"] or ()),
            "dagster_partition": " to ".join(_compat.partition(self._context).values()),
            # Jobs that a Terminate leaves alone are nobody else's business either.
            DEPLOYMENT_LABEL: _compat.deployment_id(self._context) if self._conduct.forward_termination else None,
        }
        return {name: value[:_LABEL_LENGTH] for name, value in labels.items() if value}

    # ------------------------------------------------------------------ a job of an earlier attempt

    def _go_on(self, client: SiteClient, found: Found, parts: Mapping[str, str]) -> Done:
        """Do with the job of an earlier attempt what is right; see ``reattach.choose``."""
        same = (found.site, found.request) == (client.site, request_hash(parts))
        on_changed = self._conduct.on_changed_request
        try:
            there = client if found.site == client.site else self._connect(found.site)
            record = there.record(found.key)
        except SlurmbusError as error:
            if found.site == client.site or on_changed is not OnChangedRequest.RESUBMIT:
                raise
            self._context.log.warning(
                "an earlier attempt's job %s went to site %s, which can't be asked from here (%s). It isn't followed "
                "any more; end it with 'slurmbus cancel --site %s %s'",
                found.key,
                found.site,
                error,
                found.site,
                found.key,
            )
            return self._submit(client, new_ulid())
        choice = choose(record, same=same, on_changed=on_changed)
        if choice is Choice.SUBMIT and same and record is not None:
            self._climb(record)
        changes = found.changes(client.site, parts)
        self._say(choice, found, record, changes)
        if choice is Choice.REFUSE:
            raise wrong(
                f"an earlier attempt of this step submitted job {found.key} on site {found.site}, which is "
                f"{record.state if record else 'not known there yet'}, and the request has changed ({changes}); "
                f"on_changed_request='fail' leaves the choice to you: set it to 'resubmit' or 'reattach', or "
                "re-execute all steps"
            )
        if choice is Choice.FOLLOW and record is not None:
            return self._reattach(there, found, record, self._hashed() if same else [])
        if choice is Choice.REPEAT:
            done = self._submit(there, found.key)
            if done.record.error_code != RequestExpired.code:
                return done
        if choice is Choice.REPLACE:
            self._watch(there, found.key).end(f"Dagster run {self._context.run_id} asks for another job instead")
        return self._submit(client, new_ulid())

    def _say(self, choice: Choice, found: Found, record: Record | None, changes: str) -> None:
        """Tell what becomes of the job; that it is followed is told where it is."""
        log, job = self._context.log, f"job {found.key} of an earlier attempt"
        if changes and choice in {Choice.FOLLOW, Choice.REPEAT}:
            log.warning(
                "the request has changed (%s); %s is followed all the same, as on_changed_request says", changes, job
            )
        elif choice is Choice.REPLACE and record is not None and record.cancel is not None:
            log.info("%s is being cancelled: another one is submitted when it has ended", job)
        elif choice is Choice.REPLACE:
            log.warning("the request has changed (%s): %s is cancelled, another one follows its end", changes, job)
        elif choice is Choice.SUBMIT and record is not None and succeeded(record):
            log.warning("the request has changed (%s): %s has completed, another one is submitted", changes, job)
        elif choice is Choice.SUBMIT and record is not None:
            log.info("%s is %s: another one is submitted", job, record.state)

    def _reattach(self, client: SiteClient, found: Found, record: Record, files: list[FileRef]) -> Done:
        _compat.record_reattach(self._context, found.launch, client=self._call)
        self._watching = watching = self._watch(client, found.key)
        whose = "this run" if found.launch.run_id == self._context.run_id else f"run {found.launch.run_id}"
        watching.narrator.found(record, what=f"which an earlier attempt in {whose} submitted")
        return Done(client, watching.follow(), watching.stderr, files, reattached=True)

    # ------------------------------------------------------------------ what came of it

    def _fetch_outputs(self, client: SiteClient, record: Record, task: str = "") -> dict[str, Path]:
        """Fetch what came back; of a task of an array, into a folder of its own."""
        if record.outputs_error:
            whose = f" of task {task!r}" if task else ""
            self._context.log.warning("not all outputs%s came back: %s", whose, record.outputs_error)
        if not record.outputs:
            return {}
        step = _NOT_IN_A_NAME.sub("_", _compat.step_key(self._context))
        own = _compat.files_directory(self._context) / "slurmbus" / step / record.key
        folder = self._request.outputs_dir or own
        if task:
            folder = folder / (_NOT_IN_A_NAME.sub("_", task)[:_NAME_LENGTH] or str(record.task))
        try:
            return {
                ref.path: client.download(ref, folder / inside(ref.path, "the agent's outputs"))
                for ref in record.outputs
            }
        except BlobMissing as error:
            raise wrong(
                f"job {record.key} has completed, but the bus no longer holds its outputs ({error.message}): "
                "re-execute all steps to run it again"
            ) from error

    def _ended(self, done: Done) -> Record:
        """Give the final record of a job, with its figures, and let its spans be recorded."""
        record = self._with_accounting(done.client, done.record)
        self._trace.ended(record)
        return record

    def _wants_accounting(self, record: Record, ladder: Ladder) -> bool:
        """Tell whether accounting was asked for, or has what the runner couldn't see or the next attempt needs."""
        if record.accounting is not None or record.scheduler == "local" or not record.starts:
            return False
        climbing = self._request.again.of(record.state) is not None and ladder.more(record) is None
        asked = self._request.wait_for_accounting
        return asked or climbing or needs_accounting(record) or bool(gpus_asked_for(record))

    def _with_accounting(self, client: SiteClient, record: Record) -> Record:
        """Wait a little for accounting's figures where they were asked for, or the runner's own aren't enough."""
        if not self._wants_accounting(record, self._ladder):
            return record
        wanted = self._request.wait_for_accounting
        try:
            return client.wait_for_accounting(record.key, ACCOUNTING_WANTED if wanted else ACCOUNTING_PATIENCE)
        except SlurmbusError as error:  # the job has ended, whatever becomes of its figures
            self._context.log.warning("accounting's figures of job %s can't be had: %s", record.key, error)
            return record

    def _whereabouts(self) -> Metadata:
        """Say where to look for the job, for failures that aren't the job's."""
        watching = self._watching
        if watching is None:
            return {}
        last = watching.last
        return prefixed(
            {
                "key": dg.MetadataValue.text(watching.key),
                "job_id": dg.MetadataValue.int(last.job_id) if last and last.job_id is not None else None,
                "state": dg.MetadataValue.text(last.state.value) if last else None,
                "spool": dg.MetadataValue.text(last.spool) if last and last.spool else None,
            }
        )


def _agent_version(client: SiteClient) -> str | None:
    try:
        agents = client.heartbeats()
    except SlurmbusError:  # the job is done: an agent or a bus that is away now has no say in that
        return None
    return agents[0].heartbeat.version if agents else None
