"""``slurmbus-agent doctor``: can jobs run from here, through what, and what is missing."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from slurmbus_agent.config import AgentConfig
from slurmbus_agent.scheduler import choosing
from slurmbus_agent.scheduler.base import NoAccounting, Scheduler, SchedulerError
from slurmbus_agent.scheduler.choosing import Trial
from slurmbus_agent.scheduler.commands import NEEDED, find
from slurmbus_agent.scheduler.factory import make_scheduler
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import InvalidSetting, SlurmbusError

OLDEST_PYTHON = (3, 11)
SPOOL_ROOM = 100 * 1024 * 1024
"""Bytes; with less the spool is nearly full: a job's scripts, plan and output need some MB."""
BUS_PATIENCE = 10.0


class Grade(Enum):
    """How good a finding is, and how it is shown."""

    FINE = "ok"
    NOTE = "--"
    BROKEN = "NO"
    """No job can run because of it."""


FINE, NOTE, BROKEN = Grade


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    words: str
    grade: Grade = FINE
    hint: str = ""


async def findings(config: AgentConfig | None) -> AsyncIterator[Finding]:
    """Look at one thing after the other."""
    yield _python()
    wanted = config.scheduler if config is not None else "auto"
    conf = config.slurm_conf if config is not None else None
    kind: str | None = wanted
    if wanted != "local":
        yield _conf(conf)
        native, commands = [await asyncio.to_thread(choosing.try_out, name, conf) for name in ("native", "commands")]
        yield _pyslurm(native, needed=wanted == "native")
        yield _commands(commands, needed=wanted == "commands")
        chosen = _chosen(wanted, native, commands, conf)
        kind = chosen.what if chosen.grade is FINE else None
        yield chosen._replace(what="scheduler")
    else:
        yield Finding("scheduler", "'local': jobs are processes of this machine")
    if kind is not None and kind != "local":
        async for finding in _slurm(kind, conf):
            yield finding
    if config is not None:
        yield await asyncio.to_thread(_spool, config.spool_root)
        yield await _bus(config)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Finding("Python", f"{version} is too old", BROKEN, "install the agent with Python 3.11 or newer")
    return Finding("Python", f"{version} ({sys.executable})")


def _conf(slurm_conf: str | None) -> Finding:
    found = choosing.conf_of(slurm_conf)
    named = slurm_conf or os.environ.get("SLURM_CONF")
    if found is not None:
        return Finding("slurm.conf", found)
    if named:
        return Finding(
            "slurm.conf", f"there is none at {named}", BROKEN, "correct the setting slurm_conf or SLURM_CONF"
        )
    return Finding("slurm.conf", f"none of {', '.join(choosing.SLURM_CONFS)}; Slurm may fetch it (configless)", NOTE)


def _pyslurm(trial: Trial, *, needed: bool) -> Finding:
    if trial.works:
        return Finding("pyslurm", f"can be loaded; its Slurm is {trial.version}")
    return Finding("pyslurm", trial.problem, BROKEN if needed else NOTE, trial.hint)


def _commands(trial: Trial, *, needed: bool) -> Finding:
    if not trial.works:
        return Finding("commands", trial.problem, BROKEN if needed else NOTE, trial.hint)
    folders = sorted({str(Path(path).parent) for name in NEEDED if (path := find(name))})
    words = f"Slurm {trial.version or 'of unknown version'} in {', '.join(folders)}"
    if find("sacct") is None:
        return Finding("commands", f"{words}; no sacct", NOTE, "without it a job that Slurm has forgotten is LOST")
    return Finding("commands", words)


def _chosen(wanted: str, native: Trial, commands: Trial, conf: str | None) -> Finding:
    """Say which scheduler it is, as ``what``."""
    if wanted == "auto":
        try:
            kind, why = choosing.choose(native, commands, choosing.conf_of(conf))
        except InvalidSetting as error:
            return Finding("none", error.message, BROKEN, error.hint)
        return Finding(kind, f"'auto' picks '{kind}': {why}")
    trial = {"native": native, "commands": commands}.get(wanted)
    if trial is None:
        return Finding("none", f"there is no scheduler {wanted!r}", BROKEN)
    return Finding(wanted, f"'{wanted}', as the configuration says", FINE if trial.works else BROKEN)


async def _slurm(kind: str, conf: str | None) -> AsyncIterator[Finding]:
    scheduler = make_scheduler(kind, folder=Path(), slurm_conf=conf)
    try:
        try:
            seconds = await scheduler.ping()
        except SchedulerError as error:
            yield Finding("controller", error.message, BROKEN, error.hint or "is Slurm down? try: scontrol ping")
            return
        yield Finding("controller", f"answers within {seconds * 1000:.0f} ms")
        yield await _partitions(scheduler)
        yield await _accounting(scheduler)
    finally:
        await scheduler.aclose()


async def _partitions(scheduler: Scheduler) -> Finding:
    try:
        found = await scheduler.partitions()
    except SchedulerError as error:
        return Finding("partitions", error.message, BROKEN, error.hint)
    if not found:
        return Finding("partitions", "you see none", BROKEN, "ask the site's support whether your account is active")
    return Finding("partitions", ", ".join(f"{part.name}{' (default)' if part.default else ''}" for part in found))


async def _accounting(scheduler: Scheduler) -> Finding:
    try:
        await scheduler.accounting([(1, "slurmbus-doctor")], time.time())
    except NoAccounting as error:
        return Finding("accounting", error.message, NOTE, "a job that Slurm has forgotten is LOST; figures are missing")
    except SchedulerError as error:
        return Finding("accounting", error.message, NOTE, "jobs run; their ends and figures may come late")
    return Finding("accounting", "answers")


def _spool(root: Path) -> Finding:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="doctor-") as folder:
            # Claims are symlinks: see docs/architecture.md.
            (Path(folder) / "claim").symlink_to("doctor")
            (Path(folder) / "file").write_bytes(b"x" * 4096)
        free = shutil.disk_usage(root).free
    except OSError as error:
        return Finding("spool", f"{root} can't be used: {error.strerror}", BROKEN, "set spool to a folder of yours")
    words = f"{root}: {free / 2**30:.1f} GiB free"
    if free < SPOOL_ROOM:
        return Finding("spool", words, BROKEN, "make room, or set spool to another file system that all nodes share")
    return Finding("spool", words)


async def _bus(config: AgentConfig) -> Finding:
    servers = ", ".join(config.servers)
    try:
        async with asyncio.timeout(BUS_PATIENCE), Bus(config.bus_settings("doctor")):
            return Finding("bus", f"{servers} can be reached")
    except TimeoutError:
        return Finding("bus", f"{servers} gave no answer within {BUS_PATIENCE:g} s", BROKEN)
    except SlurmbusError as error:
        return Finding("bus", error.message, BROKEN, error.hint)


async def report(config: AgentConfig | None) -> int:
    """Print what is found, and give the exit code: 1 when no job can run."""
    broken = False
    async for finding in findings(config):
        print(f"{finding.grade.value}  {finding.what:<11} {finding.words}", flush=True)  # noqa: T201  # the command's own output
        if finding.hint and finding.grade is not FINE:
            print(f"    {'':<11} → {finding.hint}", flush=True)  # noqa: T201
        broken = broken or finding.grade is BROKEN
    print("Jobs can't run from here yet." if broken else "Jobs can run from here.")  # noqa: T201
    return int(broken)
