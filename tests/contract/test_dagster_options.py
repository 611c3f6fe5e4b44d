"""Where a job's options come from, in a real Dagster run, and whose word counts."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from contract.bus_site import bus_site
from contract.scripted_jobs import SITE, DagsterSite, failure_of
from dagster_slurmbus import (
    ComputeResource,
    RayLauncher,
    SlurmOptions,
    SlurmQueueConfig,
    SlurmResource,
    SlurmRunConfig,
)
from dagster_slurmbus.option_layers import METADATA_KEY
from slurmbus_protocol.errors import AgentTooOld
from slurmbus_protocol.messages import CommandPlan, JobOptions, JobSpec
from slurmbus_protocol.plans import RayPlan

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)

Call = dict[str, Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterSite]:
    with bus_site(tmp_path_factory.mktemp("options")) as running:
        site = DagsterSite(running.home)
        with site.running():
            yield site
        assert site.errors == []


@pytest.fixture
def materialize(site: DagsterSite, tmp_path: Path) -> Callable[..., dg.ExecuteInProcessResult]:
    """Materialise an asset that makes one call; ``config`` is what the launchpad says."""
    payload = tmp_path / "run.sh"
    payload.write_text("true")
    queue = SlurmQueueConfig(partition="main", account="physics", qos="low", cpus=1, mem="1G")
    compute = ComputeResource(mode="slurm", slurm=SlurmResource(site=SITE, bus=site.bus, queue=queue))

    def run(call: Call, metadata: Any = None, config: Any = None, as_options: bool = False) -> Any:
        @dg.asset(required_resource_keys={"compute"}, metadata={METADATA_KEY: metadata} if metadata else {})
        def train(context: dg.AssetExecutionContext, config: SlurmRunConfig) -> dg.MaterializeResult[Any]:
            chosen = {"options" if as_options else "run_config": config}
            done = context.resources.compute.run(context=context, payload_path=payload, **call, **chosen)
            result: dg.MaterializeResult[Any] = done.get_materialize_result()
            return result

        run_config = {"ops": {"train": {"config": config}}} if config else None
        return dg.materialize([train], resources={"compute": compute}, run_config=run_config, raise_on_error=False)

    return run


def test_later_layers_go_over_earlier_ones(
    site: DagsterSite, materialize: Callable[..., dg.ExecuteInProcessResult]
) -> None:
    result = materialize(
        {
            "resource_requirements": {"framework": "bash", "cpus": 3, "gpus": 1, "memory_gb": 1.5},
            "extra_slurm_opts": {"time": "0:30:00", "gpus-per-node": 2, "shiny-new-option": "x"},
            "options": SlurmOptions(qos="high", constraint="fast", mem_per_cpu="2G"),
        },
        metadata={"account": "biology", "qos": "normal", "licenses": "matlab:2"},
        config={"constraint": "big", "begin": "now+1hour"},
    )
    assert result.success
    assert site.jobs[-1].spec.options == JobOptions(
        partition="main",  # the resource's queue
        account="biology",  # the asset's metadata
        licenses="matlab:2",
        cpus_per_task=3,  # the call: resource_requirements,
        time_limit_minutes=30,  # extra_slurm_opts,
        gpus_per_node="2",
        extra={"shiny-new-option": "x"},
        qos="high",  # options
        mem_per_cpu_mib=2048,
        constraint="big",  # the launchpad
        begin="now+1hour",
    )


def test_requirements_in_few_words_keep_the_launcher_and_go_over_the_queue(site: DagsterSite, tmp_path: Path) -> None:
    payload = tmp_path / "train.py"
    payload.write_text("import ray")
    compute = ComputeResource(
        mode="slurm",
        slurm=SlurmResource(site=SITE, bus=site.bus, queue=SlurmQueueConfig(partition="gpu", gres="gpu:4,shard:1")),
        default_launcher=RayLauncher(python="/opt/payload/bin/python", preamble="module load cuda"),
    )

    @dg.asset(required_resource_keys={"compute"})
    def trained(context: dg.AssetExecutionContext) -> Iterator[Any]:
        for requirements, more in (
            ({"framework": "ray", "cpus": 32, "gpus": 1, "memory_gb": 120}, {}),
            ({"framework": "bash", "cpus": 2, "gpus": 0}, {}),
            (None, {"launcher": RayLauncher(num_gpus_per_node=2)}),
        ):
            yield from context.resources.compute.run(
                context=context, payload_path=payload, resource_requirements=requirements, **more
            ).get_results(implicit_materializations=False)
        yield dg.MaterializeResult()

    before = len(site.jobs)
    result = dg.materialize([trained], resources={"compute": compute}, raise_on_error=False)
    assert result.success, failure_of(result)
    ray, without, call = (job.spec for job in site.jobs[before:])
    argv = ("/opt/payload/bin/python", "train.py")
    assert ray.plan == RayPlan(argv=argv, python=argv[0], preamble="module load cuda")
    assert ray.options == JobOptions(
        partition="gpu", cpus_per_task=32, gpus_per_node="1", mem_per_node_mib=120 * 1024, gres="shard:1"
    )
    assert without.plan == CommandPlan(argv=argv, preamble="module load cuda")
    assert without.options == JobOptions(partition="gpu", cpus_per_task=2, gres="shard:1")
    assert call.plan == RayPlan(argv=argv, python=argv[0], preamble="module load cuda", num_gpus_per_node=2)


def test_what_the_launchpad_says_wins_also_where_it_is_the_calls_options(
    site: DagsterSite, materialize: Callable[..., dg.ExecuteInProcessResult]
) -> None:
    call = {"extra_slurm_opts": {"partition": "gpu", "exclusive": True}}
    assert materialize(call, config={"partition": "short", "exclusive": False}, as_options=True).success
    assert site.jobs[-1].spec.options.partition == "short"
    assert site.jobs[-1].spec.options.exclusive is False


@pytest.mark.parametrize(
    ("call", "metadata", "words"),
    [
        ({"options": {"partiton": "main"}}, None, "options has the unknown key 'partiton' (did you mean 'partition'?"),
        ({"extra_slurm_opts": {"time-limits": 1}}, None, "extra_slurm_opts has the unknown key 'time-limits'"),
        ({"extra_slurm_opts": {"array": "1-3"}}, None, "run_array"),
        ({"resource_requirements": {"gpu": 1}}, None, "did you mean 'gpus'?"),
        ({"resource_requirements": {"memory_gb": "lots"}}, None, "memory_gb='lots' is no number"),
        ({"resource_requirements": {"framework": "rya"}}, None, "no launcher for the framework 'rya'"),
        ({"options": 5}, None, "give SlurmOptions or a mapping"),
        (
            {},
            {"nodez": 2},
            "of asset train has the unknown key 'nodez' (did you mean 'nodes'?",
        ),
        ({}, {"mem": "lots"}, "mem='lots' is no memory size"),
        ({}, "nodes=2", "write a mapping"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_told_with_its_place(
    site: DagsterSite,
    materialize: Callable[..., dg.ExecuteInProcessResult],
    call: Call,
    metadata: Any,
    words: str,
) -> None:
    before = len(site.jobs)
    result = materialize(call, metadata=metadata)
    assert not result.success
    message, _ = failure_of(result)
    assert words in message
    assert len(site.jobs) == before


def test_a_mistake_in_the_launchpad_is_told_before_the_run(
    materialize: Callable[..., dg.ExecuteInProcessResult],
) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "partiton"'):
        materialize({}, config={"partiton": "main"})
    with pytest.raises(ValueError, match="did you mean 'partition'"):
        SlurmRunConfig(partiton="main")


def test_assets_that_run_together_must_agree(site: DagsterSite, tmp_path: Path) -> None:
    payload = tmp_path / "run.sh"
    payload.write_text("true")
    compute = ComputeResource(mode="slurm", slurm=SlurmResource(site=SITE, bus=site.bus))

    def run(**second: Any) -> dg.ExecuteInProcessResult:
        @dg.multi_asset(
            specs=[
                dg.AssetSpec("one", metadata={METADATA_KEY: {"nice": 2, "partition": "gpu"}}),
                dg.AssetSpec("two", metadata={METADATA_KEY: second}),
            ],
            required_resource_keys={"compute"},
        )
        def both(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
            context.resources.compute.run(context=context, payload_path=payload)
            yield dg.MaterializeResult("one")
            yield dg.MaterializeResult("two")

        return dg.materialize([both], resources={"compute": compute}, raise_on_error=False)

    assert run(nice="2", time_limit=5).success
    assert site.jobs[-1].spec.options == JobOptions(nice=2, partition="gpu", time_limit_minutes=5)
    message, _ = failure_of(run(nice=3))
    assert "assets one and two run as one job" in message
    assert "nice: 2, 3" in message


def test_an_agent_that_would_overlook_an_option_gets_no_request(site: DagsterSite) -> None:
    client = site.client.connect()
    first = JobSpec(name="job", plan=CommandPlan(argv=("true",)), options=JobOptions(partition="main"))
    later = JobSpec(name="job", plan=CommandPlan(argv=("true",)), options=JobOptions(begin="now", hold=True))
    before = len(site.jobs)
    site.beat(capabilities=("submit",), version="0.0.9")
    try:
        with pytest.raises(AgentTooOld, match=r"version 0\.0\.9 .*doesn't know 'options-2' .*the options begin, hold"):
            client.submit(later)
        client.follow(client.submit(first)).wait(10)
    finally:
        site.beat()
    client.follow(client.submit(later)).wait(10)
    assert [job.spec for job in site.jobs[before:]] == [first, later]
