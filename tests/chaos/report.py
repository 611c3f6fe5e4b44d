"""Tells what came of a run: a table for people, JSON for programs, and the evidence of what was broken."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from chaos.checker import Promise, Verdict
from chaos.history import JobHistory, RunHistory, StepHistory
from chaos.measures import NONE, SEVERAL, Recovery, recoveries, takeovers
from slurmbus_protocol.states import JobState

SHOWN = 40
"""Breaches on the terminal; all of them stand in the JSON."""


def summary(run: RunHistory, verdict: Verdict) -> dict[str, Any]:
    """Give everything that counts as plain data."""
    return {
        "seed": run.seed,
        "seconds": round(run.end - run.begin, 1),
        "counts": asdict(verdict.counts),
        "promises": {promise.value: verdict.of(promise) for promise in Promise},
        "recoveries": [asdict(recovery) for recovery in recoveries(run)],
        "takeovers": {kind: [round(value, 2) for value in values] for kind, values in takeovers(run).items()},
        "breaches": [
            {"promise": breach.promise.value, "who": breach.who, "words": breach.words, "amount": breach.amount}
            for breach in verdict.breaches
        ],
    }


def table(run: RunHistory, verdict: Verdict) -> str:
    """Give the table."""
    counts = verdict.counts
    by_kind = {recovery.kind: recovery for recovery in recoveries(run)}
    states = ", ".join(f"{state} {number}" for state, number in counts.states.items())
    lines = [
        f"seed {run.seed}, {run.end - run.begin:.0f} s",
        f"  requests {counts.requests} (accepted {counts.accepted}), Slurm jobs {counts.jobs}, starts {counts.starts}",
        f"  executions {counts.executions}, cancels {counts.cancels}, requeues {counts.requeues}",
        f"  twins {counts.twins}, starts that ended at the claim {counts.turned_away}",
        f"  Dagster steps {counts.steps}, killed {counts.step_kills} times",
        f"  states: {states}",
        f"  bytes expected {counts.expected:,}, arrived {counts.arrived:,}",
        "",
        f"  {'fault':<40}{'times':>6}{'longest recovery':>18}",
        *(_fault_line(kind, counts.faults.get(kind), by_kind.get(kind)) for kind in [*counts.faults, SEVERAL, NONE]),
        *(_takeover_line(kind, values) for kind, values in takeovers(run).items()),
    ]
    lines += ["", "  promise, broken how often"]
    lines += [f"  {promise.value:<40}{verdict.of(promise):>8}" for promise in Promise]
    if verdict.breaches:
        lines += ["", "  what was broken"]
        lines += [f"  {one.promise.value}: {one.who}: {one.words}" for one in verdict.breaches[:SHOWN]]
        if len(verdict.breaches) > SHOWN:
            lines.append(f"  … and {len(verdict.breaches) - SHOWN} more")
    return "\n".join(lines)


def _fault_line(kind: str, times: int | None, recovery: Recovery | None) -> str:
    told = f"{recovery.seconds:>14.1f} s  {recovery.job} {recovery.what}" if recovery is not None else f"{'—':>16}"
    return f"  {kind:<40}{times if times is not None else '':>6}{told}"


def _takeover_line(kind: str, values: list[float]) -> str:
    median = statistics.median(values)
    return f"  takeover, {kind}: {len(values)} times, median {median:.1f} s, longest {max(values):.1f} s"


def write(run: RunHistory, verdict: Verdict, folder: Path) -> Path:
    """Write the JSON, what was done when, and the evidence of every broken job; give the JSON's path."""
    path = folder / "report.json"
    path.write_text(json.dumps(summary(run, verdict), indent=1))
    (folder / "report.txt").write_text(f"{table(run, verdict)}\n")
    (folder / "faults.txt").write_text(
        "\n".join(
            f"{fault.begin:.3f} {fault.end:.3f} {fault.kind} | {fault.target} {fault.note}"
            for fault in sorted(run.faults, key=lambda one: one.begin)
        )
    )
    (folder / "leases.txt").write_text(
        "\n".join(f"{seen.time:.3f} epoch {seen.epoch} {seen.agent_id} age {seen.age:.1f}" for seen in run.leases)
    )
    broken = {breach.who.split()[0] for breach in verdict.breaches}
    broken |= {job.plan.id for job in run.jobs if job.last is not None and job.last.state is JobState.LOST}
    for job in run.jobs:
        if job.plan.id in broken:
            (folder / f"evidence-{job.plan.id}.txt").write_text(evidence(job, verdict))
    for step in run.steps:
        (folder / f"step-{step.id}.txt").write_text(step_evidence(step))
    return path


def evidence(job: JobHistory, verdict: Verdict) -> str:
    """Give everything that the witnesses said about one job."""
    lines = [f"{job.plan}", f"key {job.key}"]
    lines += [f"BROKEN {one.promise}: {one.words}" for one in verdict.breaches if one.who.split()[0] == job.plan.id]
    lines += [f"submit sent {job.submit_sent}, accepted {job.accepted}, cancel {job.cancel_accepted}"]
    lines += [f"requeued at {job.requeues}, problem {job.problem!r}", "", "records:"]
    for stored in job.records:
        record = stored.record
        whole = msgspec.to_builtins(msgspec.structs.replace(record, labels={}))
        lines.append(f"{stored.time:.3f} #{stored.sequence} epoch {record.epoch} {record.state} {whole}")
    lines += ["", "accounting:", *(str(row) for row in job.rows)]
    lines += ["", "executions:", *(str(one) for one in job.executions)]
    lines += ["", "claims:", *(f"{start}: {text}" for start, text in sorted(job.spooled.claims.items()))]
    lines += ["", "spool:", *(f"{start}.{stream}: {size}" for (start, stream), size in job.spooled.sizes.items())]
    lines += ["", "chunks:", *(str(chunk) for chunk in job.chunks)]
    lines += ["", "read:", *(f"{one.start}.{one.stream} {one.offset}+{len(one.data)}" for one in job.pieces)]
    lines += [str(gap) for gap in job.gaps]
    return "\n".join(lines)


def step_evidence(step: StepHistory) -> str:
    """Give everything that Dagster says about one step."""
    lines = [step.problem or "right", f"kills {step.kills}, keys {step.keys}", *map(str, step.materializations)]
    return "\n".join([*lines, *step.messages, "stdout:", step.stdout.decode(errors="replace")])
