"""Agents as external assets: a real Dagster, a real bus, a real agent that is killed and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest

from contract.agent_site import SITE, RealAgent, agent_site, shell
from contract.bus_site import BusSite, bus_site, wait_until
from contract.dagster_dev import DagsterDev
from dagster_slurmbus import (
    BusResource,
    PipesSlurmClient,
    SlurmResource,
    slurmbus_agent_assets,
    slurmbus_agent_checks,
    slurmbus_agents_sensor,
)
from dagster_slurmbus.agent_health import judge
from slurmbus.events import AgentStatus
from slurmbus.home import Home
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol.messages import BudgetUse, Heartbeat, SchedulerHealth, Vitals

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)

DEFINITIONS = Path(__file__).parent / "payloads" / "agent_assets.py"
KEY = dg.AssetKey(["slurmbus_agents", "leonardo"])
CHECK = dg.AssetCheckKey(KEY, "heartbeat")
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


class Watched:
    """What Dagster's event log says of the asset."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def observations(self) -> list[dg.AssetObservation]:
        records = self.instance.fetch_observations(KEY, limit=100).records
        found = [record.event_log_entry.asset_observation for record in records]
        return [one for one in found if one is not None]

    def check(self) -> Any:
        records = self.instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=1)
        event = records[0].event if records else None
        return event.dagster_event.asset_check_evaluation_data if event and event.dagster_event else None

    def wait_for(self, words: str, *, passed: bool = True) -> None:
        def there() -> bool:
            found = self.check()
            return found is not None and found.passed is passed and words in (found.description or "")

        wait_until(there, f"the check: {words}", 90)


def test_an_agent_that_is_killed_fails_its_check_until_it_is_back(tmp_path: Path) -> None:
    """The daemon of a real ``dagster dev`` evaluates the sensor."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").touch()
    with agent_site(tmp_path) as (site, agent), dg.DagsterInstance.from_config(str(home)) as instance:
        key = site.client.submit(shell("sleep 1000"))  # with a job the heart beats every 2 s
        dev = DagsterDev(home, DEFINITIONS, SITE=SITE, BUS_HOME=str(site.home.path), DAGSTER_DISABLE_TELEMETRY="1")
        with dev.running():
            watched = Watched(instance)
            watched.wait_for("serves")
            killed(agent)
            watched.wait_for("is silent, its last heartbeat came ", passed=False)
            seen = len(watched.observations())
            assert seen <= 4, "one for each thing that happened, not one for each look"
            agent.start()
            watched.wait_for("serves, with 1 unfinished job")
            assert len(watched.observations()) == seen + 1
            newest = {name: value.value for name, value in watched.observations()[0].metadata.items()}
            assert newest["slurmbus/site"] == SITE
            assert newest["slurmbus/jobs"] == 1
            assert newest["slurmbus/memory_bytes"] > 1_000_000
            assert newest["slurmbus/cpu_seconds"] > 0
            assert shown_in_the_ui(dev) == {"kinds": ["slurm"], "group": "slurmbus", "check": "SUCCEEDED"}
        site.client.cancel(key)
        wait_until(lambda: (record := site.client.record(key)) is not None and record.state.is_final, "the end", 60)


def killed(agent: RealAgent) -> None:
    assert agent.process is not None
    agent.process.kill()
    agent.process.wait()


def shown_in_the_ui(dev: DagsterDev) -> dict[str, Any]:
    (node,) = dev.ask(
        "{ assetNodes { kinds groupName isExecutable assetChecksOrError { ... on AssetChecks { checks { name "
        "executionForLatestMaterialization { status } } } } } }"
    )["assetNodes"]
    assert not node["isExecutable"]
    (check,) = node["assetChecksOrError"]["checks"]
    status = check["executionForLatestMaterialization"]["status"]
    return {"kinds": node["kinds"], "group": node["groupName"], "check": status}


# ------------------------------------------------------------------ one look


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("agents")) as site:
        yield site


def tick(instance: dg.DagsterInstance, cursor: str | None, resource: Any, **settings: Any) -> Any:
    sensor = slurmbus_agents_sensor("leonardo", **settings)
    with dg.build_sensor_context(instance=instance, resources={"leonardo": resource}, cursor=cursor) as context:
        return sensor.evaluate_tick(context)


def resource_of(site: BusSite) -> SlurmResource:
    return SlurmResource(site=SITE, bus=BusResource(home=str(site.home.path)))


def test_what_happens_is_noted_once_and_a_quiet_time_now_and_then(quiet: BusSite, instance: dg.DagsterInstance) -> None:
    resource = resource_of(quiet)
    first = tick(instance, None, resource)
    (evaluation,) = first.asset_events
    assert isinstance(evaluation, dg.AssetCheckEvaluation)
    assert not evaluation.passed
    assert "has ever been heard of: start 'slurmbus-agent run --site scripted' there" in (evaluation.description or "")
    assert list(tick(instance, first.cursor, resource).asset_events) == []

    async def beat(agent: ScriptedAgent) -> None:
        await agent.heartbeat(alarms=("the bus takes no more LOGS",))

    quiet.play(beat)
    second = tick(instance, first.cursor, resource)
    assert [type(event) for event in second.asset_events] == [dg.AssetObservation, dg.AssetCheckEvaluation]
    evaluation = second.asset_events[1]
    assert isinstance(evaluation, dg.AssetCheckEvaluation)
    assert (evaluation.passed, evaluation.severity) == (False, WARN)
    assert (evaluation.description or "").endswith("serves, but the bus takes no more LOGS")
    assert list(tick(instance, second.cursor, resource).asset_events) == []
    assert len(tick(instance, second.cursor, resource, observe_every_seconds=0).asset_events) == 2
    assert "the bus takes no more LOGS" in second.skip_message


def test_the_check_can_be_run_by_hand(quiet: BusSite, instance: dg.DagsterInstance) -> None:
    async def beat(agent: ScriptedAgent) -> None:
        await agent.heartbeat(released=True)

    quiet.play(beat)
    checks = slurmbus_agent_checks("leonardo")
    defs = dg.Definitions(
        assets=slurmbus_agent_assets("leonardo"),
        asset_checks=checks,
        jobs=[dg.define_asset_job("look", dg.AssetSelection.checks(*checks))],
        resources={"leonardo": resource_of(quiet)},
    )
    result = defs.resolve_job_def("look").execute_in_process(instance=instance)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "was stopped" in (evaluation.description or "")


def test_a_bus_that_is_away_fails_the_check(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.add_site("gone")
    gone = PipesSlurmClient(site="gone", bus=BusResource(home=str(home.path)))
    (evaluation,) = tick(instance, None, gone).asset_events
    assert isinstance(evaluation, dg.AssetCheckEvaluation)
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert "the agent can't be looked for: " in (evaluation.description or "")


def test_a_further_site_of_a_resource_has_an_asset_of_its_own() -> None:
    one, two = slurmbus_agent_assets("compute", "compute/jureca-alice")
    assert one.key == dg.AssetKey(["slurmbus_agents", "compute"])
    assert two.key == dg.AssetKey(["slurmbus_agents", "compute", "jureca-alice"])
    sensor = slurmbus_agents_sensor("compute", "compute/jureca-alice")
    assert sensor.required_resource_keys == {"compute"}
    for function in (slurmbus_agent_assets, slurmbus_agent_checks, slurmbus_agents_sensor):
        with pytest.raises(ValueError, match="needs the keys of the resources"):
            function()


# ------------------------------------------------------------------ the judgement


def status(age: float = 1.0, **changes: Any) -> AgentStatus:
    beat = Heartbeat(
        site=SITE,
        agent_id="login-1",
        epoch=3,
        leader=True,
        interval=2.0,
        lease_seconds=6.0,
        host="login01",
        user="alice",
        pid=1,
        version="1",
        protocol=(1, 1),
        capabilities=(),
        started_at=0.0,
        sent_at=100.0,
        scheduler=SchedulerHealth(kind="native", responding=True, since=0.0, calls={"jobs": 3, "submit": 1}),
        vitals=Vitals(jobs={"RUNNING": 2}, budgets=(BudgetUse(name="cpu-time", used=3.0, limit=6.0, unit="s"),)),
    )
    return AgentStatus(msgspec.structs.replace(beat, **changes), age)


@pytest.mark.parametrize(
    ("agent", "passed", "severity", "words"),
    [
        (status(), True, ERROR, "the agent login-1 on login01 serves, with 2 unfinished jobs"),
        (status(61.0), False, ERROR, "the agent login-1 on login01 is silent, its last heartbeat came 61 s ago"),
        (status(released=True), False, ERROR, "the agent login-1 on login01 was stopped 1 s ago"),
        (
            status(scheduler=SchedulerHealth(kind="native", responding=False, since=0.0, error="timed out")),
            False,
            WARN,
            "the agent login-1 on login01 serves, but its scheduler (native) doesn't answer: timed out",
        ),
        (
            status(vitals=Vitals(slowed="CPU time")),
            False,
            WARN,
            "the agent login-1 on login01 serves, but it has slowed down: CPU time",
        ),
    ],
)
def test_the_last_heartbeat_is_judged(
    agent: AgentStatus, passed: bool, severity: dg.AssetCheckSeverity, words: str
) -> None:
    health = judge(SITE, [agent])
    assert (health.passed, health.severity, health.words) == (passed, severity, words)


def test_figures_are_numbers() -> None:
    standby = status(leader=False, agent_id="login-2")
    metadata = judge(SITE, [status(), standby]).metadata or {}
    found = {name.removeprefix("slurmbus/"): value.value for name, value in metadata.items()}
    assert found["budget/cpu-time"] == 0.5
    assert found["jobs"] == found["jobs/RUNNING"] == 2
    assert found["scheduler_calls"] == 4
    assert found["standbys"] == 1
    assert found["uptime_seconds"] == 100.0
    assert "bus_round_trip_seconds" not in found
