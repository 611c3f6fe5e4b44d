"""The agent's end of the pipes to a scheduler's child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from slurmbus_agent.scheduler.base import SchedulerError
from slurmbus_agent.scheduler.calls import HEADER, MAX_FRAME, STARTED, Answer, Call, pack, version_of

STDERR_LINES = 8
"""Lines of the child's last words that are kept; libslurm needs one to three to say what is wrong."""
STDERR_LINE = 400
STOP_WAIT = 1.0
"""Seconds for a child to notice that its standard input has ended."""


class ChildGone(SchedulerError):
    """The scheduler's process has ended."""


class Channel:
    """A running child: calls go in, futures of answers come out; one call at a time."""

    def __init__(self, process: Process) -> None:
        """Follow a process that has just been started."""
        self.version = ""
        self._process = process
        self._last_words: deque[str] = deque(maxlen=STDERR_LINES)
        self._awaited: dict[int, asyncio.Future[Answer]] = {STARTED: asyncio.get_running_loop().create_future()}
        self._gone: ChildGone | None = None
        self._killed_because = ""
        self._follower = asyncio.create_task(self._follow(), name="scheduler-child")

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str] | None, patience: float) -> Channel:
        """Start a child and wait until it is ready.

        Raises:
            SchedulerError: it says that it can't serve (pyslurm is missing, …), and why.
            ChildGone: it ended, or wasn't ready in time.
        """
        try:
            # In a session of its own, so that Ctrl-C in the agent's terminal doesn't hit it in the middle of a call.
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, start_new_session=True
            )
        except OSError as error:
            raise ChildGone(f"the scheduler's process can't be started: {error}") from error
        channel = cls(process)
        started = channel._awaited[STARTED]
        try:
            done, _ = await asyncio.wait({started}, timeout=patience)
            if not done:
                await channel.kill(f"it wasn't ready within {patience:g} s")
            channel.version = version_of(started.result())
        except BaseException:
            await channel.kill("it couldn't start")
            raise
        return channel

    @property
    def last_words(self) -> str:
        """What the child last wrote to its standard error, for the end of a message."""
        return f": {' / '.join(self._last_words)}" if self._last_words else ""

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def send(self, call: Call) -> asyncio.Future[Answer]:
        """Write a call; the future gives the answer or ChildGone."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._gone is not None or self._process.stdin is None:
            raise self._gone or ChildGone
        self._awaited[call.id] = future
        # Not drained: a child that doesn't read is noticed by the call's deadline, and there is one call at a time.
        self._process.stdin.write(pack(call))
        return future

    @property
    def is_gone(self) -> bool:
        """True when nothing can be sent any more."""
        return self._gone is not None

    async def kill(self, why: str) -> None:
        """End the child at once, whatever it is doing."""
        self._killed_because = self._killed_because or why
        self._kill()
        await self._follower

    async def stop(self) -> None:
        """Let an idle child end by itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.wait({self._follower}, timeout=STOP_WAIT)
        await self.kill("it was stopped")

    def _kill(self) -> None:
        # Not Process.kill(): it reaps a child that has just ended, and asyncio then doesn't learn its exit code.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def _follow(self) -> None:
        """Take the child's answers until there are no more, then say to everybody who waits that it is gone."""
        listening = asyncio.create_task(self._listen(), name="scheduler-child-stderr")
        problem = await self._take_answers()
        if problem:
            self._kill()
        try:
            async with asyncio.timeout(STOP_WAIT):
                code = await self._process.wait()
        except TimeoutError:
            self._kill()
            code = await self._process.wait()
        await listening
        if self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self._process.stdin.wait_closed()
        why = self._killed_because or problem or _ending(code)
        self._gone = ChildGone(f"the scheduler's process is gone: {why}{self.last_words}")
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(self._gone)
                future.exception()  # whoever waited may have gone as well

    async def _take_answers(self) -> str:
        """Give each answer to whoever waits for it; give what was wrong when something else came."""
        stdout = self._process.stdout
        if stdout is None:
            raise AssertionError
        while True:
            try:
                size = int.from_bytes(await stdout.readexactly(HEADER), "big")
                if size > MAX_FRAME:
                    return "it wrote something that is no answer"
                answer = msgspec.msgpack.decode(await stdout.readexactly(size), type=Answer)
            except asyncio.IncompleteReadError as error:
                return "it wrote half an answer" if error.partial else ""
            except msgspec.DecodeError:
                return "it wrote something that is no answer"
            future = self._awaited.pop(answer.id, None)
            if future is None:
                return "it answered a question that nobody had asked"
            if not future.done():
                future.set_result(answer)

    async def _listen(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            raise AssertionError
        rest = b""
        while data := await stderr.read(4096):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-STDERR_LINE:]
            self._last_words.extend(_text(line) for line in lines if line.strip())
        if rest.strip():
            self._last_words.append(_text(rest))


def _text(line: bytes) -> str:
    return line[:STDERR_LINE].decode(errors="replace").strip()


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
