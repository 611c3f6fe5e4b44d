"""Definitions with the agent of one site as an external asset."""

import os

import dagster as dg

from dagster_slurmbus import (
    BusResource,
    SlurmResource,
    slurmbus_agent_assets,
    slurmbus_agent_checks,
    slurmbus_agents_sensor,
)

defs = dg.Definitions(
    assets=slurmbus_agent_assets("leonardo"),
    asset_checks=slurmbus_agent_checks("leonardo"),
    sensors=[slurmbus_agents_sensor("leonardo", minimum_interval_seconds=1)],
    resources={"leonardo": SlurmResource(site=os.environ["SITE"], bus=BusResource(home=os.environ["BUS_HOME"]))},
)
