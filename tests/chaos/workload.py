"""The jobs of a run: what each does, when it is submitted and when it is disturbed. Derived from the seed alone."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from enum import StrEnum

from chaos.payload import LINE, pattern
from slurmbus_protocol.messages import CommandPlan, FileRef, JobOptions, JobSpec
from slurmbus_protocol.subjects import Stream

RUNS = "/home/alice/chaos"
"""Where payloads note their executions: on the shared home, not in the spool."""


class Kind(StrEnum):
    """What a job is there for."""

    SHORT = "short"
    LONG = "long"
    FAILING = "failing"
    CHATTY = "chatty"
    CANCELLED = "cancelled"
    CANCELLED_AT_ONCE = "cancelled at once"
    REQUEUED = "requeued"
    SIGNALLED = "signalled"


MIX: dict[Kind, float] = {
    Kind.SHORT: 58,
    Kind.CHATTY: 11,
    Kind.FAILING: 9,
    Kind.CANCELLED: 8,
    Kind.REQUEUED: 5,
    Kind.CANCELLED_AT_ONCE: 3,
    Kind.SIGNALLED: 3,
    Kind.LONG: 3,
}
"""How many of a hundred jobs are of which kind. Long ones keep a processor, so there are few."""


@dataclass(frozen=True)
class PlannedJob:
    """One job, as the seed wants it."""

    id: str
    kind: Kind
    at: float
    """Seconds after the run's begin at which it is submitted."""
    seconds: float
    lines: dict[Stream, int]
    exit_code: int = 0
    signal: int = 0
    cancel_after: float | None = None
    """Seconds after the submit; below 0 the cancel is sent first."""
    requeue_after: float | None = None
    """Seconds after the payload's first begin at which a person says `scontrol requeue`."""
    output: str = ""
    """A file that the payload writes and that shall come back."""

    @property
    def requeue(self) -> bool:
        """True when Slurm may start it again."""
        return self.kind is Kind.REQUEUED

    def expected(self, stream: Stream) -> bytes:
        """Give every byte that a whole execution writes to a stream."""
        return pattern(self.id, stream.value, 0, self.lines.get(stream, 0))

    def size(self, stream: Stream) -> int:
        """Give how many bytes that is."""
        return self.lines.get(stream, 0) * LINE

    def spec(self, payload: FileRef) -> JobSpec:
        """Give the request."""
        plan = {
            "id": self.id,
            "folder": RUNS,
            "seconds": self.seconds,
            "pieces": max(1, min(20, int(self.seconds / 0.2))),
            "exit": self.exit_code,
            "signal": self.signal,
            "output": self.output,
            **{stream.value: count for stream, count in self.lines.items()},
        }
        return JobSpec(
            name=self.id,
            plan=CommandPlan(argv=("python3", "-I", "-S", payload.path, json.dumps(plan))),
            options=JobOptions(requeue=self.requeue, time_limit_minutes=5),
            files=(payload,),
            outputs=(self.output,) if self.output else (),
            pipes_context=b"{}",
            labels={"chaos": self.kind.value},
        )


def plan_jobs(rng: random.Random, count: int, seconds: float) -> list[PlannedJob]:
    """Give `count` jobs, spread over `seconds`, in the order of their submits."""
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    kinds = rng.choices(list(MIX), weights=list(MIX.values()), k=count)
    return [
        _plan_job(rng, f"j{number:04d}", kind, at) for number, (kind, at) in enumerate(zip(kinds, times, strict=True))
    ]


def _plan_job(rng: random.Random, name: str, kind: Kind, at: float) -> PlannedJob:
    lines = {Stream.STDOUT: rng.randint(1, 20), Stream.STDERR: rng.randint(0, 3), Stream.MESSAGES: rng.randint(0, 5)}
    short = rng.choice((0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0))
    cancel_after = requeue_after = None
    exit_code = signal = 0
    match kind:
        case Kind.LONG:
            short = rng.uniform(10, 45)
            lines = dict.fromkeys(Stream, rng.randint(20, 400))
        case Kind.CHATTY:
            lines = {Stream.STDOUT: rng.randint(500, 12_000), Stream.STDERR: rng.randint(100, 2_000)}
            lines[Stream.MESSAGES] = rng.randint(100, 3_000)
            short = rng.uniform(0.2, 6)
        case Kind.FAILING:
            exit_code = rng.randint(1, 99)
        case Kind.SIGNALLED:
            signal = rng.choice((6, 9, 11, 15))
        case Kind.CANCELLED:
            short = rng.uniform(3, 25)
            cancel_after = rng.choice((0.2, 0.5, 1.0, 2.0, 4.0, 8.0)) * rng.uniform(0.5, 1.5)
        case Kind.CANCELLED_AT_ONCE:
            short = rng.uniform(1, 10)
            cancel_after = rng.choice((-0.2, 0.0, 0.02, 0.05))
        case Kind.REQUEUED:
            short = rng.uniform(3, 8)
            requeue_after = rng.uniform(0.2, 3)
        case Kind.SHORT:
            pass
    return PlannedJob(
        id=name,
        kind=kind,
        at=at,
        seconds=round(short, 3),
        lines=lines,
        exit_code=exit_code,
        signal=signal,
        cancel_after=cancel_after,
        requeue_after=requeue_after,
    )
