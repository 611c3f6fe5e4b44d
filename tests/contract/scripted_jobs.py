"""An agent that does what a test's script tells it to, for Dagster assets on a real bus."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.pipes.reattach import PIPES_LAUNCH_HANDLE_METADATA_KEY, PipesLaunchHandle
from dagster._serdes import deserialize_value
from nats.aio.msg import Msg

from contract.bus_site import SITE
from dagster_slurmbus import BusResource, PipesSlurmClient
from slurmbus.home import Home
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol import blobs, codec, subjects
from slurmbus_protocol.messages import Cancel, FileRef, Message, Start, Submit, Usage
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

USAGE = Usage(cpu_seconds=1.0, max_rss=1024**2, elapsed=2.0)


class ScriptedJob:
    """One submitted job, as its script moves it along."""

    def __init__(self, agent: ScriptedAgent, submit: Submit, number: int) -> None:
        self.agent = agent
        self.submit = submit
        self.spec = submit.job
        self.seen_at = time.time()
        self.cancel: Cancel | None = None
        self.cancelled = asyncio.Event()
        self.fields: dict[str, Any] = {
            "name": submit.job.name,
            "scheduler": "native",
            "options": submit.job.options,
            "spool": f"/spool/{submit.key}",
            "created_at": time.time(),
        }
        self.job_id = 100 + number
        self.starts: list[Start] = []
        self.sizes: dict[Stream, int] = {}

    async def state(self, state: JobState, **fields: Any) -> None:
        self.fields |= fields
        await self.agent.record(self.submit.key, state, starts=tuple(self.starts), **self.fields)

    async def begin(self) -> None:
        """Go through the states up to a start on c1."""
        if not self.starts:
            await self.state(JobState.ACCEPTED)
            await self.state(JobState.STAGING)
            await self.state(JobState.SUBMITTING)
            await self.state(JobState.PENDING, job_id=self.job_id, partition="main", submit_time=1000.0)
        else:
            await self.state(JobState.PENDING, reason="BeginTime")
        number = len(self.starts)
        self.starts.append(Start(number=number, job_id=self.job_id, node="c1", nonce=f"n{number}", started_at=1003.0))
        self.sizes = dict.fromkeys(Stream, 0)
        running = {"start_time": 1003.0, "node_list": "c1", "nodes": 1, "alloc_cpus": 2, "reason": None}
        await self.state(JobState.RUNNING, **running)

    async def write(self, stream: Stream, data: bytes) -> None:
        place = {"task": self.fields.get("task", 0), "start": self.starts[-1].number}
        await self.agent.chunk(self.submit.key, stream, self.sizes[stream], data, **place)
        self.sizes[stream] += len(data)

    async def pipes(self, method: str, **params: Any) -> None:
        message = {"__dagster_pipes_version": "0.1", "method": method, "params": params}
        data = json.dumps(message).encode() + b"\n"
        for at in range(0, len(data), 200_000):
            await self.write(Stream.MESSAGES, data[at : at + 200_000])

    async def materialize(self, key: str, **metadata: Any) -> None:
        values = {name: {"raw_value": value, "type": "__infer__"} for name, value in metadata.items()}
        await self.pipes("report_asset_materialization", asset_key=key, metadata=values, data_version=None)

    async def end(
        self,
        state: JobState = JobState.COMPLETED,
        *,
        exit_code: int | None = 0,
        signal: int | None = None,
        **fields: Any,
    ) -> None:
        """End the job, if it has begun with the sizes of what was written."""
        if self.starts:
            ended = {"ended_at": 1005.0, "exit_code": exit_code, "signal": signal, "usage": USAGE}
            self._end_start(**ended)
        await self.state(state, end_time=1005.0, **fields)

    def _end_start(self, **fields: Any) -> None:
        last = self.starts[-1]
        kept = {"number": last.number, "job_id": last.job_id, "node": last.node, "nonce": last.nonce}
        sizes = {str(stream): size for stream, size in self.sizes.items()}
        self.starts[-1] = Start(**kept, started_at=last.started_at, sizes=sizes, **fields)

    async def requeue(self) -> None:
        """Lose the start, as a preemption does."""
        self._end_start(ended_at=1004.0, signal=15)
        await self.begin()

    async def output(self, name: str, data: bytes) -> FileRef:
        digest = await blobs.put_bytes(self.agent.bus, data)
        return FileRef(path=name, sha256=digest, size=len(data))


Script = Callable[[ScriptedJob], Awaitable[None]]


class DagsterSite:
    """A bus, and an agent in a thread that plays one script for each job."""

    def __init__(self, home: Home, site: str = SITE) -> None:
        self.home = home
        self.site = site
        self.jobs: list[ScriptedJob] = []
        self._answers: dict[str, Message] = {}
        self.script: Script = succeed
        self.errors: list[BaseException] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="scripted agent")

    @property
    def bus(self) -> BusResource:
        return BusResource(home=str(self.home.path))

    @property
    def client(self) -> PipesSlurmClient:
        return PipesSlurmClient(site=self.site, bus=self.bus)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        assert self._ready.wait(30)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)

    def do(self, what: Callable[[], object]) -> None:
        """Do something on the agent's loop."""
        self._loop.call_soon_threadsafe(what)

    def beat(self, **changes: Any) -> None:
        """Have the agent say something else of itself."""
        asyncio.run_coroutine_threadsafe(self._agent.heartbeat(**changes), self._loop).result(30)

    def answer(self, verb: str, answer: Message) -> None:
        """Have the agent answer a question from now on."""
        known = verb in self._answers
        self._answers[verb] = answer

        async def reply(msg: Msg) -> None:
            await self._agent.bus.respond(msg, codec.encode(self._answers[verb]))

        if not known:
            serving = self._agent.bus.serve(subjects.rpc(self.site, verb), reply)
            asyncio.run_coroutine_threadsafe(serving, self._loop).result(30)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with ScriptedAgent(self.home, self.site) as agent:
            self._agent = agent
            await agent.heartbeat(version="0.1.0-scripted")
            serving = asyncio.create_task(self._serve(agent))
            self._ready.set()
            await self._stop.wait()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _serve(self, agent: ScriptedAgent) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                request = await agent.request()
                if isinstance(request, Cancel):
                    await self._cancel(agent, request)
                else:
                    job = ScriptedJob(agent, request, len(self.jobs))
                    self.jobs.append(job)
                    group.create_task(self._play(job))

    async def _cancel(self, agent: ScriptedAgent, request: Cancel) -> None:
        meant = [job for job in self.jobs if job.submit.key == request.key]
        for job in meant:
            job.cancel = request
            job.cancelled.set()
        if not meant:  # what an agent says of a job that hasn't come
            reason = f"cancelled by {request.submitter} before it was submitted"
            await agent.record(request.key, JobState.CANCELLED, reason=reason)

    async def _play(self, job: ScriptedJob) -> None:
        try:
            await self.script(job)
        except Exception as error:  # noqa: BLE001 - shown by the fixture; the step must not hang meanwhile
            self.errors.append(error)
            await job.end(JobState.FAILED, exit_code=70, reason="the script of this test failed")


def tasks_of(array: ScriptedJob) -> list[ScriptedJob]:
    """Give the tasks of an array as jobs of their own."""
    tasks = []
    for spec in array.spec.tasks:
        task = ScriptedJob(array.agent, array.submit, array.job_id - 100)
        task.fields |= {"task": spec.index, "task_name": spec.name, "tasks": len(array.spec.tasks)}
        tasks.append(task)
    return tasks


async def succeed(job: ScriptedJob) -> None:
    await job.begin()
    await job.pipes("opened", extras={})
    await job.pipes("closed")
    await job.end()


def log_of(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(run_id)]


def failure_of(result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """Give the message and the metadata of the step's failure."""
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data
    return data.description or "", {
        name.removeprefix("slurmbus/"): value.value for name, value in (data.metadata or {}).items()
    }


def handles_of(instance: dg.DagsterInstance, run_id: str) -> list[PipesLaunchHandle]:
    found = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        assert entry.dagster_event is not None
        value = entry.dagster_event.engine_event_data.metadata.get(PIPES_LAUNCH_HANDLE_METADATA_KEY)
        if value is not None:
            found.append(deserialize_value(str(value.value), PipesLaunchHandle))
    return found


def output_of(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> tuple[bytes, bytes]:
    """Give the stdout and stderr that Dagster captured and shows.

    What it passes on to its own terminal isn't looked at: it kills the program that does that without waiting for it.
    """
    (captured,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.LOGS_CAPTURED]
    log_key = [result.run_id, "compute_logs", captured.logs_captured_data.file_key]
    kept = instance.compute_log_manager.get_log_data(log_key)
    return kept.stdout or b"", kept.stderr or b""
