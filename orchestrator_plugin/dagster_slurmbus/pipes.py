"""A drop-in for ``dagster.PipesSubprocessClient`` whose commands run on a site."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import dagster as dg

from dagster_slurmbus._compat import Context, TreatAsResourceParam
from dagster_slurmbus.again import MoreMemory, MoreTime, Policy
from dagster_slurmbus.array_invocation import ArrayInvocation, ArrayRequest, OnTaskFailure
from dagster_slurmbus.array_results import CompletedArray
from dagster_slurmbus.array_tasks import Task, numbered
from dagster_slurmbus.bus import BusResource, local_client
from dagster_slurmbus.calls import CommandCall
from dagster_slurmbus.files import Files, StrPath, local_files, without_duplicates
from dagster_slurmbus.invocation import OUTPUTS_LIMIT, STREAM_LIMIT, Invocation, Request
from dagster_slurmbus.option_layers import CallOptions
from dagster_slurmbus.outcomes import CompletedJob
from dagster_slurmbus.own_metrics import OwnMetrics
from dagster_slurmbus.queue_config import Options
from dagster_slurmbus.reattach import OnChangedRequest
from dagster_slurmbus.run_config import SlurmRunConfig
from dagster_slurmbus.values import absolute, inside, resolved, secrets, wrong
from dagster_slurmbus.values import environment as variables
from dagster_slurmbus.watching import Conduct
from slurmbus.client import SiteClient
from slurmbus.environments import AnyEnvironment
from slurmbus.local import LOCAL_SITE
from slurmbus.secret_env import SecretEnv
from slurmbus_protocol.messages import CommandPlan


class PipesSlurmClient(dg.PipesClient, TreatAsResourceParam):
    """Runs commands as jobs of a site and reports what they say through Dagster Pipes.

    A plain object: making one opens nothing and reads no environment, and it may be pickled and forked.

    Args:
        env: environment variables of every job; ``dg.EnvVar`` is resolved when a job is made.
        cwd: an absolute folder on the site to run in; by default each job has a working directory of its own.
        context_injector: must be left out, since the request carries the context.
        message_reader: must be left out, since the agent relays the messages.
        forward_termination: cancel the job when a person terminates the run.
        forward_stdio: write the job's stdout and stderr to this process's own, which Dagster captures.
        termination_timeout_seconds: how long a terminated run waits for its job's end.
        site: whose agent takes the jobs.
        bus: how to reach it; by default what ``SLURMBUS_…`` variables and this machine's sites say.
        queue: what every job asks Slurm for; ``run(options=…)`` goes over it.
        remote_base: an absolute folder on the site under which working directories are made; by default the spool.
        on_changed_request: what a retried step does with the job of an earlier attempt when it asks for another one
            now (other code, other resources): ``resubmit`` ends that job and submits a new one, ``reattach`` follows
            it all the same, ``fail`` fails the step.
        secret_env: names of variables of this process that every job gets sealed; their values are read when a job is
            made, and ``run(secret_env=…)`` goes over them.
    """

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        context_injector: dg.PipesContextInjector | None = None,
        message_reader: dg.PipesMessageReader | None = None,
        forward_termination: bool = True,
        forward_stdio: bool = True,
        termination_timeout_seconds: float = 20,
        *,
        site: str | None = None,
        bus: BusResource | None = None,
        queue: Options | None = None,
        remote_base: str | None = None,
        on_changed_request: str = "resubmit",
        secret_env: Collection[str] | None = None,
    ) -> None:
        for name, given in (("context_injector", context_injector), ("message_reader", message_reader)):
            if given is not None:
                raise ValueError(
                    f"PipesSlurmClient carries Pipes' context and messages over the bus by itself and can't use "
                    f"{name}={type(given).__name__}(…): leave it out"
                )
        self.env = dict(env or {})
        self.cwd = cwd
        self.conduct = Conduct(
            forward_stdio=forward_stdio,
            forward_termination=forward_termination,
            termination_timeout_seconds=termination_timeout_seconds,
            on_changed_request=OnChangedRequest.of(on_changed_request),
        )
        self.site = site
        self.bus = bus
        self.queue = queue
        self.remote_base = remote_base
        self.secret_env = secret_env
        self._home: Path | None = None
        self._local = False

    @classmethod
    def local(
        cls,
        *,
        home: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_changed_request: str = "resubmit",
        secret_env: Collection[str] | None = None,
    ) -> Self:
        """Give a client that runs jobs as processes of this machine, with nothing else to configure.

        Args:
            home: where the local helper keeps its things; by default this user's own folder.
            env: environment variables of every job.
            cwd: an absolute folder to run in.
            on_changed_request: as above.
            secret_env: as above.
        """
        client = cls(env=env, cwd=cwd, on_changed_request=on_changed_request, secret_env=secret_env)
        client._local = True
        client._home = Path(home) if home is not None else None
        return client

    def run(  # type: ignore[override]  # PipesClient.run takes **kwargs so that clients can name their own
        self,
        *,
        context: Context,
        extras: Mapping[str, Any] | None = None,
        command: str | Sequence[StrPath],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        files: Files | None = None,
        outputs: Sequence[str] = (),
        outputs_dir: StrPath | None = None,
        outputs_limit: int = OUTPUTS_LIMIT,
        stream_limit: int = STREAM_LIMIT,
        options: Options | None = None,
        extra_slurm_opts: Mapping[str, Any] | None = None,
        run_config: SlurmRunConfig | None = None,
        environment: AnyEnvironment | None = None,
        ship_pipes_module: bool = True,
        reattach_key: str | None = None,
        on_out_of_memory: MoreMemory | None = None,
        on_timeout: MoreTime | None = None,
        metrics: OwnMetrics | None = None,
        wait_for_accounting: bool = False,
        secret_env: SecretEnv | None = None,
    ) -> CompletedJob:
        """Run a command as one job and wait for its end; when this step is a retry, go on with the job that it has.

        Args:
            context: of the executing step.
            extras: what the payload finds as ``context.extras``; must be JSON.
            command: the program and its arguments. A text is taken apart as a shell would (``shlex.split``), but no
                shell runs it. ``python3`` and ``python`` are those of the site; nothing else is touched.
            env: environment variables, over the client's.
            cwd: an absolute folder on the site, instead of the client's; ``files`` and ``outputs`` stay in the job's
                own folder, which ``SLURMBUS_WORK_DIR`` names.
            files: files that go into the job's working directory.
            outputs: files in the working directory that come back.
            outputs_dir: the folder here that they come into; by default one of the run in Dagster's storage.
            outputs_limit: how many bytes may come back in all.
            stream_limit: bytes of stdout and of stderr that each start shows in full; the rest stays on the site.
            options: what this job asks Slurm for, over the client's ``queue`` and the asset's metadata.
            extra_slurm_opts: the same under sbatch's names; what isn't known here is handed to sbatch as it is.
            run_config: what the launchpad says, over everything else.
            environment: what the command runs in; an installed one by its name or hash.
            ship_pipes_module: put the ``dagster_pipes`` module beside the payload.
            reattach_key: a name of this call within the step, by which a retry finds its job; by default calls are told
                apart by what they ask for and by their order.
            on_out_of_memory: run a job that ran out of memory again, with more of it; else its step fails.
            on_timeout: run a job that reached its time limit again, with a longer one; else its step fails.
            metrics: called with the finished job; what it returns becomes further metadata. An error in it is told, and
                fails nothing.
            wait_for_accounting: come back when Slurm's accounting has the job, too, about a second later: for the table
                of steps, energy, and what else only accounting knows.
            secret_env: variables of the job that nobody but the job and the site's agent can read: the names of
                variables of this process, or a mapping from names to values, over the client's. They stand in no log,
                record or metadata.

        Raises:
            dagster.Failure: the job failed or couldn't be submitted; the message says why and what to do.
        """
        request = self._prepared(
            context,
            command,
            extras=extras,
            env=env,
            cwd=cwd,
            files=files,
            outputs=outputs,
            outputs_dir=outputs_dir,
            outputs_limit=outputs_limit,
            stream_limit=stream_limit,
            options=options,
            extra_slurm_opts=extra_slurm_opts,
            run_config=run_config,
            environment=environment,
            ship_pipes_module=ship_pipes_module,
            reattach_key=reattach_key,
            on_out_of_memory=on_out_of_memory,
            on_timeout=on_timeout,
            metrics=metrics,
            wait_for_accounting=wait_for_accounting,
            secret_env=secret_env,
        )
        return self.invoke(context, request)

    def run_array(
        self,
        *,
        context: Context,
        command: str | Sequence[StrPath],
        tasks: Iterable[Task],
        throttle: int | None = None,
        on_task_failure: OnTaskFailure = "raise",
        only: Collection[str | int] | None = None,
        **call: Unpack[CommandCall],
    ) -> CompletedArray:
        """Run a command once for each task, as one job array, and wait for the end of all.

        When this step is a retry, it goes on with the tasks that run or have succeeded, and runs the failed ones again.

        Args:
            context: of the executing step.
            command: the program and the arguments that all tasks have; each task's ``args`` follow.
            tasks: the tasks: ``ArrayTask(…)``, the same as mappings, or texts (a name that is also the only argument);
                for the partitions of a run see ``partition_tasks``.
            throttle: how many tasks may run at the same time.
            on_task_failure: ``raise`` lets all tasks end, then fails the step and tells each failed task; ``cancel``
                ends the others as soon as one has failed; ``continue`` leaves it to the caller to look at ``failed``.
            only: names or numbers of the tasks to run; the others are left out.
            call: as for ``run``.

        Raises:
            dagster.Failure: a task failed or couldn't be submitted; a retry of the step runs the failed ones again.
        """
        array = ArrayRequest(tasks=numbered(tasks, only), throttle=throttle, on_task_failure=on_task_failure)
        return self.invoke_array(context, self._prepared(context, command, **call), array)

    def _prepared(
        self,
        context: Context,
        command: str | Sequence[StrPath],
        *,
        extras: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        files: Files | None = None,
        outputs: Sequence[str] = (),
        outputs_dir: StrPath | None = None,
        outputs_limit: int = OUTPUTS_LIMIT,
        stream_limit: int = STREAM_LIMIT,
        options: Options | None = None,
        extra_slurm_opts: Mapping[str, Any] | None = None,
        run_config: SlurmRunConfig | None = None,
        environment: AnyEnvironment | None = None,
        ship_pipes_module: bool = True,
        reattach_key: str | None = None,
        on_out_of_memory: MoreMemory | None = None,
        on_timeout: MoreTime | None = None,
        metrics: OwnMetrics | None = None,
        wait_for_accounting: bool = False,
        secret_env: SecretEnv | None = None,
    ) -> Request:
        """Check what was asked for, and put it together; the arguments are those of ``run``."""
        argv = _argv(command)
        if not self._local and sys.executable in argv:
            context.log.warning(
                "the command names this machine's Python, %s; on the site that is 'python3'", sys.executable
            )
        call = CallOptions(options=options, extra_slurm_opts=extra_slurm_opts, run_config=run_config, cwd=cwd)
        asked = call.over(self.queue, context, self._site(), resolved(self.cwd, "cwd"))
        return Request(
            plan=CommandPlan(argv=argv),
            options=asked.options,
            environment=environment,
            env={**variables(self.env, "env"), **variables(env, "env")},
            files=without_duplicates(local_files(files, "files")),
            outputs=tuple(inside(output, "outputs") for output in outputs),
            outputs_limit=outputs_limit,
            stream_limit=stream_limit,
            outputs_dir=Path(outputs_dir) if outputs_dir is not None else None,
            cwd=asked.cwd,
            work_base=absolute(resolved(self.remote_base, "remote_base"), "remote_base"),
            extras=extras,
            ship_pipes_module=ship_pipes_module,
            reattach_key=reattach_key,
            again=Policy(on_out_of_memory=on_out_of_memory, on_timeout=on_timeout),
            metrics=metrics,
            wait_for_accounting=wait_for_accounting,
            secret_env={**secrets(self.secret_env), **secrets(secret_env)},
        )

    def invoke(self, context: Context, request: Request) -> CompletedJob:
        """Run what was already put together; ``run`` and ``ComputeResource.run`` end here."""
        return Invocation(context, self.connect, request, self.conduct).run()

    def invoke_array(self, context: Context, request: Request, array: ArrayRequest) -> CompletedArray:
        """Run an array that was already put together; ``run_array`` of both ends here."""
        return ArrayInvocation(context, self.connect, request, self.conduct, array).run_array()

    def connect(self, site: str | None = None) -> SiteClient:
        """Give the client of a site, by default the configured one; the bus is connected to at its first use.

        Args:
            site: another one, to which an earlier attempt submitted.
        """
        if self._local if site is None else site == LOCAL_SITE:
            return local_client(self._home)
        site = site or self._site()
        if not site:
            raise wrong(
                "PipesSlurmClient: site isn't set; name the site whose agent takes the jobs, "
                "or use PipesSlurmClient.local() for this machine"
            )
        return (self.bus or BusResource.from_env()).site_client(site)

    def _site(self) -> str | None:
        """Give the name of the configured site."""
        named: str | None = LOCAL_SITE if self._local else resolved(self.site, "site")
        return named


def _argv(command: str | Sequence[StrPath]) -> tuple[str, ...]:
    if isinstance(command, str):
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise wrong(f"command: {command!r} can't be taken apart: {error}") from error
    else:
        parts = []
        for part in command:
            if not isinstance(part, str | os.PathLike):
                raise wrong(f"command: {part!r} is {type(part).__name__}, not text: write {str(part)!r}")
            parts.append(os.fspath(part))
    if not parts:
        raise wrong("command is empty; nothing was submitted")
    return tuple(parts)
