"""What stands in the spool's small files.

The runner reads and writes the same shapes with nothing but the standard library; the table of all of them is in
:mod:`slurmbus_agent.runner.protocol`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from slurmbus_protocol.messages import Live, NonNegative, Usage


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The signed request of a job, as it came from the bus (file ``request``, msgpack)."""

    subject: str
    headers: dict[str, str]
    data: bytes


class RunnerEnvironment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the payload runs in; one of prefix, modules and image is set."""

    prefix: str = ""
    """A virtual environment or a conda prefix."""
    modules: tuple[str, ...] = ()
    """Words for ``module``: ``load gcc/13``."""
    image: str = ""
    """An Apptainer image."""
    binds: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    program: str = "apptainer"


class RunnerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the runner shall do (file ``plan.json``)."""

    key: str
    task: NonNegative
    argv: tuple[str, ...]
    cwd: str
    """An existing folder on the compute node."""
    work: str = ""
    """The job's own working directory, where its files are; empty is ``cwd``."""
    secret: bytes
    """At least 16 random bytes with which runner and agent prove themselves to each other; base64 in the file."""
    preamble: str = ""
    env: dict[str, str] = {}
    requeue: bool = False
    """Whether a start may follow another one."""
    pipes: bool = False
    """Whether the payload gets Dagster Pipes' two variables; then the file ``context`` must be there, too."""
    pipes_path: str | None = None
    """The folder of the ``dagster_pipes`` module; goes to the end of the payload's PYTHONPATH."""
    launch: dict[str, Any] | None = None
    """What starts before the payload (a plan's ``type`` and its own fields); None runs ``argv`` as it is."""
    array_index: NonNegative | None = None
    """Of a task of a job array: its index in Slurm."""
    link: str | None = None
    """The file with the link's address; None for a job that reports by the spool alone."""
    environment: RunnerEnvironment | None = None
    """None is what the login shell gives."""
    secrets: bool = False
    """Whether there are secret variables, in a file of each start."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who has taken a start (the target of the symlink ``starts/<n>``)."""

    start: NonNegative
    job_id: NonNegative
    node: str
    nonce: str
    claimed_at: float = 0.0
    """By the clock of who claimed."""


class EndReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a start ended, in the runner's words."""

    exit_code: int | None
    """None when a signal ended it."""
    signal: int | None
    ended_at: float
    sizes: dict[str, NonNegative]
    """Bytes of each stream; nothing is written after them."""
    started_at: float | None = None
    """None when the payload couldn't be started."""
    error: str | None = None
    """What went wrong outside the payload, for people."""
    error_code: str | None = None
    """The same for programs: one of the ERROR_… of :mod:`slurmbus_agent.runner.protocol`."""
    usage: Usage | None = None
    live: Live | None = None
    """What it used when the runner last looked, and the highest that it saw."""
    facts: dict[str, str] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner last reported as durable (file ``<n>.report``)."""

    start: NonNegative
    job_id: NonNegative
    node: str
    nonce: str
    reported_at: float
    sizes: dict[str, NonNegative]
    """Bytes of each stream that other hosts can read."""
    started_at: float | None = None
    live: Live | None = None
    facts: dict[str, str] = {}
    end: EndReport | None = None

    @property
    def ended(self) -> bool:
        """True when nothing more follows."""
        return self.end is not None


class LinkAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where runners reach the agent (file ``link``)."""

    hosts: tuple[str, ...]
    """Tried in this order."""
    port: NonNegative
    server: str
    """Random for each start of the server; part of both sides' proofs, so that nobody can stand in between."""
    epoch: NonNegative = 0
    """The lease under which it was written, for people."""
    fingerprint: str = ""
    """SHA-256 of the agent's certificate, in hex: runners speak to nobody else. Agents from before there was TLS have
    none."""
