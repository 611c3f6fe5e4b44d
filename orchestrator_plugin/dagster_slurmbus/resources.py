"""The resources that users configure: where payloads run and what they ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Unpack

import dagster as dg
from pydantic import Field, field_validator

from dagster_slurmbus._compat import Context, is_env_var
from dagster_slurmbus.again import MoreMemory, MoreTime, Policy
from dagster_slurmbus.array_invocation import ArrayRequest, OnTaskFailure
from dagster_slurmbus.array_results import CompletedArray
from dagster_slurmbus.array_tasks import Task, numbered
from dagster_slurmbus.bus import BusResource
from dagster_slurmbus.calls import PayloadCall
from dagster_slurmbus.environments import EnvironmentConfig, as_config
from dagster_slurmbus.files import Files, LocalFile, StrPath, local_file, local_files, without_duplicates
from dagster_slurmbus.frameworks import launcher_of_call
from dagster_slurmbus.invocation import OUTPUTS_LIMIT, STREAM_LIMIT, Request
from dagster_slurmbus.launchers import ComputeLauncher
from dagster_slurmbus.option_layers import CallOptions
from dagster_slurmbus.outcomes import CompletedJob
from dagster_slurmbus.own_metrics import OwnMetrics
from dagster_slurmbus.pipes import PipesSlurmClient
from dagster_slurmbus.queue_config import Options, SlurmQueueConfig
from dagster_slurmbus.reattach import OnChangedRequest
from dagster_slurmbus.run_config import SlurmRunConfig
from dagster_slurmbus.sites import (
    AGAIN_ON_A_SITE,
    ENV_OF_A_SITE,
    ENVIRONMENT_OF_A_SITE,
    LAUNCHER_OF_A_SITE,
    SlurmSite,
    chosen_site,
)
from dagster_slurmbus.values import absolute, inside, known_now, resolved, secrets, wrong
from dagster_slurmbus.values import environment as variables
from slurmbus.environments import AnyEnvironment
from slurmbus.local import LOCAL_SITE
from slurmbus.secret_env import SecretEnv
from slurmbus_protocol.errors import InvalidName
from slurmbus_protocol.subjects import check_token

WORK_WORD = "/__slurmbus_work_dir__"
"""Stands for the job's own working directory, which only the agent knows; launchers take it for an absolute path."""


class ExecutionMode(StrEnum):
    """Where payloads run."""

    LOCAL = "local"
    """As processes of this machine."""
    SLURM = "slurm"
    """As batch jobs of a site."""
    SLURM_SESSION = "slurm-session"
    """As steps inside an allocation of a site. Not in this version."""
    SLURM_HETJOB = "slurm-hetjob"
    """As components of one heterogeneous job. Not in this version."""


_OFFERED = (ExecutionMode.LOCAL, ExecutionMode.SLURM)


class SlurmResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic over what a resource turns into
    """A site: one user's access to one cluster."""

    site: str = Field(description="The site's name, as its agent was started with: leonardo-alice.")
    bus: BusResource | None = Field(default=None, description="How to reach the bus.")
    queue: SlurmQueueConfig = Field(
        default_factory=SlurmQueueConfig, description="What every job asks Slurm for, unless its call says otherwise."
    )
    remote_base: str | None = Field(
        default=None,
        description="An absolute folder on the site under which working directories are made; else the agent's spool.",
    )
    env: dict[str, str] = Field(default_factory=dict, description=ENV_OF_A_SITE)
    secret_env: list[str] = Field(
        default_factory=list,
        description="Names of variables of this process that every job gets, sealed so that only the job and the "
        "site's agent can read their values.",
    )
    environment: EnvironmentConfig | None = Field(default_factory=lambda: None, description=ENVIRONMENT_OF_A_SITE)
    default_launcher: ComputeLauncher | None = Field(default=None, description=LAUNCHER_OF_A_SITE)
    on_out_of_memory: MoreMemory | None = Field(default=None, description=AGAIN_ON_A_SITE)
    on_timeout: MoreTime | None = Field(default=None, description=AGAIN_ON_A_SITE)

    @field_validator("environment", mode="before")
    @classmethod
    def _environment_is_configuration(cls, value: Any) -> Any:
        return as_config(value)

    @field_validator("env", mode="before")
    @classmethod
    def _env_is_known_now(cls, value: Any) -> Any:
        return known_now(value)

    @field_validator("site", mode="before")
    @classmethod
    def _site_is_a_token(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_env_var(value):
            try:
                check_token(value, "site")
            except InvalidName as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("remote_base", mode="before")
    @classmethod
    def _base_is_absolute(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_env_var(value) and not value.startswith("/"):
            raise ValueError(f"{value!r} isn't absolute: name a folder on the site, e.g. /home/alice/dagster_runs")
        return value

    def pipes_client(
        self,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        forward_termination: bool = True,
        forward_stdio: bool = True,
        termination_timeout_seconds: float = 20,
        on_changed_request: str = "resubmit",
    ) -> PipesSlurmClient:
        """Give a Pipes client of this site, for commands instead of payloads; its arguments are explained there."""
        return PipesSlurmClient(
            env={**self.env, **(env or {})},
            cwd=cwd,
            forward_termination=forward_termination,
            forward_stdio=forward_stdio,
            termination_timeout_seconds=termination_timeout_seconds,
            site=self.site,
            bus=self.bus,
            queue=self.queue,
            remote_base=self.remote_base,
            on_changed_request=on_changed_request,
            secret_env=self.secret_env,
        )


class ComputeResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic over what a resource turns into
    """Runs payloads where ``mode`` says: the same asset on a laptop, in CI and on a cluster."""

    # Defaults are made by factories: when the launchpad configures a part of a resource, Dagster puts a plain default
    # over what the code says.
    mode: str = Field(default_factory=lambda: ExecutionMode.LOCAL.value, description="local or slurm.")
    slurm: SlurmResource | None = Field(default=None, description="The site; needed when mode is slurm.")
    other_sites: list[SlurmSite] = Field(
        default_factory=list, description="Further sites on the same bus, for when the first one is full."
    )
    site: str | None = Field(
        default_factory=lambda: None,
        description="Which of the sites runs the jobs; the first one (slurm) when nothing is said. "
        "A run's tag slurmbus/site goes over it.",
    )
    local_env: dict[str, str] = Field(
        default_factory=dict, description="What env is for a site, for jobs on this machine: DATA_DIR=data."
    )
    default_launcher: ComputeLauncher | None = Field(
        default=None, description="How payloads are started; BashLauncher when nothing is said."
    )
    environment: EnvironmentConfig | None = Field(
        default_factory=lambda: None,
        description="What payloads run in: UvLock('.'), SiteFolder('/opt/envs/x'), or the name of an installed one.",
    )
    on_changed_request: str = Field(
        default_factory=lambda: OnChangedRequest.RESUBMIT.value,
        description="What a retried step does with the job of an earlier attempt when it asks for another one now "
        "(other code, other resources): resubmit (end it and submit anew), reattach (follow it all the same) or fail.",
    )

    on_out_of_memory: MoreMemory | None = Field(
        default=None, description="Run a job that ran out of memory again, with more of it; else its step fails."
    )
    on_timeout: MoreTime | None = Field(
        default=None, description="Run a job that reached its time limit again, with a longer one; else its step fails."
    )
    wait_for_accounting: bool = Field(
        default_factory=lambda: False,
        description="Come back from run() when Slurm's accounting has the job, too, about a second later: for the "
        "table of steps, energy, and what else only accounting knows.",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _mode_is_offered(cls, value: Any) -> Any:
        if is_env_var(value):
            return value
        try:
            mode = ExecutionMode(value)
        except ValueError:
            raise ValueError(f"{value!r} is no mode: use {' or '.join(_OFFERED)}") from None
        if mode not in _OFFERED:
            raise ValueError(f"{mode.value!r} isn't in this version: use {' or '.join(_OFFERED)}")
        return mode.value

    @field_validator("local_env", mode="before")
    @classmethod
    def _env_is_known_now(cls, value: Any) -> Any:
        return known_now(value)

    @field_validator("environment", mode="before")
    @classmethod
    def _environment_is_configuration(cls, value: Any) -> Any:
        return as_config(value)

    @field_validator("on_changed_request", mode="before")
    @classmethod
    def _change_is_handled(cls, value: Any) -> Any:
        return value if is_env_var(value) else OnChangedRequest.of(value).value

    def run(
        self,
        *,
        context: Context,
        payload_path: StrPath | None = None,
        remote_payload_path: str | None = None,
        payload_args: Sequence[str] = (),
        extra_files: Files | None = None,
        extra_env: Mapping[str, str] | None = None,
        extras: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        outputs_dir: StrPath | None = None,
        outputs_limit: int = OUTPUTS_LIMIT,
        stream_limit: int = STREAM_LIMIT,
        options: Options | None = None,
        extra_slurm_opts: Mapping[str, Any] | None = None,
        resource_requirements: Mapping[str, Any] | None = None,
        run_config: SlurmRunConfig | None = None,
        launcher: ComputeLauncher | None = None,
        environment: AnyEnvironment | None = None,
        ship_pipes_module: bool = True,
        reattach_key: str | None = None,
        on_out_of_memory: MoreMemory | None = None,
        on_timeout: MoreTime | None = None,
        metrics: OwnMetrics | None = None,
        wait_for_accounting: bool | None = None,
        secret_env: SecretEnv | None = None,
        cwd: str | None = None,
    ) -> CompletedJob:
        """Run a payload as one job and wait for its end; when this step is a retry, go on with the job that it has.

        Args:
            context: of the executing step.
            payload_path: the program here; it travels into the job's working directory.
            remote_payload_path: instead, the absolute path of a program that is on the site already.
            payload_args: its arguments.
            extra_files: files that go along: paths, or a mapping from the name there to the path here.
            extra_env: environment variables of the job.
            extras: what the payload finds as ``context.extras``; must be JSON.
            outputs: files in the working directory that come back; their paths here stand on the result.
            outputs_dir: the folder here that they come into; by default one of the run in Dagster's storage.
            outputs_limit: how many bytes may come back in all.
            stream_limit: bytes of stdout and of stderr that each start shows in full; the rest stays on the site.
            options: what this job asks Slurm for, over the resource's queue and the asset's metadata.
            extra_slurm_opts: the same under sbatch's names; what isn't known here is handed to sbatch as it is.
            resource_requirements: the same in few words, for each node; the framework chooses the launcher, which is
                the default one if that is for this framework: ``{"framework": "ray", "cpus": 32, "gpus": 1,
                "memory_gb": 120}``.
            run_config: what the launchpad says, over everything else.
            launcher: instead of the resource's default one; of the same class, it goes over that one's settings.
            environment: instead of the resource's own; an installed one by its name or hash.
            ship_pipes_module: put the ``dagster_pipes`` module beside the payload.
            reattach_key: a name of this call within the step, by which a retry finds its job; by default calls are told
                apart by what they ask for and by their order.
            on_out_of_memory: instead of the resource's.
            on_timeout: instead of the resource's.
            metrics: called with the finished job; what it returns becomes further metadata. An error in it is told, and
                fails nothing.
            wait_for_accounting: instead of the resource's.
            secret_env: variables of the job that nobody but the job and the site's agent can read: the names of
                variables of this process, or a mapping from names to values. They stand in no log, record or metadata.
            cwd: an absolute folder to run in, instead of the job's own: one that is there where the job runs, such as
                ``compute.site_env(context)["DATA_DIR"]``. The payload is found from there; ``extra_files`` and
                ``outputs`` stay in the job's own folder, which ``SLURMBUS_WORK_DIR`` names.

        Raises:
            dagster.Failure: the job failed or couldn't be submitted; the message says why and what to do.
        """
        client, request = self._prepared(
            context,
            payload_path,
            remote_payload_path=remote_payload_path,
            payload_args=payload_args,
            extra_files=extra_files,
            extra_env=extra_env,
            extras=extras,
            outputs=outputs,
            outputs_dir=outputs_dir,
            outputs_limit=outputs_limit,
            stream_limit=stream_limit,
            options=options,
            extra_slurm_opts=extra_slurm_opts,
            resource_requirements=resource_requirements,
            run_config=run_config,
            launcher=launcher,
            environment=environment,
            ship_pipes_module=ship_pipes_module,
            reattach_key=reattach_key,
            on_out_of_memory=on_out_of_memory,
            on_timeout=on_timeout,
            metrics=metrics,
            wait_for_accounting=wait_for_accounting,
            secret_env=secret_env,
            cwd=cwd,
        )
        return client.invoke(context, request)

    def run_array(
        self,
        *,
        context: Context,
        payload_path: StrPath | None = None,
        tasks: Iterable[Task],
        throttle: int | None = None,
        on_task_failure: OnTaskFailure = "raise",
        only: Collection[str | int] | None = None,
        **call: Unpack[PayloadCall],
    ) -> CompletedArray:
        """Run a payload once for each task, as one job array, and wait for the end of all.

        When this step is a retry, it goes on with the tasks that run or have succeeded, and runs the failed ones again.

        Args:
            context: of the executing step.
            payload_path: the program here; it travels once, whatever the number of tasks.
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
        client, request = self._prepared(context, payload_path, **call)
        return client.invoke_array(context, request, array)

    def _prepared(
        self,
        context: Context,
        payload_path: StrPath | None,
        *,
        remote_payload_path: str | None = None,
        payload_args: Sequence[str] = (),
        extra_files: Files | None = None,
        extra_env: Mapping[str, str] | None = None,
        extras: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        outputs_dir: StrPath | None = None,
        outputs_limit: int = OUTPUTS_LIMIT,
        stream_limit: int = STREAM_LIMIT,
        options: Options | None = None,
        extra_slurm_opts: Mapping[str, Any] | None = None,
        resource_requirements: Mapping[str, Any] | None = None,
        run_config: SlurmRunConfig | None = None,
        launcher: ComputeLauncher | None = None,
        environment: AnyEnvironment | None = None,
        ship_pipes_module: bool = True,
        reattach_key: str | None = None,
        on_out_of_memory: MoreMemory | None = None,
        on_timeout: MoreTime | None = None,
        metrics: OwnMetrics | None = None,
        wait_for_accounting: bool | None = None,
        secret_env: SecretEnv | None = None,
        cwd: str | None = None,
    ) -> tuple[PipesSlurmClient, Request]:
        """Check what was asked for, and put it together; the arguments are those of ``run``."""
        slurm = self.chosen(context)
        client = self.pipes_client(context)
        own = self._of_the_site(slurm)
        payload, program = _payload(payload_path, remote_payload_path)
        call = CallOptions(
            options=options,
            extra_slurm_opts=extra_slurm_opts,
            resource_requirements=resource_requirements,
            run_config=run_config,
            cwd=cwd,
        )
        asked = call.over(slurm.queue if slurm else None, context, resolved(own.site, "slurm.site"))
        launcher = launcher_of_call(launcher, call.framework, own.default_launcher or self.default_launcher)
        for file in payload:
            launcher.check(file.path)
        is_elsewhere = bool(payload) and asked.cwd is not None
        request = Request(
            plan=launcher.plan(f"{WORK_WORD}/{program}" if is_elsewhere else program, tuple(payload_args)),
            options=asked.options,
            env={**self.site_env(context), **variables(extra_env, "extra_env")},
            files=without_duplicates([*payload, *local_files(extra_files, "extra_files")]),
            environment=environment if environment is not None else _made(own.environment or self.environment),
            outputs=tuple(inside(output, "outputs") for output in outputs),
            outputs_limit=outputs_limit,
            stream_limit=stream_limit,
            outputs_dir=Path(outputs_dir) if outputs_dir is not None else None,
            cwd=asked.cwd,
            work_word=WORK_WORD if is_elsewhere else None,
            work_base=absolute(resolved(client.remote_base, "slurm.remote_base"), "slurm.remote_base"),
            extras=extras,
            ship_pipes_module=ship_pipes_module,
            reattach_key=reattach_key,
            again=Policy(
                on_out_of_memory=on_out_of_memory or own.on_out_of_memory or self.on_out_of_memory,
                on_timeout=on_timeout or own.on_timeout or self.on_timeout,
            ),
            metrics=metrics,
            wait_for_accounting=self.wait_for_accounting if wait_for_accounting is None else wait_for_accounting,
            secret_env={**secrets(slurm.secret_env if slurm else None), **secrets(secret_env)},
        )
        return client, request

    def _of_the_site(self, slurm: SlurmResource | None) -> SlurmResource:
        """Give what the site has of its own; this machine has nothing of that."""
        return slurm if slurm is not None and self.mode != ExecutionMode.LOCAL else SlurmResource(site=LOCAL_SITE)

    def pipes_client(self, context: Context | None = None) -> PipesSlurmClient:
        """Give the Pipes client behind the mode; with a context also the run's own choice of a site counts."""
        if self.mode == ExecutionMode.LOCAL:
            return PipesSlurmClient.local(
                env=self.local_env,
                on_changed_request=self.on_changed_request,
                secret_env=self.slurm.secret_env if self.slurm else None,
            )
        slurm = self.chosen(context)
        if slurm is None:
            raise wrong("ComputeResource: mode is 'slurm', but the field slurm isn't set; give it a SlurmResource")
        return slurm.pipes_client(on_changed_request=self.on_changed_request)

    def site_env(self, context: Context | None = None) -> dict[str, str]:
        """Give the environment variables that every job gets where it runs, for code that reads the same data here."""
        if self.mode == ExecutionMode.LOCAL:
            return variables(self.local_env, "local_env")
        slurm = self.chosen(context)
        return variables(slurm.env, "env") if slurm is not None else {}

    def chosen(self, context: Context | None = None) -> SlurmResource | None:
        """Give the site that runs the jobs.

        Raises:
            dagster.Failure: the setting ``site``, or the run's tag, names none of this resource's sites.
        """
        if self.slurm is None or self.mode == ExecutionMode.LOCAL:
            return self.slurm
        other = chosen_site(context, self.site, resolved(self.slurm.site, "slurm.site"), self.other_sites)
        if other is None:
            return self.slurm
        return SlurmResource(
            site=other.site,
            bus=self.slurm.bus,
            queue=other.queue,
            remote_base=other.remote_base,
            env=other.env,
            secret_env=self.slurm.secret_env if other.secret_env is None else other.secret_env,
            environment=other.environment,
            default_launcher=other.default_launcher.launcher() if other.default_launcher is not None else None,
            on_out_of_memory=other.on_out_of_memory,
            on_timeout=other.on_timeout,
        )


def _made(environment: EnvironmentConfig | None) -> AnyEnvironment | None:
    return environment.environment() if environment is not None else None


def _payload(path: StrPath | None, remote: str | None) -> tuple[list[LocalFile], str]:
    """Give the payload's file, if it travels, and its path as the job names it."""
    if (path is None) == (remote is None):
        raise wrong("payload_path, or remote_payload_path: give one of the two")
    if path is not None:
        file = local_file(path, "payload_path")
        return [file], file.target
    return [], str(absolute(remote, "remote_payload_path"))
