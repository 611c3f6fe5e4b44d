"""Every option of a batch job, as Slurm itself takes it; on the real cluster, through both of its schedulers."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from contract.commands_site import CommandsSite
from contract.native_site import NativeSite
from contract.sites import end_of
from slurmbus import job_options
from slurmbus_agent.scheduler.base import BatchJob, Refused, Scheduler
from slurmbus_agent.scheduler.sbatch import argv
from slurmbus_agent.scheduler.submission import beyond
from slurmbus_cluster import Cluster
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import OPTIONS, OTHER_WORDS, OWNED, find

Shown = dict[str, str]


@pytest.fixture(params=[NativeSite, CommandsSite], ids=["native", "commands"])
def site(request: pytest.FixtureRequest, cluster: Cluster) -> NativeSite:
    made: NativeSite = request.param(cluster)
    return made


@pytest.fixture
def native(cluster: Cluster) -> NativeSite:
    return NativeSite(cluster)


@pytest.fixture
def reservation(cluster: Cluster) -> Iterator[str]:
    name = f"tuesday-{uuid.uuid4().hex[:6]}"
    what = f"ReservationName={name} Users=alice StartTime=now Duration=60 Nodes=c2 CoreCnt=1"
    cluster.exec("ctld", ["scontrol", "create", "reservation", *what.split()])
    yield name
    cluster.exec("ctld", ["scontrol", "delete", f"ReservationName={name}"])


def options_of(**given: Any) -> JobOptions:
    return job_options.merge(job_options.read(given))


def job_of(site: NativeSite, options: JobOptions, body: str = "exit 0", comment: str = "") -> BatchJob:
    plain = site.batch_job(f"options-{uuid.uuid4().hex[:12]}", body)
    return BatchJob(
        name=plain.name,
        script=plain.script,
        work_dir=plain.work_dir,
        output=plain.output,
        environment=plain.environment,
        options=options,
        comment=comment,
    )


def shown(site: NativeSite, job_id: int) -> Shown:
    """Read what ``scontrol show job`` says."""
    lines = site.run(["scontrol", "--details", "show", "job", str(job_id)]).splitlines()
    pairs = (pair for line in lines for pair in re.findall(r"(\S+?)=(.*?)(?=\s+[\w:/]+=|$)", line.strip()))
    submitted = [line.partition("SubmitLine=")[2] for line in lines if "SubmitLine=" in line]
    return dict(pairs) | {"SubmitLine": f"{' '.join(submitted)} "}


async def taken(site: NativeSite, options: JobOptions, comment: str = "") -> Shown:
    """Submit a held job, read what Slurm made of its options, and cancel it."""
    async with site.open() as scheduler:
        return await taken_by(scheduler, site, options, comment)


async def taken_by(scheduler: Scheduler, site: NativeSite, options: JobOptions, comment: str = "") -> Shown:
    """Do so with a scheduler that is open."""
    job = job_of(site, options, comment=comment)
    job_id = await scheduler.submit(job)
    try:
        found = shown(site, job_id)
    finally:
        await scheduler.cancel(job_id, job.name)
    assert found["JobName"] == job.name
    assert found["WorkDir"] == job.work_dir
    assert found["StdOut"] == job.output
    return found


# ------------------------------------------------------------------ the table


def test_no_option_of_sbatch_is_left_out(cluster: Cluster) -> None:
    told = cluster.exec("login", ["sbatch", "--help"]).stdout
    listed = cluster.exec("login", ["sbatch", "--autocomplete=--"]).stdout
    flags = set(re.findall(r"^\s+(?:-\w, )?--([a-z][a-z-]*)", told, re.MULTILINE))
    flags |= set(re.findall(r"--([a-z][a-z-]*)", listed))
    assert len(flags) > 100
    unknown = {flag for flag in flags if flag != "extra" and not (find(flag) or flag in OWNED or flag in OTHER_WORDS)}
    assert not unknown, f"type them in slurmbus_protocol.options, or refuse them with a reason: {sorted(unknown)}"
    gone = {option.flag for option in OPTIONS} - flags
    assert gone <= {"power"}, f"this sbatch doesn't have {sorted(gone)}"


# ------------------------------------------------------------------ groups of options


GROUPS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "when": (
        {
            "time": "01:30:00",
            "time_min": 60,
            "begin": "2030-01-20T12:34:00",
            "deadline": "2031-01-20T12:34:00",
            "nice": 55,
            "licenses": "matlab:2,ansys:1",
        },
        {
            "TimeLimit": "01:30:00",
            "TimeMin": "01:00:00",
            "StartTime": "2030-01-20T12:34:00",
            "Deadline": "2031-01-20T12:34:00",
            "Nice": "55",
            "Licenses": "matlab:2,ansys:1",
            "Requeue": "0",
        },
    ),
    "which nodes": (
        {"nodes": "1-2", "constraint": "big", "nodelist": "c1", "exclude": [], "use_min_nodes": True},
        {"NumNodes": "1-2", "Features": "big", "ReqNodeList": "c1"},
    ),
    "preferences": (
        {
            "nodes": 1,
            "prefer": "slow",
            "constraint": "big&slow",
            "batch": "slow",
            "switches": "1@4:00",
            "contiguous": True,
        },
        {"Prefer": "slow", "Features": "big&slow", "BatchFeatures": "slow", "Switches": "1@00:04:00"},
    ),
    "tasks": (
        {"ntasks": 4, "ntasks_per_node": 2, "cpus": 2, "mincpus": 4, "ntasks_per_core": 1, "spread_job": True},
        {"NumTasks": "4", "CPUs/Task": "2", "MinCPUsNode": "4", "NumNodes": "2-2"},
    ),
    "memory": (
        {"mem_per_cpu": "100M", "tmp": "1G", "overcommit": True},
        {"MinMemoryCPU": "100M", "MinTmpDiskNode": "1G"},
    ),
    "all memory, no limit": (
        {"mem": 0, "time": "UNLIMITED", "account": "research", "qos": "normal"},
        {"MinMemoryNode": "0", "TimeLimit": "UNLIMITED", "Account": "research", "QOS": "normal"},
    ),
    "GPUs": (
        {"partition": "gpu", "gpus": 2, "cpus_per_gpu": 2, "mem_per_gpu": "100M", "gpu_freq": "medium"},
        {"Partition": "gpu", "TresPerJob": "gres/gpu:2", "CpusPerTres": "gres/gpu:2", "MemPerTres": "gres/gpu:100"},
    ),
    "GPUs per task": (
        {"partition": "gpu", "ntasks": 2, "gpus_per_task": 1, "gpu_bind": "closest", "gres_flags": "disable-binding"},
        {"TresPerTask": "gres/gpu=1"},
    ),
    "GPUs per node": (
        {"partition": "gpu", "gpus_per_node": "1", "ntasks_per_gpu": 2},
        {"TresPerNode": "gres/gpu:1"},
    ),
    "trackable resources": (
        {"partition": "gpu", "ntasks": 2, "tres_per_task": "cpu=2,gres/gpu=1", "gres_flags": "disable-binding"},
        {"TresPerTask": "cpu=2,gres/gpu=1"},
    ),
    "generic resources": ({"partition": "gpu", "gres": "gpu:1"}, {"TresPerNode": "gres/gpu:1"}),
    "exclusive": ({"exclusive": True}, {"OverSubscribe": "NO"}),
    "exclusive for the user": ({"exclusive": "user"}, {"SubmitLine": "--exclusive=user"}),
    "oversubscribe": ({"oversubscribe": True}, {"OverSubscribe": "YES"}),
    "system's share": ({"core_spec": 1}, {"CoreSpec": "1"}),
    "system's threads": ({"thread_spec": 1}, {"ThreadSpec": "1"}),
    "sockets and cores": (
        {"extra_node_info": "*:8:1", "distribution": "cyclic:block"},
        {"ReqB:S:C:T": "0:0:8:1"},
    ),
    "what happens to it": (
        {
            "requeue": True,
            "no_kill": True,
            "oom_kill_step": True,
            "signal": "B:USR1@120",
            "mail_type": "END,FAIL",
            "mail_user": "alice@example.org",
            "kill_on_invalid_dep": True,
        },
        {"Requeue": "1", "MailType": "END,FAIL", "MailUser": "alice@example.org", "OOMKillStep": "1"},
    ),
    "accounting": (
        {"acctg_freq": "task=1", "profile": "none", "propagate": "NOFILE", "cpu_freq": "low", "network": "x"},
        {"Network": "x"},
    ),
    "rare ones": (
        {
            "node_extra": "location=rack1",
            "delay_boot": 5,
            "wait_all_nodes": True,
            "segment": 1,
        },
        {"Extra": "location=rack1"},
    ),
}


@pytest.mark.parametrize("group", GROUPS)
def test_slurm_takes_every_group_of_options(site: NativeSite, group: str) -> None:
    given, expected = GROUPS[group][0], dict(GROUPS[group][1])
    options = options_of(hold=True, **{name: value for name, value in given.items() if value not in (None, [])})
    found = asyncio.run(taken(site, options))
    assert found["JobState"] == "PENDING"
    submitted = expected.pop("SubmitLine", "")  # what Slurm keeps and doesn't show
    assert f"{submitted} " in found["SubmitLine"]
    assert {name: found.get(name) for name in expected} == expected, found


def test_what_a_held_job_cannot_show(site: NativeSite, reservation: str) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            waiting = job_of(site, options_of(hold=True))
            first = await scheduler.submit(waiting)
            assert shown(site, first)["Reason"] == "JobHeldUser"
            found = await taken(
                site, options_of(dependency=f"afterany:{first}", reservation=reservation), "ours ; mine"
            )
            assert found["Dependency"].startswith(f"afterany:{first}")
            assert found["Reservation"] == reservation
            assert found["Comment"] == "ours ; mine"
            await scheduler.cancel(first, waiting.name)

    asyncio.run(check())


OF_ONE_START = {"SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NAME", "SLURM_JOB_SLUID", "SLURM_TASK_PID"}
OF_ONE_START |= {"SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_PRIO_PROCESS"}


def test_a_job_of_sbatch_starts_as_clean_as_one_of_pyslurm(site: NativeSite) -> None:
    """Nothing of the agent's environment, and the same of Slurm's, whoever submits it."""

    async def environment(options: JobOptions) -> dict[str, str]:
        async with site.open() as scheduler:
            job = job_of(site, options, "env -0 | tr '\\n\\0' '_\\n'")
            done = await end_of(scheduler, await scheduler.submit(job))
            assert done.state == "COMPLETED"
            lines = site.read(job.output).splitlines()
            return dict(line.partition("=")[::2] for line in lines if line)  # type: ignore[misc]

    async def check() -> None:
        asked = {"nodes": 1, "ntasks": 2, "cpus": 2, "mem_per_cpu": 100, "partition": "gpu", "gpus_per_node": 1}
        plain = await environment(options_of(**asked))
        other = await environment(options_of(mail_type="NONE", **asked))
        for name in OF_ONE_START:
            plain.pop(name, None)
            other.pop(name, None)
        assert plain == other

    asyncio.run(check())


SAME = (
    {},
    {"ntasks": 4, "ntasks_per_node": 2},
    {"ntasks_per_node": 2},
    {"nodes": "1-2", "time": 9, "time_min": 5, "nice": 7},
    {"cpus": 2, "ntasks": 3, "mem_per_cpu": 100, "licenses": "matlab"},
    {"gpus_per_node": 1, "partition": "gpu", "exclusive": True, "constraint": "big"},
    {"mem": "300M", "requeue": True, "begin": "2030-01-20T12:34:00", "nodelist": "c1"},
)
PER_JOB = {"JobId", "SLUID", "SubmitTime", "EligibleTime", "AccrueTime", "LastSchedEval", "Priority"}
PER_JOB |= {"SubmitLine", "AllocNode:Sid"}
NOT_FROM_PYSLURM = {"OOMKillStep", "TresPerTask"}
"""What pyslurm leaves at 0 or out; neither changes what is allocated."""


@pytest.mark.parametrize("given", SAME, ids=str)
def test_pyslurm_says_the_same_as_sbatch(native: NativeSite, given: dict[str, Any]) -> None:
    options = options_of(hold=True, **given)
    assert not beyond(options)

    async def by_pyslurm(job: BatchJob) -> Shown:
        async with native.open() as scheduler:
            job_id = await scheduler.submit(job)
            found = shown(native, job_id)
            await scheduler.cancel(job_id, job.name)
            return found

    job = job_of(native, options, comment="same")
    told = ["sbatch", *argv(job)]
    mine = asyncio.run(by_pyslurm(job))
    job_id = int(native.run(["sh", "-c", 'printf "#!/bin/sh\\nexit 0\\n" | "$@"', "sh", *told]))
    theirs = shown(native, job_id)
    native.run(["scancel", str(job_id)])
    for name in PER_JOB | NOT_FROM_PYSLURM:
        mine.pop(name, None)
        theirs.pop(name, None)
    assert mine == theirs


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ({"licenses": "nosuch:1"}, "Invalid license specification", "scontrol show licenses"),
        ({"dependency": "afterok:999999"}, "dependency problem", "squeue"),
        ({"nice": -5}, "Invalid --nice value", "operators"),
        ({"prefer": "nosuch"}, "Invalid preferred feature specification", "sinfo"),
        ({"batch": "fast"}, "not a subset of --constraint", "among those of constraint"),
        ({"time": 5, "time_min": 9}, "time-min specification", "longer than time_limit"),
        ({"deadline": "2001-01-01"}, "time limit is invalid", "sinfo"),
        ({"reboot": True}, "Access/permission denied", "administrators"),
        ({"requeue": "expedite"}, "not supported on this system", "leave the option out"),
        ({"gpus_per_task": 1}, "Invalid generic resource", "sinfo"),
        ({"mem_per_gpu": "1G"}, "did not request any GPU", "sinfo"),
        ({"hint": "nonsense"}, "unrecognized --hint argument", ""),
        ({"distribution": "nonsense"}, "Invalid --distribution", "plane=4"),
        ({"signal": "NOSUCH"}, "Invalid --signal specification", ""),
        ({"resv_ports": 2}, "step management must be enabled", ""),
        ({"power": "x"}, "unrecognized option '--power", "leave power out"),
        (
            {"extra": {"no-such-option": "1"}},
            "unrecognized option '--no-such-option",
            "leave extra['no-such-option'] out",
        ),
        ({"mem_bind": "help"}, "only prints something", "sbatch --mem-bind=help"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_are_slurms_words_and_say_what_to_change(
    site: NativeSite, given: dict[str, Any], words: str, hint: str
) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            with pytest.raises(Refused, match=words) as caught:
                await scheduler.submit(job_of(site, options_of(hold=True, **given)))
            assert hint in caught.value.hint

    asyncio.run(check())


def test_without_sbatch_the_refusal_names_the_options(native: NativeSite) -> None:
    async def check() -> None:
        async with native.open() as scheduler:
            with pytest.raises(Refused, match="can't ask Slurm for mail_type, prefer: ") as caught:
                await scheduler.submit(job_of(native, options_of(mail_type="END", prefer="fast")))
            assert "PATH" in caught.value.hint
            plain = job_of(native, options_of(hold=True, constraint="fast"))
            job_id = await scheduler.submit(plain)
            await scheduler.cancel(job_id, plain.name)

    native.cluster.exec("login", ["mv", "/usr/bin/sbatch", "/usr/bin/sbatch.away"])
    try:
        asyncio.run(check())
    finally:
        native.cluster.exec("login", ["mv", "/usr/bin/sbatch.away", "/usr/bin/sbatch"])
