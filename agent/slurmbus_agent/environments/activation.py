"""What of a job's environment the runner has to know, once the environment is ready."""

from __future__ import annotations

from dataclasses import dataclass

from slurmbus_agent.environments.service import Environments, Tell
from slurmbus_agent.spool_files import RunnerEnvironment
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import (
    Environment,
    EnvironmentRef,
    FolderEnvironment,
    ImageEnvironment,
    ModulesEnvironment,
    NamedEnvironment,
)


@dataclass(frozen=True)
class Activation:
    """A job's environment, ready."""

    runner: RunnerEnvironment
    digest: str | None = None
    """Of an installed one."""


async def activate(wanted: Environment | None, environments: Environments, tell: Tell) -> Activation | None:
    """Get an environment ready; None when the job asks for none.

    Raises:
        SlurmbusError: it can't be had; see :meth:`Environments.ready`.
    """
    match wanted:
        case None:
            return None
        case EnvironmentRef():
            found = await environments.ready(wanted, tell)
            return Activation(RunnerEnvironment(prefix=str(found.prefix)), found.info.digest)
        case NamedEnvironment(name=name):
            found = await environments.resolve(name)
            return Activation(RunnerEnvironment(prefix=str(found.prefix)), found.info.digest)
        case FolderEnvironment(path=path):
            return Activation(RunnerEnvironment(prefix=_absolute(path)))
        case ModulesEnvironment(load=load, use=use, purge=purge):
            words = [*(["purge"] if purge else []), *(f"use {folder}" for folder in use), *(f"load {n}" for n in load)]
            return Activation(RunnerEnvironment(modules=tuple(words)))
        case ImageEnvironment(path=path, binds=binds, options=options, program=program):
            return Activation(RunnerEnvironment(image=_absolute(path), binds=binds, options=options, program=program))


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidSetting(f"environment: {path!r} is no absolute path", hint="name it as compute nodes see it")
    return path.rstrip("/") or "/"
