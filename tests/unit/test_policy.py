"""Policies: each limit, what gets around it, and that a broken one is never taken for none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.policy import Policy, Refusal, folders_of, most_nodes, refusal
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import (
    CommandPlan,
    FolderEnvironment,
    ImageEnvironment,
    JobOptions,
    JobSpec,
    ModulesEnvironment,
    NamedEnvironment,
    Submit,
    TaskSpec,
)
from slurmbus_protocol.options import OPTIONS
from slurmbus_protocol.subjects import new_ulid

SIGNER = "ab" * 32


def ask(policy: Policy, unfinished: int = 0, *, submitter: str = "alice@laptop", **fields: Any) -> Refusal | None:
    names = JobOptions.__struct_fields__
    options = JobOptions(**{name: value for name, value in fields.items() if name in names})
    others = {name: value for name, value in fields.items() if name not in names}
    job = JobSpec(name="job", plan=CommandPlan(argv=("true",)), options=options, **others)
    submit = Submit(key=new_ulid(), site="a", expires_at=1.0, submitter=submitter, job=job)
    return refusal(policy, submit, SIGNER, unfinished)


def test_without_limits_everything_is_allowed() -> None:
    assert ask(Policy(), 10_000, nodes=500, unlimited_time=True, extra={"anything": ""}, cwd="/etc") is None


@pytest.mark.parametrize(
    ("policy", "fine", "wrong"),
    [
        ({"partitions": ("small",)}, {"partition": "small"}, {"partition": "large"}),
        ({"partitions": ("small",)}, {"partition": "small"}, {"partition": "small,large"}),
        ({"partitions": ("small",)}, {"partition": "small"}, {}),
        ({"accounts": ("mine",)}, {"account": "mine"}, {"account": "yours"}),
        ({"accounts": ("mine",)}, {"account": "mine"}, {}),
        ({"accounts": ("mine",)}, {"account": "mine"}, {"account": "mine,mine"}),
        ({"partitions": ("small",)}, {"partition": "small,small"}, {"partition": "small,"}),
        ({"partitions": ("small",)}, {"partition": "small"}, {"partition": " small"}),
        ({"qos": ("normal", "low")}, {"qos": "low"}, {"qos": "urgent"}),
        ({"max_nodes": 4}, {"nodes": 4}, {"nodes": 5}),
        ({"max_nodes": 4}, {"nodes": 2, "nodes_max": 4}, {"nodes": 2, "nodes_max": 5}),
        ({"max_nodes": 4}, {}, {"ntasks": 5}),
        ({"max_nodes": 4}, {"ntasks": 400, "nodes": 1}, {"nodelist": "n[1-9]"}),
        ({"max_nodes": 4}, {"node_counts": "1,4"}, {"node_counts": "1-16:2"}),
        ({"max_nodes": 4}, {"node_counts": "2-4:2"}, {"node_counts": "2:2,8"}),
        ({"max_nodes": 1024}, {"node_counts": "1-4,8"}, {"node_counts": "1k"}),
        ({"max_nodes": 4}, {"node_counts": "4-1"}, {"node_counts": "1M"}),
        ({"max_nodes": 4}, {"node_counts": "1-4:2,3"}, {"node_counts": "1-4k"}),
        ({"max_nodes": 4}, {"node_counts": "1"}, {"node_counts": "0x10"}),
        ({"max_nodes": 4}, {"node_counts": "1"}, {"node_counts": "1 --nodes=9"}),
        ({"max_nodes": 4}, {"node_counts": "1"}, {"node_counts": "\u0661"}),  # a digit, but not sbatch's
        ({"max_nodes": 4}, {"node_counts": "1"}, {"node_counts": ""}),
        ({"max_nodes": 4}, {"node_counts": "1", "nodes": 4}, {"node_counts": "1", "nodes_max": 5}),
        ({"max_nodes": 4}, {"constraint": "[a*2&b*2]"}, {"constraint": "[a*2&b*3]"}),
        ({"max_nodes": 4}, {"constraint": "a|b"}, {"constraint": "a*1k"}),
        ({"max_nodes": 4}, {"gpus": "8", "nodes": 2}, {"gpus": "8"}),
        ({"max_time_minutes": 60}, {"time_limit_minutes": 60}, {"time_limit_minutes": 61}),
        ({"max_time_minutes": 60}, {"time_limit_minutes": 1}, {}),
        ({"max_time_minutes": 60}, {"time_limit_minutes": 1}, {"unlimited_time": True}),
        ({"folders": ("/scratch/alice",)}, {"cwd": "/scratch/alice/x"}, {"cwd": "/scratch/alicex"}),
        ({"folders": ("/scratch/alice",)}, {"cwd": "/scratch/alice"}, {"cwd": "/scratch/alice/../bob"}),
        ({"folders": ("/scratch",)}, {"work_base": "/scratch/w"}, {"work_base": "/home/alice"}),
        ({"folders": ("/scratch",)}, {"work_base": "/scratch/w"}, {"work_base": "scratch/w"}),
        (
            {"folders": ("/sw",)},
            {"environment": FolderEnvironment(path="/sw/env")},
            {"environment": FolderEnvironment(path="/home/env")},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ImageEnvironment(path="/sw/a.sif", binds=("/sw/x:/data",))},
            {"environment": ImageEnvironment(path="/sw/a.sif", binds=("/home:/sw",))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ModulesEnvironment(load=("gcc",))},
            {"environment": ModulesEnvironment(load=("gcc",), use=("/home/modules",))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ImageEnvironment(path="/sw/a.sif", options=("--nv",))},
            {"environment": ImageEnvironment(path="/sw/a.sif", options=("--bind", "/home"))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ImageEnvironment(path="/sw/a.sif", program="singularity")},
            {"environment": ImageEnvironment(path="/sw/a.sif", program="/home/apptainer")},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ImageEnvironment(path="/sw/a.sif", binds=("/sw/x:/a,/sw/y:/b:ro",))},
            {"environment": ImageEnvironment(path="/sw/a.sif", binds=("/sw/x:/a,/home:/b",))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ModulesEnvironment(load=("gcc/13",), use=("/sw/modules",))},
            {"environment": ModulesEnvironment(load=("gcc",), use=("/sw/modules:/home/modules",))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ModulesEnvironment(load=("/sw/modules/gcc",))},
            {"environment": ModulesEnvironment(load=("gcc /home/modules/gcc",))},
        ),
        (
            {"folders": ("/sw",)},
            {"environment": ModulesEnvironment(load=("gcc",))},
            {"environment": ModulesEnvironment(load=("gcc",), use=("/sw/modules /home/modules",))},
        ),
        ({"folders": ("/sw",)}, {"environment": NamedEnvironment(name="mine")}, {"container": "/home/bundle"}),
        ({"folders": ("/sw",)}, {}, {"container": "bundle"}),
        ({"forbidden_options": ("nodes",)}, {}, {"node_counts": "4"}),
        ({"forbidden_options": ("nodes",)}, {}, {"nodes_max": 4}),
        ({"forbidden_options": ("time-limit",)}, {}, {"unlimited_time": True}),
        ({"forbidden_options": ("mem",)}, {}, {"all_memory": True}),
        ({"forbidden_options": ("requeue",)}, {}, {"requeue_expedite": True}),
        ({"max_jobs": 9}, {}, {"extra": {"arr": "1-100"}}),
        ({"forbidden_options": ("reservation",)}, {}, {"reservation": "maintenance"}),
        ({"forbidden_options": ("time-min",)}, {}, {"time_min_minutes": 1}),
        ({"forbidden_options": ("exclusive",)}, {"nodes": 1}, {"exclusive": True}),
        ({"extra_options": ("gone",)}, {"extra": {"gone": ""}}, {"extra": {"parti": "large"}}),
        ({"partitions": ("s",)}, {"partition": "s"}, {"partition": "s", "extra": {"parti": "large"}}),
        ({"max_nodes": 1}, {}, {"extra": {"node": "9"}}),
        ({"submitters": ("alice@*",)}, {"submitter": "alice@laptop"}, {"submitter": "bob@laptop"}),
        ({"keys": (SIGNER,)}, {}, None),
    ],
)
def test_each_limit_and_what_would_get_around_it(
    policy: dict[str, Any], fine: dict[str, Any], wrong: dict[str, Any] | None
) -> None:
    assert ask(Policy(**policy), **fine) is None
    if wrong is None:
        policy, wrong = {"keys": ("cd" * 32,)}, fine
    refused = ask(Policy(**policy), **wrong)
    assert refused is not None
    assert refused.hint
    error = refused.error("the policy /x")
    assert error.code == "policy"
    assert refused.field in error.message
    assert "/x" in error.message


def test_a_link_in_an_allowed_folder_leads_nowhere_else(tmp_path: Path) -> None:
    """Neither out of it, nor is an allowed folder that is a link itself in the way."""
    allowed, other, alias = tmp_path / "allowed", tmp_path / "other", tmp_path / "alias"
    for folder in (allowed / "mine", other):
        folder.mkdir(parents=True)
    alias.symlink_to(allowed)
    (allowed / "out").symlink_to(other)
    (allowed / "in").symlink_to("mine")
    policy = Policy(folders=(str(alias),))

    def asked(cwd: Path) -> Refusal | None:
        job = JobSpec(name="job", plan=CommandPlan(argv=("true",)), cwd=str(cwd))
        submit = Submit(key=new_ulid(), site="a", expires_at=1.0, submitter="alice", job=job)
        real = {folder: os.path.realpath(folder) for folder in folders_of(policy, submit)}
        return refusal(policy, submit, SIGNER, 0, real)

    assert asked(alias / "in" / "new") is None
    refused = asked(alias / "out" / "new")
    assert refused is not None
    assert str(other / "new") in refused.reason


def test_jobs_at_once_count_each_task() -> None:
    policy = Policy(max_jobs=3)
    tasks = tuple(TaskSpec(index=number) for number in range(3))
    assert ask(policy, 2) is None
    assert ask(policy, 0, tasks=tasks) is None
    for refused in (ask(policy, 3), ask(policy, 1, tasks=tasks)):
        assert refused is not None
        assert "wait" in refused.hint
    too_many = ask(policy, 0, tasks=(*tasks, TaskSpec(index=3)))
    assert too_many is not None
    assert "split" in too_many.hint


def test_every_option_can_be_forbidden() -> None:
    for option in OPTIONS:
        assert Policy(forbidden_options=(option.name,)).problem() is None


def test_a_job_that_does_not_say_its_nodes_has_no_upper_bound() -> None:
    assert most_nodes(JobOptions()) == 1
    assert most_nodes(JobOptions(nodelist="a,b")) is None
    assert most_nodes(JobOptions(nodelist="a,b", nodes=2)) == 2


# ---------------------------------------------------------------------- the files


@pytest.fixture
def files(tmp_path: Path) -> AuthorityFiles:
    for name in ("config", "etc", "spool"):
        (tmp_path / name).mkdir()
    return AuthorityFiles("a", tmp_path / "config" / "a.toml", tmp_path / "spool", tmp_path / "etc", os.getuid())


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_the_user_s_and_the_site_s_policy_both_count(files: AuthorityFiles) -> None:
    assert files.read_policies() == {}
    put(files.policy, "max_nodes = 8\n")
    put(files.site_policy, "max_nodes = 2\nmax_time_minutes = 60\n")
    found = files.read_policies()
    assert [policy.max_nodes for policy in found.values()] == [8, 2]
    assert str(files.site_policy) in list(found)[1]


@pytest.mark.parametrize(
    "text",
    [
        "max_node = 1\n",
        "max_nodes = 0\n",
        'partitions = "small"\n',
        "max_nodes = \n",
        'forbidden_options = ["reservatoin"]\n',
        'folders = ["scratch"]\n',
        'folders = ["/a/../b"]\n',
        'keys = ["ab"]\n',
        'control = "everybody"\n',
        "\xff",
    ],
)
def test_a_broken_policy_is_never_no_policy(files: AuthorityFiles, text: str) -> None:
    files.policy.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSetting, match=r"a\.policy\.toml"):
        files.read_policies()


def test_a_policy_that_others_can_write_is_refused(files: AuthorityFiles) -> None:
    put(files.policy, "", 0o666)
    with pytest.raises(InvalidSetting, match="written by others"):
        files.read_policies()
    files.policy.chmod(0o600)
    put(files.site_policy, "", 0o664)
    with pytest.raises(InvalidSetting, match="written by others"):
        files.read_policies()
    files.site_policy.chmod(0o644)
    files.site_folder.chmod(0o777)
    with pytest.raises(InvalidSetting, match="written by others"):
        files.read_policies()


def test_a_site_policy_of_anybody_but_root_is_refused(files: AuthorityFiles) -> None:
    put(files.site_policy, "")
    theirs = AuthorityFiles("a", files.bundle, files.spool, files.site_folder, os.getuid() + 1)
    with pytest.raises(InvalidSetting, match="another user"):
        theirs.read_policies()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"#" * 300_000)])
def test_what_is_no_policy_file_is_refused_at_once(files: AuthorityFiles, make: Any) -> None:
    make(files.policy)
    with pytest.raises(InvalidSetting):
        files.read_policies()
