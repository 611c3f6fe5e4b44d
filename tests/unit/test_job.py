"""What a job answers to those who wait for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurmbus_agent.job import Job, Tools
from slurmbus_agent.records import Fenced
from slurmbus_agent.spool import Spool
from slurmbus_protocol.messages import CancelAsked, CommandPlan, JobSpec, Record
from slurmbus_protocol.states import JobState

KEY = "01JD0000000000000000000000"


class TakenOver:
    """Records of which another agent has become the writer."""

    def __init__(self) -> None:
        self.known = asyncio.Event()

    async def write(self, _: Record) -> Record:
        await self.known.wait()
        raise Fenced("a newer agent has taken over")


def test_a_cancel_that_isnt_durable_isnt_confirmed_when_another_agent_has_taken_over(tmp_path: Path) -> None:
    async def check() -> None:
        records: Any = TakenOver()
        forgetting: Any = SimpleNamespace(forget=lambda *_: None)
        nothing: Any = None
        tools = Tools(records, nothing, forgetting, forgetting, nothing)
        record = Record(
            key=KEY,
            site="a",
            epoch=1,
            state=JobState.ACCEPTED,
            name="job",
            submitter="me",
            created_at=1.0,
            updated_at=1.0,
        )
        spec = JobSpec(name="job", plan=CommandPlan(argv=("true",)))
        job = Job(record, spec, Spool(tmp_path).job(KEY, 0), tools)
        async with asyncio.timeout(10):
            running = asyncio.create_task(job.run())
            cancelling = asyncio.create_task(job.cancel(CancelAsked(id=KEY, at=1.0, submitter="me")))
            for _ in range(5):  # the job writes its first record meanwhile
                await asyncio.sleep(0)
            records.known.set()
            with pytest.raises(ExceptionGroup) as ended:
                await running
            assert ended.group_contains(Fenced)
            with pytest.raises(asyncio.CancelledError):
                await cancelling

    asyncio.run(check())
