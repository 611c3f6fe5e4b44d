"""Options that matter while a job runs, from the client to the payload, on the real cluster."""

from __future__ import annotations

from typing import Any

from integration.jobs import follow, run, spec
from slurmbus import job_options
from slurmbus.client import SiteClient
from slurmbus_cluster import Cluster
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.states import JobState

PAYLOAD = """
trap 'echo warned; exit 0' USR1
echo "$SLURM_NTASKS tasks; $(env | grep -c ^SBATCH_) leftovers; in $PWD"
while true; do sleep 0.1; done
"""


def test_a_payload_is_warned_before_its_time_limit(alice: SiteClient, cluster: Cluster) -> None:
    """The signal is sbatch's affair, which submits this job in the place of pyslurm.

    slurmctld sends it once, and up to 30 s early: due at once, it could come before there is a payload to warn.
    """
    asked = job_options.read(
        {"time": 2, "signal": "B:USR1@70", "ntasks": 2, "mem_per_cpu": 50, "comment": "mine; really"}
    )
    story = run(alice, "bash", "-c", PAYLOAD, options=job_options.merge(asked), labels={"dagster_run": "1234"})
    record = story.record
    assert record.state is JobState.COMPLETED
    assert story.stdout == f"2 tasks; 0 leftovers; in {record.work_dir}\nwarned\n"
    assert record.job_id is not None
    shown = cluster.job(record.job_id)
    assert shown["comment"] == "dagster_run=1234 ; mine; really"
    assert shown["name"] == f"test.{record.key}"


def test_gpus_of_a_later_layer_stand_in_the_place_of_earlier_ones(alice: SiteClient) -> None:
    """A queue's GPUs, asked for in one way, and what calls make of them in others."""
    queue = {"partition": "gpu", "gres": "gpu:1", "time": 2, "mem": "100M"}
    calls: list[dict[str, Any]] = [
        {},
        {"gpus_per_node": 2},
        {"gpus": 2, "nodes": 2},
        {"tres_per_task": "gres/gpu:2", "ntasks": 1},
        {"gpus": 0},
    ]
    keys = []
    for call in calls:
        asked = job_options.merge(job_options.read(queue), job_options.read(call))
        keys.append(alice.submit(spec("bash", "-c", 'echo "${SLURM_JOB_GPUS:-none}"', options=asked)))
    stories = [follow(alice, key) for key in keys]
    assert [story.record.state for story in stories] == [JobState.COMPLETED] * 5, stories
    on_the_first_node = [len([gpu for gpu in story.stdout.split(",") if gpu != "none\n"]) for story in stories]
    assert on_the_first_node == [1, 2, 1, 2, 0]


def test_a_refusal_of_sbatch_ends_the_job_with_its_words(alice: SiteClient) -> None:
    record = run(alice, "true", options=JobOptions(hint="nonsense")).record
    assert record.state is JobState.REJECTED
    assert record.reason is not None
    assert 'unrecognized --hint argument "nonsense"' in record.reason
