"""What a job asks Slurm for, as people write it, and how defaults and choices of one call come together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.values import absolute, resolved, wrong
from slurmbus import job_options
from slurmbus.job_options import Chosen
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import BY_NAME, Kind, long_name

_NUMBERS = frozenset({Kind.COUNT, Kind.NATURAL, Kind.NUMBER})
_FLAGS = frozenset({Kind.FLAG, Kind.CHOICE})
_CWD = frozenset({"cwd", "chdir"})
"""Names of the working directory. To Slurm it is an option, to a request it is something of its own."""


def _option(name: str) -> Any:
    return Field(default=None, description=BY_NAME[name].about)


class SlurmQueueConfig(dg.Config):
    """What a job asks Slurm for. What isn't set is left to Slurm's own defaults; the meanings are those of sbatch(1).

    Values may be ``dg.EnvVar``. A field's value is checked when it is known: here, or when the job is made.
    """

    partition: str | None = _option("partition")
    account: str | None = _option("account")
    qos: str | None = _option("qos")
    reservation: str | None = _option("reservation")
    wckey: str | None = _option("wckey")
    mcs_label: str | None = _option("mcs_label")
    time_limit: str | None = _option("time_limit")
    time_min: str | None = _option("time_min")
    begin: str | None = _option("begin")
    deadline: str | None = _option("deadline")
    delay_boot: int | None = _option("delay_boot")
    dependency: str | None = _option("dependency")
    kill_on_invalid_dep: bool | None = _option("kill_on_invalid_dep")
    hold: bool | None = _option("hold")
    nice: int | None = _option("nice")
    priority: str | None = _option("priority")
    signal: str | None = _option("signal")
    requeue: bool | None = _option("requeue")
    requeue_expedite: bool | None = _option("requeue_expedite")
    no_kill: bool | None = _option("no_kill")
    oom_kill_step: bool | None = _option("oom_kill_step")
    mail_type: str | None = _option("mail_type")
    mail_user: str | None = _option("mail_user")
    comment: str | None = _option("comment")
    nodes: int | None = _option("nodes")
    nodes_max: int | None = _option("nodes_max")
    node_counts: str | None = _option("node_counts")
    ntasks: int | None = _option("ntasks")
    ntasks_per_node: int | None = _option("ntasks_per_node")
    ntasks_per_core: int | None = _option("ntasks_per_core")
    ntasks_per_socket: int | None = _option("ntasks_per_socket")
    ntasks_per_gpu: int | None = _option("ntasks_per_gpu")
    cpus: int | None = _option("cpus")
    cpus_per_gpu: int | None = _option("cpus_per_gpu")
    mincpus: int | None = _option("mincpus")
    overcommit: bool | None = _option("overcommit")
    mem: str | None = _option("mem")
    mem_per_cpu: str | None = _option("mem_per_cpu")
    mem_per_gpu: str | None = _option("mem_per_gpu")
    mem_bind: str | None = _option("mem_bind")
    mem_update: str | None = _option("mem_update")
    tmp: str | None = _option("tmp")
    gpus: str | None = _option("gpus")
    gpus_per_node: str | None = _option("gpus_per_node")
    gpus_per_task: str | None = _option("gpus_per_task")
    gpus_per_socket: str | None = _option("gpus_per_socket")
    gpu_bind: str | None = _option("gpu_bind")
    gpu_freq: str | None = _option("gpu_freq")
    gres: str | None = _option("gres")
    gres_flags: str | None = _option("gres_flags")
    tres_per_task: str | None = _option("tres_per_task")
    tres_bind: str | None = _option("tres_bind")
    licenses: str | None = _option("licenses")
    resources: str | None = _option("resources")
    bb: str | None = _option("bb")
    constraint: str | None = _option("constraint")
    prefer: str | None = _option("prefer")
    batch: str | None = _option("batch")
    cluster_constraint: str | None = _option("cluster_constraint")
    node_extra: str | None = _option("node_extra")
    nodelist: str | None = _option("nodelist")
    exclude: str | None = _option("exclude")
    exclusive: bool | None = _option("exclusive")
    exclusive_scope: str | None = _option("exclusive_scope")
    oversubscribe: bool | None = _option("oversubscribe")
    contiguous: bool | None = _option("contiguous")
    spread_job: bool | None = _option("spread_job")
    use_min_nodes: bool | None = _option("use_min_nodes")
    switches: str | None = _option("switches")
    segment: int | None = _option("segment")
    spread_segments: bool | None = _option("spread_segments")
    consolidate_segments: bool | None = _option("consolidate_segments")
    core_spec: int | None = _option("core_spec")
    thread_spec: int | None = _option("thread_spec")
    sockets_per_node: int | None = _option("sockets_per_node")
    cores_per_socket: int | None = _option("cores_per_socket")
    threads_per_core: int | None = _option("threads_per_core")
    hint: str | None = _option("hint")
    distribution: str | None = _option("distribution")
    cpu_freq: str | None = _option("cpu_freq")
    power: str | None = _option("power")
    reboot: bool | None = _option("reboot")
    wait_all_nodes: bool | None = _option("wait_all_nodes")
    network: str | None = _option("network")
    resv_ports: str | None = _option("resv_ports")
    stepmgr: bool | None = _option("stepmgr")
    propagate: str | None = _option("propagate")
    profile: str | None = _option("profile")
    acctg_freq: str | None = _option("acctg_freq")
    context: str | None = _option("context")
    container: str | None = _option("container")
    container_id: str | None = _option("container_id")
    container_type: str | None = _option("container_type")
    extra: dict[str, str] | None = Field(
        default=None,
        description='Options of sbatch that have no field here, by their long names: {"new-option": "value"}, '
        '{"new-flag": ""}.',
    )
    cwd: str | None = Field(
        default=None,
        description="An absolute folder there to run in (sbatch's --chdir); by default each job has one of its own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Name the nearest option when one isn't known."""
        for key in given if isinstance(given, Mapping) else ():
            if key not in cls.model_fields:
                hint = job_options.meant_by(str(key)) or f"known: {', '.join(cls.model_fields)}"
                raise ValueError(f"{key!r} is no option: {hint}")
        return given

    @field_validator("*", mode="wrap")
    @classmethod
    def _readable(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        if is_env_var(value) or value is None:  # Dagster puts it back; the plain check would see no value
            return value
        if name == "cwd":
            return _absolute(check(value))
        option = BY_NAME.get(name)
        if option is not None and option.kind not in _NUMBERS | _FLAGS and isinstance(value, int):
            value = value if isinstance(value, bool) else str(value)
        checked = check(value)
        try:
            job_options.read({name: checked})
        except InvalidSetting as error:
            raise ValueError(str(error)) from error
        return checked

    @model_validator(mode="after")
    def _consistent(self) -> SlurmQueueConfig:
        try:
            job_options.read({name: value for name, value in self._options().items() if not is_env_var(value)})
        except InvalidSetting as error:
            raise ValueError(str(error)) from error
        return self

    def to_options(self) -> JobOptions:
        """Give these settings as the request carries them; ``dagster.Failure`` when a value can't be used."""
        return merge(self)

    def chosen(self) -> Chosen:
        """Give what is set, by the names and in the units of the request."""
        return _read({name: resolved(value, name) for name, value in self._options().items()}, "options")

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name not in _CWD}


class SlurmOptions(SlurmQueueConfig):
    """What one job asks Slurm for, over the defaults of its site: ``run(..., options=SlurmOptions(nodes=2))``."""


Options = SlurmQueueConfig | JobOptions | Mapping[str, Any]
"""What ``run(options=…)`` takes: a config, a mapping with our names or sbatch's, or the request's own struct."""


def apart(layer: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str | None]:
    """Give a mapping of options without the working directory, and that.

    Raises:
        dagster.Failure: the folder isn't absolute.
    """
    folders = [value for key, value in layer.items() if long_name(str(key)) in _CWD and value is not None]
    options = {key: value for key, value in layer.items() if long_name(str(key)) not in _CWD}
    return options, absolute(resolved(folders[-1], "cwd"), f"{where}: cwd") if folders else None


def _absolute(folder: str) -> str:
    if not folder.startswith("/"):
        raise ValueError(f"{folder!r} isn't absolute: name a folder on the site, e.g. /home/alice/work")
    return folder


def chosen_by(layer: Options | None, where: str = "options") -> Chosen:
    """Give what one layer of options sets.

    Raises:
        dagster.Failure: it has an unknown key or a value that can't be used; the message names it.
    """
    if layer is None:
        return {}
    if isinstance(layer, SlurmQueueConfig):
        return layer.chosen()
    if isinstance(layer, JobOptions):
        return job_options.chosen_of(layer)
    if not isinstance(layer, Mapping):
        raise wrong(f"{where} is {type(layer).__name__} {layer!r}: give SlurmOptions or a mapping of names to values")
    return _read({key: resolved(value, f"{where}: {key}") for key, value in layer.items()}, where)


def merge(*layers: Options | None) -> JobOptions:
    """Put layers of options over each other; what a later one sets wins.

    Raises:
        dagster.Failure: a layer has an unknown key or a value that can't be used; the message names it.
    """
    return merge_chosen(*(chosen_by(layer) for layer in layers))


def merge_chosen(*layers: Chosen) -> JobOptions:
    """Put layers over each other that were read already."""
    try:
        return job_options.merge(*layers)
    except InvalidSetting as error:
        raise wrong(str(error)) from error


def _read(given: Mapping[str, Any], where: str) -> Chosen:
    try:
        return job_options.read(given, where)
    except InvalidSetting as error:
        raise wrong(str(error)) from error
