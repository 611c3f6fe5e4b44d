"""Options of a job: one table, every way of writing them, and every row on its way to Slurm."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_slurmbus.queue_config import SlurmQueueConfig
from slurmbus import job_options
from slurmbus_agent.scheduler.base import BatchJob, Refused
from slurmbus_agent.scheduler.sbatch_options import arguments
from slurmbus_agent.scheduler.submission import beyond, description
from slurmbus_protocol.capabilities import FIRST_OPTIONS, OPTIONS_2, needed
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import CommandPlan, JobOptions, JobSpec
from slurmbus_protocol.options import BY_NAME, FORMER, GROUPS, OPTIONS, OTHER_WORDS, OWNED, SHORT, Kind, Option, find

EXAMPLES: dict[str, Any] = {
    "time_limit": "1-12:00:00",
    "begin": "now+1hour",
    "deadline": "2030-01-20T12:34:00",
    "dependency": "afterok:12:13,afterany:14",
    "priority": "TOP",
    "signal": "B:USR1@120",
    "node_counts": "1,3,8",
    "exclusive_scope": "user",
    "resv_ports": 3,
    "mem_update": "20@10",
}
BY_KIND: dict[Kind, Any] = {
    Kind.TEXT: "word",
    Kind.LIST: "one,two",
    Kind.GPUS: "a100:2",
    Kind.COUNT: 3,
    Kind.NATURAL: 0,
    Kind.NUMBER: -7,
    Kind.FLAG: True,
    Kind.CHOICE: True,
    Kind.MINUTES: "90",
    Kind.MEMORY: "2G",
    Kind.MOMENT: "16:00",
}
WRITTEN: dict[str, str] = {
    "time_limit": "--time=2160",
    "time_min": "--time-min=90",
    "mem": "--mem=2048M",
    "mem_per_cpu": "--mem-per-cpu=2048M",
    "mem_per_gpu": "--mem-per-gpu=2048M",
    "tmp": "--tmp=2048M",
    "nodes_max": "--nodes=1-3",
    "requeue_expedite": "--requeue=expedite",
    "kill_on_invalid_dep": "--kill-on-invalid-dep=yes",
    "oom_kill_step": "--oom-kill-step=1",
    "wait_all_nodes": "--wait-all-nodes=1",
}
"""What sbatch is told where that isn't the flag and the value as it was written."""


def example(option: Option) -> Any:
    return EXAMPLES.get(option.name, BY_KIND[option.kind])


def options_of(**given: Any) -> JobOptions:
    return job_options.merge(job_options.read(given))


def job(options: JobOptions, comment: str = "") -> BatchJob:
    return BatchJob(
        name="job",
        script="#!/bin/sh\n",
        work_dir="/data",
        output="/data/out",
        environment={},
        options=options,
        comment=comment,
    )


# ------------------------------------------------------------------ the table


def test_table_request_and_config_have_the_same_options() -> None:
    fields = {option.wire for option in OPTIONS}
    assert fields | {"unlimited_time", "all_memory", "extra"} == set(JobOptions.__struct_fields__)
    assert {*BY_NAME, "extra", "cwd"} == set(SlurmQueueConfig.model_fields)
    for option in OPTIONS:
        assert SlurmQueueConfig.model_fields[option.name].description == option.about
    assert all(group <= set(JobOptions.__struct_fields__) for group in GROUPS)


def test_names_lead_to_one_thing() -> None:
    flags = {option.flag for option in OPTIONS}
    assert not flags & OWNED.keys()
    assert not flags & OTHER_WORDS.keys()
    assert not OWNED.keys() & OTHER_WORDS.keys()
    assert set(SHORT.values()) <= flags | OWNED.keys() | OTHER_WORDS.keys()
    for option in OPTIONS:
        assert find(option.name) is option
        if option.flag != "extra":  # the escape of this name is meant
            found = find(f"--{option.flag}")
            assert found is not None
            assert found.flag == option.flag


@pytest.mark.parametrize(
    "option",
    [option for option in OPTIONS if option.name != "comment"],  # which stands beside Slurmbus' own
    ids=lambda option: option.name,
)
def test_every_option_reaches_sbatch(option: Option) -> None:
    options = options_of(**{option.name: example(option)})
    told = arguments(options)
    expected = WRITTEN.get(option.name)
    if expected is None:
        expected = f"--{option.flag}" if option.kind is Kind.FLAG else f"--{option.flag}={example(option)}"
    assert expected in told
    assert len(told) == (1 if option.name in {"requeue", "requeue_expedite"} else 2), told  # and --no-requeue


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_reaches_pyslurm_or_is_beyond_it(option: Option) -> None:
    options = options_of(**{option.name: example(option)})
    if not option.native:
        assert option.name in beyond(options)
        return
    assert beyond(options) == []
    plain = description(job(JobOptions()))
    told = description(job(options, comment=options.comment or ""))
    changed = {name for name in told if told[name] != plain.get(name)}
    assert option.native in changed


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_of_later_agents_needs_one(option: Option) -> None:
    spec = JobSpec(name="j", plan=CommandPlan(argv=("true",)), options=options_of(**{option.name: example(option)}))
    first = option.wire in FIRST_OPTIONS and option.name != "requeue_expedite"
    assert (OPTIONS_2 in needed(spec)) == (not first)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_config_reads_each_option_like_a_mapping(option: Option) -> None:
    value = example(option)
    assert SlurmQueueConfig(**{option.name: value}).to_options() == options_of(**{option.name: value})


def test_types_on_the_wire_fit_the_kinds() -> None:
    types = {Kind.COUNT: int, Kind.NATURAL: int, Kind.NUMBER: int, Kind.MINUTES: int, Kind.MEMORY: int}
    hints = get_type_hints(JobOptions)
    for option in OPTIONS:
        wanted = bool if option.kind in {Kind.FLAG, Kind.CHOICE} else types.get(option.kind, str)
        assert wanted in (getattr(hints[option.wire], "__args__", None) or (hints[option.wire],)), option.name


# ------------------------------------------------------------------ ways of writing


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"--time-min": "10"}, {"time_min_minutes": 10}),
        ({"time": "UNLIMITED"}, {"unlimited_time": True}),
        ({"time": 0}, {"unlimited_time": True}),
        ({"cpus_per_task": 4, "cpus-per-task": "4"}, {"cpus_per_task": 4}),
        ({"-N": "2-4"}, {"nodes": 2, "nodes_max": 4}),
        ({"nodes": "2"}, {"nodes": 2}),
        ({"nodes": "3-3"}, {"nodes": 3}),
        ({"nodes": "1-15:4"}, {"node_counts": "1-15:4"}),
        ({"mem": 0}, {"all_memory": True}),
        ({"mem": "0G"}, {"all_memory": True}),
        ({"mem": "1024K"}, {"mem_per_node_mib": 1}),
        ({"exclusive": "user"}, {"exclusive_scope": "user"}),
        ({"exclusive": "yes"}, {"exclusive": True}),
        ({"requeue": "expedite"}, {"requeue": True, "requeue_expedite": True}),
        ({"no-requeue": True}, {"requeue": False}),
        ({"nice": True}, {"nice": 100}),
        ({"propagate": True}, {"propagate": "ALL"}),
        ({"resv-ports": True}, {"resv_ports": ""}),
        ({"oom_kill_step": 0}, {"oom_kill_step": False}),
        ({"extra-node-info": "2:*:1"}, {"sockets_per_node": 2, "threads_per_core": 1}),
        ({"B": "2"}, {"sockets_per_node": 2}),
        ({"tasks_per_node": 2}, {"ntasks_per_node": 2}),
        ({"partition": ["a", "b"]}, {"partition": "a,b"}),
        ({"mail_type": ("END", "FAIL")}, {"mail_type": "END,FAIL"}),
        ({"gpus": 4}, {"gpus": "4"}),
        ({"begin": datetime(2030, 1, 20, 12, 34, tzinfo=UTC)}, {"begin": "uts1895142840"}),
        (
            {"extra": {"--new_option": 3, "new-flag": True, "off": False}},
            {"extra": {"new-option": "3", "new-flag": ""}},
        ),
        ({"partition": None}, {}),
    ],
)
def test_values_as_slurm_writes_them(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert job_options.read(given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"partiton": "main"}, "did you mean 'partition'"),
        ({"time_limits": 1}, "did you mean 'time_limit'"),
        ({"cpus_per_tasks": 1}, "did you mean 'cpus_per_task'"),
        ({"xyzzy": 1}, "known: partition"),
        ({"num_nodes": 2}, "its name here is nodes"),
        ({"signal_before_timeout": "TERM@120"}, "its name here is signal, with a B: as in signal='B:TERM@120'"),
        ({"array": "1-3"}, r"run_array"),
        ({"J": "x"}, "job-name"),
        ({"output": "x"}, "isn't yours to set"),
        ({"chdir": "/x"}, "cwd"),
        ({"export": "ALL"}, "extra_env"),
        ({"extra": {"wrap": "true"}}, "isn't yours to set"),
        ({"extra": {"time-min": 3}}, "write time_min instead"),
        ({"extra": {"nodefile": "x"}}, "nodelist"),
        ({"extra": {"no spaces": 1}}, "no name of an option"),
        ({"extra": "time=3"}, "write a mapping"),
        ({"mem": "1G", "mem_per_cpu": "1G"}, "exclude each other"),
        ({"mem": 0, "mem_per_gpu": "1G"}, "exclude each other"),
        ({"exclusive": True, "oversubscribe": True}, "exclude each other"),
        ({"core_spec": 0, "thread_spec": 1}, "exclude each other"),
        ({"nodes": 2, "N": 3}, "say different things"),
        ({"nodes": "4-2"}, "less than"),
        ({"nodes": 0}, "less than 1"),
        ({"nodes": True}, "whole number"),
        ({"nodes": "many"}, "whole number"),
        ({"contiguous": "perhaps"}, "neither yes nor no"),
        ({"partition": True}, "bool"),
        ({"partition": " "}, "empty"),
        ({"qos": "a\0b"}, "NUL"),
        ({"gpus": "two"}, "no number of GPUs"),
        ({"exclusive_scope": "me"}, "mcs, topo, user"),
        ({"signal": "@@"}, "can't be read"),
        ({"signal": "B:KILL@30"}, "doesn't get KILL"),
        ({"priority": "high"}, "neither a number nor TOP"),
        ({"dependency": "singleton"}, "name is its own"),
        ({"nodelist": "/etc/hosts"}, "nodefile"),
        ({"nodefile": "/nowhere/at/all"}, "can't be read here"),
        ({"begin": "eventually"}, "no date or time"),
        ({"time_min": "UNLIMITED"}, "no time"),
        ({"extra_node_info": "1:2:3:4"}, "too many parts"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        job_options.read(given, "options")


def test_files_are_read_here(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("c1, c2  # the fast ones\nc3\n")
    assert job_options.read({"nodefile": str(hosts)}) == {"nodelist": "c1,c2,c3"}
    assert job_options.read({"bbf": str(hosts)})["bb"].startswith("c1, c2")


def test_old_names_are_read_and_the_rest_is_left_to_sbatch() -> None:
    given = {"time": "10", "cpus-per-task": 2, "gpus_per_node": 1, "exclusive": True, "some-new": 5, "shiny": True}
    assert job_options.read_loosely(given, "extra_slurm_opts") == {
        "time_limit_minutes": 10,
        "cpus_per_task": 2,
        "gpus_per_node": "1",
        "exclusive": True,
        "extra": {"some-new": "5", "shiny": ""},
    }
    for mistake in ({"partiton": "main"}, {"array": "1-3"}):
        with pytest.raises(InvalidSetting, match="extra_slurm_opts"):
            job_options.read_loosely(mistake, "extra_slurm_opts")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_nodes": 2}, {"nodes": 2}),
        ({"signal_before_timeout": "USR1@120"}, {"signal": "B:USR1@120"}),
        ({"signal_before_timeout": "B:USR1@120"}, {"signal": "B:USR1@120"}),
        ({"signal_before_timeout": " ", "gpus_per_node": 0}, {"gpus_per_node": None}),
    ],
)
def test_names_of_the_ssh_based_integration_are_understood(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert job_options.read_loosely(given, "extra_slurm_opts") == expected
    assert not {find(name) for name in FORMER} - {None}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_nodes": 2, "nodes": 3}, "'num_nodes' and 'nodes' say different things"),
        ({"signal_before_timeout": "KILL@120"}, "the payload doesn't get KILL"),
        ({"extra": {"signal_before_timeout": "TERM@120"}}, "its name here is signal"),
    ],
)
def test_former_names_are_checked_like_any_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        job_options.read_loosely(given, "extra_slurm_opts")


def test_words_of_a_command_line() -> None:
    assert job_options.read_words(["time-min=10", "contiguous", "nice", "comment=a=b"], "--option") == {
        "time_min_minutes": 10,
        "contiguous": True,
        "nice": 100,
        "comment": "a=b",
    }


@given(st.sampled_from(OPTIONS), st.sampled_from(OPTIONS))
def test_what_was_read_and_told_survives_the_wire(one: Option, other: Option) -> None:
    """Also: two layers, of which the second one wins where they say the same."""
    second = job_options.read({other.name: example(other)})
    options = job_options.merge(job_options.read({one.name: example(one)}), second)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=JobOptions) == options
    assert job_options.merge(job_options.chosen_of(options)) == options
    assert all(getattr(options, field) == value for field, value in second.items())


def test_a_later_layer_replaces_every_way_of_saying_it() -> None:
    def merged(*layers: dict[str, Any]) -> JobOptions:
        return job_options.merge(*(job_options.read(layer) for layer in layers))

    assert merged({"mem_per_gpu": "1G"}, {"mem": 0}) == JobOptions(all_memory=True)
    assert merged({"mem": 0}, {"mem": "1G"}) == JobOptions(mem_per_node_mib=1024)
    assert merged({"time": "UNLIMITED"}, {"time": 5}) == JobOptions(time_limit_minutes=5)
    assert merged({"nodes": "2-4"}, {"nodes": 3}) == JobOptions(nodes=3)
    assert merged({"exclusive": "user"}, {"exclusive": False}) == JobOptions()
    assert merged({"oversubscribe": True}, {"exclusive": True}) == JobOptions(exclusive=True)
    assert merged({"requeue": "expedite"}, {"no_requeue": True}) == JobOptions()
    assert merged({"extra": {"one": 1, "two": 1}}, {"extra": {"two": 2}}).extra == {"one": "1", "two": "2"}
    assert merged({"contiguous": True}, {"contiguous": False}) == JobOptions()


GPU_LAYERS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([{"gres": "gpu:1"}, {"gpus_per_node": 2}], {"gpus_per_node": "2"}),
    ([{"gres": "gpu:a100:1,shard:3"}, {"gpus": "v100:2"}], {"gres": "shard:3", "gpus": "v100:2"}),
    ([{"gpus": 4}, {"gpus_per_node": 1}], {"gpus_per_node": "1"}),
    ([{"gpus_per_node": 1}, {"gres": "gpu:2"}], {"gres": "gpu:2"}),
    ([{"gpus_per_node": 1}, {"gres": "shard:2"}], {"gpus_per_node": "1", "gres": "shard:2"}),
    (
        [{"gpus": 4, "gpus_per_node": 2}, {"nodes": 2}],
        {"gpus": "4", "gpus_per_node": "2", "nodes": 2},
    ),
    ([{"gpus": 4}, {"tres_per_task": "cpu=2,gres/gpu=1"}], {"tres_per_task": "cpu=2,gres/gpu=1"}),
    (
        [{"tres_per_task": "cpu=2,gres/gpu:a100=1,license/x=1"}, {"gpus_per_task": 2}],
        {"tres_per_task": "cpu=2,license/x=1", "gpus_per_task": "2"},
    ),
    ([{"gpus": 1, "mem": "1G"}, {"gpus": 0}], {"mem_per_node_mib": 1024}),
    ([{"gpus_per_socket": 1, "sockets_per_node": 2}, {"gpus_per_node": "0"}], {"sockets_per_node": 2}),
    ([{"gres": "gpu:1,shard:1"}, {"gres": "gpu:0"}], {}),
    ([{"gpus": 1}, {"gres": "gpu:a100:0,shard:2"}], {"gres": "shard:2"}),
    ([{"tres_per_task": "gres/gpu:1"}, {"tres_per_task": "gres/gpu=0"}], {}),
    ([{"gpus": 1, "cpus_per_gpu": 4, "mem_per_gpu": "8G", "gpu_bind": "closest"}, {"gpus_per_node": 0}], {}),
    ([{"gpus": 1, "cpus_per_gpu": 4}, {"gpus_per_node": 2}], {"gpus_per_node": "2", "cpus_per_gpu": 4}),
    ([{"gpus": 2}, {"gpus": 0}, {"gpus_per_task": 1}], {"gpus_per_task": "1"}),
    ([{"gpus": "a100:0,v100:1"}], {"gpus": "v100:1"}),
]


@pytest.mark.parametrize(("layers", "left"), GPU_LAYERS)
def test_gpus_are_one_thing_however_they_are_asked_for(layers: list[dict[str, Any]], left: dict[str, Any]) -> None:
    assert job_options.merge(*(job_options.read(layer) for layer in layers)) == JobOptions(**left)


def test_tasks_and_their_cpus_are_said_in_one_way() -> None:
    def merged(*layers: dict[str, Any]) -> JobOptions:
        return job_options.merge(*(job_options.read(layer) for layer in layers))

    assert merged({"ntasks": 1, "nodes": 2}, {"ntasks_per_node": 4}) == JobOptions(nodes=2, ntasks_per_node=4)
    assert merged({"ntasks_per_node": 4}, {"ntasks": 6}) == JobOptions(ntasks=6)
    assert merged({"ntasks": 6, "ntasks_per_node": 4}) == JobOptions(ntasks=6, ntasks_per_node=4)
    assert merged({"tres_per_task": "cpu=4,gres/gpu=1"}, {"cpus": 2}) == JobOptions(
        tres_per_task="gres/gpu=1", cpus_per_task=2
    )
    assert merged({"cpus": 2}, {"tres_per_task": "cpu=4"}) == JobOptions(tres_per_task="cpu=4")


# ------------------------------------------------------------------ what sbatch is told


def test_nothing_asked_for_is_nothing_but_no_requeue() -> None:
    assert arguments(JobOptions()) == ["--no-requeue"]
    assert beyond(JobOptions()) == []


def test_options_that_several_fields_make() -> None:
    assert "--nodes=2-4" in arguments(options_of(nodes="2-4"))
    assert "--mem=0" in arguments(options_of(mem=0))
    assert "--time=UNLIMITED" in arguments(options_of(time="UNLIMITED"))
    assert "--gres=gpu:a100:2,shard:1" in arguments(options_of(gpus_per_node="a100:2", gres="shard:1"))
    assert "--resv-ports" in arguments(options_of(resv_ports=True))
    assert arguments(options_of(extra={"new": 3, "flag": True}))[-2:] == ["--new=3", "--flag"]
    assert beyond(options_of(mem=0, time="UNLIMITED", begin="012030")) == ["time_limit=UNLIMITED", "mem=0", "begin"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (JobOptions(extra={"wrap": "rm"}), "isn't yours to set"),
        (JobOptions(extra={"job-n": "another"}), "extra: 'job-n' would be taken for 'job-name'"),
        (JobOptions(extra={"time": "3"}), "field of its own"),
        (JobOptions(extra={"x y": "3"}), "no name"),
        (JobOptions(extra={"arr": "1-9"}), "taken for 'array'"),
        (JobOptions(extra={"job-n": "mine"}), "taken for 'job-name'"),
        (JobOptions(mcs_label="", time_limit_minutes=1), "mcs_label is empty"),
        (JobOptions(mail_user="", nodes=1), "mail_user is empty"),
        (JobOptions(gres="help"), "only prints"),
        (JobOptions(qos="a\0b"), "NUL"),
    ],
)
def test_the_agent_looks_for_itself(options: JobOptions, words: str) -> None:
    with pytest.raises(Refused, match=words):
        arguments(options)
