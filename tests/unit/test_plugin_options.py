"""What users ask Slurm for: written as Slurm writes it, later layers over earlier ones, errors that name the field."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from pydantic import ValidationError

from dagster_slurmbus import SlurmQueueConfig, SlurmRunConfig
from dagster_slurmbus.option_layers import CallOptions
from dagster_slurmbus.queue_config import merge
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import BY_NAME


def test_every_field_reaches_the_request() -> None:
    queue = SlurmQueueConfig(
        partition="main",
        account="physics",
        qos="high",
        reservation="tuesday",
        constraint="avx512",
        time_limit="00:10:00",
        nodes=2,
        ntasks=8,
        ntasks_per_node=4,
        cpus=2,
        mem="1.5G",
        gpus_per_node="a100:2",
        gres="shard:1",
        nodelist="c[1-2]",
        exclude="c3",
        exclusive=True,
        requeue=True,
        comment="mine",
    )
    assert queue.to_options() == JobOptions(
        partition="main",
        account="physics",
        qos="high",
        reservation="tuesday",
        constraint="avx512",
        time_limit_minutes=10,
        nodes=2,
        ntasks=8,
        ntasks_per_node=4,
        cpus_per_task=2,
        mem_per_node_mib=1536,
        gpus_per_node="a100:2",
        gres="shard:1",
        nodelist="c[1-2]",
        exclude="c3",
        exclusive=True,
        requeue=True,
        comment="mine",
    )
    assert set(SlurmQueueConfig.model_fields) == set(SlurmRunConfig.model_fields)
    assert set(SlurmQueueConfig.model_fields) == {*BY_NAME, "extra", "cwd"}


def test_numbers_are_understood_where_slurm_takes_text() -> None:
    queue = SlurmQueueConfig(time_limit=5, mem=2048, gpus_per_node=2)  # type: ignore[arg-type]
    assert queue.to_options() == JobOptions(time_limit_minutes=5, mem_per_node_mib=2048, gpus_per_node="2")


@pytest.mark.parametrize(
    ("field", "value"),
    [("time_limit", "soon"), ("mem", "1 elephant"), ("mem_per_cpu", "-1G"), ("nodes", 0), ("cpus", "many")],
)
def test_a_bad_value_is_refused_where_it_is_written_and_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SlurmQueueConfig(**{field: value})


@pytest.mark.parametrize(
    ("former", "words"),
    [
        ({"num_nodes": 2}, "'num_nodes' is no option: its name here is nodes"),
        ({"signal_before_timeout": "TERM@120"}, "its name here is signal, with a B:"),
    ],
)
def test_a_former_name_is_told_with_the_new_one(former: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SlurmQueueConfig(**former)
    with pytest.raises(dg.Failure, match="its name here is"):
        merge(former)


def test_memory_is_asked_for_in_one_way() -> None:
    with pytest.raises(ValidationError, match="mem and mem_per_cpu exclude each other"):
        SlurmQueueConfig(mem="1G", mem_per_cpu="1G")


def test_the_folder_to_run_in_is_absolute_and_no_option_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SlurmQueueConfig(cwd="/data", cpus=2).to_options() == JobOptions(cpus_per_task=2)
    with pytest.raises(ValidationError, match="'data' isn't absolute"):
        SlurmQueueConfig(cwd="data")
    with pytest.raises(ValidationError, match="write cwd"):
        SlurmQueueConfig(chdir="/data")  # type: ignore[call-arg]
    monkeypatch.setenv("WHERE", "data")
    with pytest.raises(dg.Failure, match="options: cwd='data' isn't absolute"), dg.build_asset_context() as context:
        CallOptions(options=SlurmQueueConfig(cwd=dg.EnvVar("WHERE"))).over(None, context, "alpha")


def test_a_later_folder_wins_and_this_machine_has_none_of_a_site() -> None:
    queue = SlurmQueueConfig(cwd="/queue")

    def cwd(call: CallOptions, site: str = "alpha", own: str | None = None) -> str | None:
        with dg.build_asset_context() as context:
            return call.over(queue, context, site, own).cwd

    assert cwd(CallOptions()) == "/queue"
    assert cwd(CallOptions(), "local") is None
    assert cwd(CallOptions(), own="/client") == "/client"
    assert cwd(CallOptions(extra_slurm_opts={"chdir": "/extra"}), own="/client") == "/extra"
    assert cwd(CallOptions(extra_slurm_opts={"D": "/extra"}, options={"cwd": "/options"})) == "/options"
    assert cwd(CallOptions(options={"cwd": "/options"}, cwd="/call")) == "/call"
    assert cwd(CallOptions(cwd="/call"), "local") == "/call"
    assert cwd(CallOptions(cwd="/call", run_config=SlurmRunConfig(cwd="/launchpad"))) == "/launchpad"
    with pytest.raises(dg.Failure, match="extra_slurm_opts: cwd='here' isn't absolute"):
        cwd(CallOptions(extra_slurm_opts={"chdir": "here"}))


def test_later_layers_win_and_unset_fields_do_not() -> None:
    assert merge(
        SlurmQueueConfig(partition="main", cpus=2, mem="1G"),
        None,
        {"cpus": 4},
        SlurmRunConfig(time_limit="5"),
        JobOptions(partition="gpu"),
    ) == JobOptions(partition="gpu", cpus_per_task=4, mem_per_node_mib=1024, time_limit_minutes=5)


def test_another_way_of_asking_for_memory_replaces_the_first() -> None:
    assert merge({"mem": "1G"}, {"mem_per_cpu": "2G"}) == JobOptions(mem_per_cpu_mib=2048)
    assert merge({"mem_per_cpu": "2G"}, {"mem": "1G"}) == JobOptions(mem_per_node_mib=1024)


def test_a_later_layer_can_switch_off() -> None:
    assert merge({"exclusive": True, "requeue": True}, {"exclusive": False}) == JobOptions(requeue=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partiton": "main"}, "did you mean 'partition'"),
        ({"xyzzy": 1}, "known: partition"),
        ({"mem": "lots"}, "mem"),
        ({"nodes": 0}, "nodes"),
    ],
)
def test_bad_options_of_a_call_become_a_failure_that_names_them(options: dict[str, Any], words: str) -> None:
    with pytest.raises(dg.Failure, match=words) as caught:
        merge(options)
    assert not caught.value.allow_retries


def test_values_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SlurmQueueConfig(partition=dg.EnvVar("PART"), cpus=dg.EnvVar.int("CPUS"), time_limit=dg.EnvVar("LIMIT"))
    monkeypatch.setenv("PART", "gpu")
    monkeypatch.setenv("CPUS", "3")
    monkeypatch.setenv("LIMIT", "1:00:00")
    assert queue.to_options() == JobOptions(partition="gpu", cpus_per_task=3, time_limit_minutes=60)
    monkeypatch.setenv("LIMIT", "soon")
    with pytest.raises(dg.Failure, match="time_limit='soon' is no time"):
        queue.to_options()
    monkeypatch.delenv("PART")
    with pytest.raises(dg.Failure, match="partition: the environment variable PART isn't set"):
        queue.to_options()
    monkeypatch.setenv("PART", "gpu")
    monkeypatch.setenv("LIMIT", "1")
    monkeypatch.setenv("CPUS", "0")
    with pytest.raises(dg.Failure, match="cpus"):
        queue.to_options()
