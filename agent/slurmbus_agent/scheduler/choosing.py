"""What ``auto`` stands for: pyslurm where it fits the Slurm that is here, else Slurm's commands.

Each is tried in a process of its own, since loading pyslurm may end the process that does it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from slurmbus_agent.scheduler.base import SchedulerError
from slurmbus_agent.scheduler.calls import HEADER, STARTED, Answer, Call, pack, raw, result_of, version_of
from slurmbus_protocol.errors import InvalidSetting

SLURM_CONFS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
"""Where packages, older packages and configless sites (slurmd, sackd) put it."""
PATIENCE = 40.0
"""Seconds for one trial: loading pyslurm from a cold file system, and a ping that the controller doesn't answer."""
_LAST_WORDS = 300


class Trial(NamedTuple):
    """What came of trying one scheduler."""

    kind: str
    version: str | None
    """Slurm's version as this scheduler knows it; None when it can't be used here."""
    problem: str = ""
    hint: str = ""
    answers: bool = False
    """Whether the controller answers it."""

    @property
    def works(self) -> bool:
        """Whether it can be used, though the controller may be down just now."""
        return self.version is not None


class Choice(NamedTuple):
    """The scheduler that ``auto`` picks."""

    kind: str
    why: str


def conf_of(slurm_conf: str | None) -> str | None:
    """Give the slurm.conf that is here: the one that is named, or where it usually lies."""
    named = slurm_conf or os.environ.get("SLURM_CONF")
    return next((path for path in ([named] if named else SLURM_CONFS) if Path(path).exists()), None)


def try_out(kind: str, slurm_conf: str | None = None) -> Trial:
    """Start a scheduler's process, have it ping the controller, and end it."""
    if kind == "native" and importlib.util.find_spec("pyslurm") is None:
        return Trial(kind, None, "pyslurm isn't installed here", "pip install 'slurmbus-agent[pyslurm]'")
    conf = ["--conf", slurm_conf] if slurm_conf else []
    try:
        done = subprocess.run(
            [sys.executable, "-m", "slurmbus_agent.scheduler.child", kind, *conf],
            input=pack(Call(STARTED + 1, "ping", raw(()))),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(kind, None, f"its process didn't answer within {PATIENCE:g} s")
    answers = _answers(done.stdout)
    if not answers:
        said = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS:]
        return Trial(kind, None, f"its process ended with {done.returncode}: {said}")
    try:
        version = version_of(answers[0])
    except SchedulerError as error:
        return Trial(kind, None, error.message, error.hint)
    try:
        if len(answers) > 1:
            result_of("ping", answers[1])
            return Trial(kind, version, answers=True)
        return Trial(kind, version, f"its process ended with {done.returncode} at a ping")
    except SchedulerError as error:
        return Trial(kind, version, error.message, error.hint)


def _answers(stdout: bytes) -> list[Answer]:
    found = []
    while len(stdout) >= HEADER:
        end = HEADER + int.from_bytes(stdout[:HEADER], "big")
        found.append(msgspec.msgpack.decode(stdout[HEADER:end], type=Answer))
        stdout = stdout[end:]
    return found


def choose(native: Trial, commands: Trial, conf: str | None) -> Choice:
    """Pick a scheduler.

    Raises:
        InvalidSetting: neither can be used; nobody shall run jobs on a login node by mistake.
    """
    if not commands.works and not native.works:
        raise InvalidSetting(
            f"Slurm can't be used here: {native.problem}; {commands.problem}",
            hint="slurmbus-agent doctor says more; on a laptop set the scheduler to 'local'",
        )
    if not (native.answers or commands.answers or conf):
        raise InvalidSetting(
            f"Slurm's commands are here, but no slurm.conf ({', '.join(SLURM_CONFS)}), and no controller answers",
            hint="name it in the setting slurm_conf; on a laptop set the scheduler to 'local'",
        )
    if not native.works:
        return Choice("commands", native.problem)
    if commands.works and _release(commands.version) != _release(native.version):
        return Choice(
            "commands",
            f"pyslurm is of Slurm {native.version}, the commands here of {commands.version or 'an unknown one'}",
        )
    if commands.answers and not native.answers:
        return Choice("commands", f"the controller answers Slurm's commands, but not pyslurm: {native.problem}")
    return Choice("native", f"pyslurm fits Slurm {native.version}")


def _release(version: str | None) -> tuple[str, ...]:
    """Give what has to be the same: 24.11 of 24.11.5."""
    return tuple((version or "").split(".")[:2])


def automatic(slurm_conf: str | None) -> Choice:
    """Try the schedulers and pick one."""
    return choose(try_out("native", slurm_conf), try_out("commands", slurm_conf), conf_of(slurm_conf))
