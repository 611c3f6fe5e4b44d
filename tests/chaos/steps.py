"""Dagster's side of a run: a process that runs steps, the death of one now and then, and what its event log says."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chaos.history import Execution, StepHistory
from chaos.payload import pattern
from chaos.rig import SITE
from chaos.workload import RUNS
from slurmbus.home import Home
from slurmbus_protocol.states import JobState

AT_ONCE = 2
PATIENCE = 20.0
"""Seconds to wait for a step that can be killed."""
_PID = re.compile(r"\(pid: (\d+)\)")
_KEY = re.compile(r"job ([0-7][0-9A-HJKMNP-TV-Z]{25}) is ")
_OVER = {"STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"}
Plan = dict[str, Any]


def plan_steps(rng: random.Random, count: int) -> list[Plan]:
    """Give what the payloads of `count` steps shall do."""
    return [
        {
            "id": f"s{number:03d}",
            "folder": RUNS,
            "seconds": round(rng.uniform(1.0, 8.0), 2),
            "pieces": rng.randint(3, 12),
            "stdout": rng.randint(20, 2000),
        }
        for number in range(count)
    ]


class Steps:
    """The process that runs the steps; a context manager that ends it.

    Args:
        home: of the client's keys.
        folder: where its instance and its log go.
        plans: of the steps.
        rng: decides which step dies.
    """

    def __init__(self, home: Home, folder: Path, plans: Sequence[Plan], rng: random.Random) -> None:
        self._home = home
        self._folder = folder / "dagster"
        self._plans = list(plans)
        self._rng = rng
        self._process: subprocess.Popen[bytes] | None = None
        self.killed: Counter[str] = Counter()
        """How often each step's process was killed."""

    def __enter__(self) -> Self:
        """Start."""
        self._folder.mkdir()
        (self._folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        environment = {
            **os.environ,
            "SLURMBUS_HOME": str(self._home.path),
            "CHAOS_STEPS": json.dumps(self._plans),
            "CHAOS_SITE": SITE,
            "DAGSTER_HOME": str(self._folder),
        }
        with (self._folder / "driver.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("step_driver.py")), str(self._folder), str(AT_ONCE)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it with all of its steps."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def running(self) -> bool:
        """True until all steps have ended."""
        return self._process is not None and self._process.poll() is None

    def kill_one(self, delay: float) -> str | None:
        """Kill the process of a running step as an out-of-memory killer would, and give the step.

        Waits for one to begin; None when none does. `delay`: seconds that it goes on before it dies.
        """
        deadline = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < deadline:
            found = self._running_steps()
            if found:
                time.sleep(delay)
                step, number = self._rng.choice(sorted(found.items()))
                if self._running_steps().get(step) == number:
                    os.kill(number, signal.SIGKILL)
                    self.killed[step] += 1
                    return step
            time.sleep(0.5)
        return None

    def _running_steps(self) -> dict[str, int]:
        """Give the process ids of the steps that have begun and not ended, as Dagster's event log has them."""
        import dagster as dg

        found: dict[str, int] = {}
        with dg.DagsterInstance.from_config(str(self._folder)) as instance:
            for run in instance.get_runs(limit=1):
                for entry in instance.all_logs(run.run_id):
                    event = entry.dagster_event
                    if event is None:
                        continue
                    if event.event_type is dg.DagsterEventType.LOGS_CAPTURED:
                        pid = _PID.search(event.message or "")
                        found |= {step: int(pid[1]) for step in event.logs_captured_data.step_keys or () if pid}
                    elif event.event_type_value in _OVER and entry.step_key in found:
                        del found[entry.step_key]
        return found

    # ------------------------------------------------------------------ what Dagster says

    def histories(self) -> list[StepHistory]:
        """Read the event log and what was captured, and judge each step by what its payload was told to say."""
        import dagster as dg

        with dg.DagsterInstance.from_config(str(self._folder)) as instance:
            runs = instance.get_runs(limit=1)
            if not runs:
                return [_unrun(plan) for plan in self._plans]
            entries = instance.all_logs(runs[0].run_id)
            return [self._history(instance, runs[0].run_id, entries, plan) for plan in self._plans]

    def _history(self, instance: Any, run_id: str, entries: Sequence[Any], plan: Plan) -> StepHistory:
        name = plan["id"]
        own = [entry for entry in entries if entry.step_key == name]
        events = [entry.dagster_event for entry in own if entry.dagster_event is not None]
        words = [entry.user_message for entry in own if entry.user_message.startswith(f"{name} says ")]
        made = [
            {key: str(value.value) for key, value in event.step_materialization_data.materialization.metadata.items()}
            for event in events
            if event.event_type_value == "ASSET_MATERIALIZATION"
        ]
        told = [found[1] for entry in own if (found := _KEY.search(entry.user_message))]
        keys = list(dict.fromkeys([*told, *(one["slurmbus/key"] for one in made if "slurmbus/key" in one)]))
        step = StepHistory(
            id=name,
            kills=self.killed[name],
            succeeded=any(event.event_type_value == "STEP_SUCCESS" for event in events),
            stdout=_captured(instance, run_id, entries, name),
            messages=words,
            materializations=made,
            keys=keys,
        )
        step.problem = judge(step, plan)
        return step


def judge(step: StepHistory, plan: Plan) -> str:
    """Say what Dagster was told wrongly, or nothing."""
    if not step.succeeded:
        return ""  # rightly or not: see judge_jobs
    if len(step.materializations) != 1:
        return f"{len(step.materializations)} materializations"
    if step.materializations[0].get("said_by") != plan["id"]:
        return f"the materialization is another one's: {step.materializations[0]}"
    expected = [f"{plan['id']} says {piece}" for piece in range(plan["pieces"])]
    if not one_after_the_other(step.messages, expected, len(step.keys)):
        return f"{len(step.messages)} messages instead of {len(expected)}, or in another order: {step.messages}"
    whole = pattern(plan["id"], "stdout", 0, plan["stdout"]).splitlines(keepends=True)
    lines = [
        line for line in step.stdout.splitlines(keepends=True) if line.startswith(f"{plan['id']} stdout ".encode())
    ]
    if not one_after_the_other(lines, whole, len(step.keys)):
        return f"{len(lines)} lines of stdout instead of {plan['stdout']}, or in another order"
    return ""


def one_after_the_other(found: Sequence[Any], whole: Sequence[Any], most: int) -> bool:
    """Tell whether `found` is the whole, after the beginnings that up to `most` - 1 jobs before the last one said."""
    parts = 1 + sum(item == whole[0] for item in found[1:]) if whole else 1
    if parts > most:
        return False
    at = 0
    for item in found:
        if item == whole[0]:
            at = 0
        if at >= len(whole) or item != whole[at]:
            return False
        at += 1
    return at == len(whole)


def judge_jobs(step: StepHistory, states: Mapping[str, JobState], runs: Sequence[Execution]) -> str:
    """Say what is wrong about the jobs of a step: another one is submitted only after the one before has failed."""
    for key in step.keys[:-1]:
        if states.get(key) in {JobState.COMPLETED, None} or not states[key].is_final:
            return f"job {key} is {states.get(key)}, and another one was submitted"
    last = states.get(step.keys[-1]) if step.keys else None
    if not step.succeeded and (last is None or not last.is_final or last is JobState.COMPLETED):
        return f"the step didn't succeed, and its job is {last or 'unknown'}"
    if step.succeeded and last is not JobState.COMPLETED:
        return f"the step succeeded, and its job is {last or 'unknown'}"
    if len(runs) > len(step.keys):
        return f"its payload ran {len(runs)} times in {len(step.keys)} jobs"
    return ""


def _unrun(plan: Plan) -> StepHistory:
    return StepHistory(
        plan["id"], 0, succeeded=False, stdout=b"", messages=[], materializations=[], keys=[], problem="no run"
    )


def _captured(instance: Any, run_id: str, entries: Sequence[Any], step: str) -> bytes:
    """Give what Dagster captured of all attempts of a step, in the order in which they began."""
    keys: list[str] = []
    for entry in entries:
        event = entry.dagster_event
        if event is not None and event.event_type_value == "LOGS_CAPTURED":
            data = event.logs_captured_data
            if step in (data.step_keys or ()) and data.file_key not in keys:
                keys.append(data.file_key)
    logs = [instance.compute_log_manager.get_log_data([run_id, "compute_logs", key]) for key in keys]
    return b"".join(log.stdout or b"" for log in logs)
