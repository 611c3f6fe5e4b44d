"""What the page is told: the picture's parts as small values that go as JSON."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from slurmbus.history import History, ended_at, started_at
from slurmbus.picture import AgentName, AgentView, BusName, BusView, JobName, Name, Picture
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.messages import Record

_NON_ZERO = "NonZeroExitCode"


def text_name(name: Name) -> str:
    """Write a name as the page knows it: ``site/key/task``, ``site/agent`` or the bus's name."""
    return name.bus if isinstance(name, BusName) else "/".join(map(str, name))


def bus_value(bus: BusView) -> dict[str, Any]:
    """Give a bus."""
    return {
        "id": bus.name,
        "sites": bus.sites,
        "reachable": bus.reachable,
        "problem": bus.problem,
        "since": bus.since,
        "roundTrip": bus.round_trip,
    }


def agent_value(agent: AgentView, *, beats: bool) -> dict[str, Any]:
    """Give an agent; with all its remembered beats, or only the last."""
    beat = agent.heartbeat
    remembered = agent.beats if beats else list(agent.beats)[-1:]
    return {
        "id": text_name(agent.name),
        "site": beat.site,
        "agent": beat.agent_id,
        "bus": agent.bus,
        "at": agent.at,
        "leader": agent.leader,
        "beats": [(round(one.at, 3), one.leader) for one in remembered],
        "interval": beat.interval,
        "leaseSeconds": beat.lease_seconds,
        "released": beat.released,
        "host": beat.host,
        "user": beat.user,
        "pid": beat.pid,
        "version": beat.version,
        "protocol": beat.protocol,
        "epoch": beat.epoch,
        "startedAt": beat.started_at,
        "scheduler": msgspec.to_builtins(beat.scheduler),
        "vitals": msgspec.to_builtins(beat.vitals),
        "alarms": beat.alarms,
        "authorityUntil": beat.authority_expires_at,
    }


def job_value(name: JobName, record: Record) -> dict[str, Any]:
    """Give a job as the table shows it."""
    return {
        "id": text_name(name),
        "site": record.site,
        "key": record.key,
        "task": record.task if record.tasks else None,
        "name": f"{record.name}[{record.task_name or record.task}]" if record.tasks else record.name,
        "state": record.state.value,
        "word": record.slurm_state if record.slurm_state not in {None, record.state.value} else None,
        "final": record.state.is_final,
        "slurmId": slurm_id(record),
        "partition": record.partition or record.options.partition or "",
        "nodes": record.node_list or "",
        "created": record.created_at,
        "started": started_at(record),
        "ended": ended_at(record),
        "reason": _reason(record),
        "cancelling": record.cancel is not None and not record.state.is_final,
        "requeueable": record.requeue and record.scheduler != "local",
        "requeueing": any(not one.outcome for one in record.requeues),
        "labels": " ".join(record.labels.values()),
    }


def _reason(record: Record) -> str:
    reason = record.reason or ""
    if reason.startswith(_NON_ZERO) and record.exit_code is not None:
        return f"exit code {record.exit_code}"
    return "" if reason in {"None", _NON_ZERO} else reason


def record_value(record: Record) -> dict[str, Any]:
    """Give everything that is known of a job."""
    value: dict[str, Any] = msgspec.to_builtins(record)
    value["summary"] = job_value(JobName(record.site, record.key, record.task), record)
    return value


def history_value(history: History) -> dict[str, Any]:
    """Give the jobs over time."""
    return {
        "end": history.end,
        "step": history.step,
        "waiting": history.waiting,
        "running": history.running,
        "completed": history.completed,
        "failed": history.failed,
        "cancelled": history.cancelled,
    }


def changes_value(picture: Picture, names: list[Name], *, whole: bool) -> dict[str, Any]:
    """Give the parts of the picture that have these names; those that aren't there any more are gone."""
    buses, agents, jobs, gone = [], [], [], []
    for name in names:
        if isinstance(name, BusName) and name.bus in picture.buses:
            buses.append(bus_value(picture.buses[name.bus]))
        elif isinstance(name, AgentName) and name in picture.agents:
            agents.append(agent_value(picture.agents[name], beats=whole))
        elif isinstance(name, JobName) and name in picture.jobs:
            jobs.append(job_value(name, picture.jobs[name]))
        else:
            gone.append(text_name(name))
    found = {"buses": buses, "agents": agents, "jobs": jobs, "gone": gone}
    return {"type": "changes", "now": time.time(), "whole": whole, **{key: some for key, some in found.items() if some}}
