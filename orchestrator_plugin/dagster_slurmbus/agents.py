"""Each site's agent as an external asset, a sensor that feeds it with heartbeats, and a check that they come."""

# No "from __future__ import annotations" here: Dagster reads the annotation of a check's context at run time.
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from dagster_slurmbus.agent_health import AgentHealth, look
from dagster_slurmbus.resource_sites import pipes_client_of

PREFIX = "slurmbus_agents"
CHECK = "heartbeat"
LOOK_EVERY = 60
"""Seconds between two looks: each reads a handful of small messages from the bus, and asks the agent nothing."""
OBSERVE_EVERY = 900.0
"""Seconds between two observations while nothing happens: 100 a day make a curve, and Dagster keeps them for ever."""


def slurmbus_agent_assets(*resource_keys: str, group_name: str = "slurmbus") -> list[dg.AssetSpec]:
    """Give each site's agent as an external asset.

    Args:
        resource_keys: of the resources whose sites are meant: ``ComputeResource``, ``SlurmResource`` or
            ``PipesSlurmClient``. A further site of a resource is ``"compute/jureca-alice"``.
        group_name: the group in the asset graph.
    """
    return [
        dg.AssetSpec(
            _asset_key(target),
            description=f"The agent of the site behind the resource `{_resource_key(target)}`: "
            "it submits and follows Slurm jobs there.",
            group_name=group_name,
            kinds={"slurm"},
        )
        for target in _checked(resource_keys, "slurmbus_agent_assets")
    ]


def slurmbus_agent_checks(*resource_keys: str) -> list[dg.AssetChecksDefinition]:
    """Give a check for each of those assets, which fails when the agent's heartbeat has stopped, and warns of alarms.

    The sensor evaluates it by itself; run by hand it looks anew.

    Args:
        resource_keys: as for :func:`slurmbus_agent_assets`.
    """
    return [_check(target) for target in _checked(resource_keys, "slurmbus_agent_checks")]


def slurmbus_agents_sensor(
    *resource_keys: str,
    name: str = "slurmbus_agents",
    observe_every_seconds: float = OBSERVE_EVERY,
    minimum_interval_seconds: int = LOOK_EVERY,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Give a sensor that observes those assets, and evaluates their checks.

    An observation has the agent's figures as metadata. One is made when something has happened (the heartbeat stopped
    or came back, another agent took over, an alarm) and otherwise every ``observe_every_seconds``.

    Args:
        resource_keys: as for :func:`slurmbus_agent_assets`.
        name: of the sensor.
        observe_every_seconds: between two observations while nothing happens.
        minimum_interval_seconds: between two looks.
        default_status: whether the sensor runs without being switched on.
    """
    targets = _checked(resource_keys, "slurmbus_agents_sensor")

    @dg.sensor(
        name=name,
        required_resource_keys={_resource_key(target) for target in targets},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Observes the agents of Slurmbus' sites, and checks their heartbeats.",
    )
    def agents(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen: dict[str, tuple[str, float]] = json.loads(context.cursor or "{}")
        now = time.time()
        events: list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        told = []
        for target in targets:
            health = _look(context.resources, target)
            told.append(f"{target}: {health.words}")
            kind, at = seen.get(target, ("", 0.0))
            if health.kind != kind or now - at >= observe_every_seconds:
                seen[target] = (health.kind, now)
                events += _events(target, health)
        known = {target: seen[target] for target in targets}
        return dg.SensorResult(asset_events=events, cursor=json.dumps(known), skip_reason="; ".join(told))

    return agents


def _check(target: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=_asset_key(target),
        name=CHECK,
        description="The site's agent serves; alarms are warnings.",
        required_resource_keys={_resource_key(target)},
    )
    def heartbeat(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        health = _look(context.resources, target)
        return dg.AssetCheckResult(
            passed=health.passed, severity=health.severity, description=health.words, metadata=health.metadata
        )

    return heartbeat


def _look(resources: Any, target: str) -> AgentHealth:
    key, _, site = target.partition("/")
    client = pipes_client_of(resources, key, "slurmbus_agents")
    return look(lambda: client.connect(site or None))


def _events(target: str, health: AgentHealth) -> Iterator[dg.AssetObservation | dg.AssetCheckEvaluation]:
    key = _asset_key(target)
    if health.metadata is not None:
        yield dg.AssetObservation(key, description=health.words, metadata=health.metadata)
    yield dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=CHECK,
        passed=health.passed,
        severity=health.severity,
        description=health.words,
        metadata=health.metadata,
    )


def _checked(resource_keys: Sequence[str], asker: str) -> tuple[str, ...]:
    if not resource_keys:
        raise ValueError(f"{asker} needs the keys of the resources whose agents are meant")
    return tuple(dict.fromkeys(resource_keys))


def _resource_key(target: str) -> str:
    return target.partition("/")[0]


def _asset_key(target: str) -> dg.AssetKey:
    return dg.AssetKey([PREFIX, *target.split("/")])
