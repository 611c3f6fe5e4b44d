"""Makes environments ready for jobs: each is installed once, whoever asks for it and however often."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.environments import pythons
from slurmbus_agent.environments.install import Done, Work
from slurmbus_agent.environments.lock import ABANDONED_AFTER, RENEW_EVERY, InstallLock, host, is_dead
from slurmbus_agent.environments.settings import EnvironmentSettings
from slurmbus_agent.environments.store import FILES, PREFIX, Info, Installation, Store
from slurmbus_agent.spool_writing import typed
from slurmbus_protocol import blobs
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.embedded import die_with_parent
from slurmbus_protocol.environments import MANIFEST_LIMIT, EnvironmentFile, Manifest, decode_manifest
from slurmbus_protocol.errors import BlobCorrupt, BlobMissing, BusUnreachable, EnvironmentUnusable, SlurmbusError
from slurmbus_protocol.messages import EnvironmentRef, Platform

log = logging.getLogger(__name__)

Tell = Callable[[str], None]

_AGAIN = 2.0
_LOOK = 0.5
_LINE = 1024 * 1024
_REINSTALL_AFTER = 60.0
"""Seconds for which a failure is remembered: a hundred jobs that wait for the same broken environment try it once."""


class _TakenOver(Exception):
    """Another agent took this one for dead, broke its lock and threw its attempt away."""


@dataclass
class Underway:
    """An installation that goes on, and who waits for it."""

    task: asyncio.Task[Installation]
    title: str
    doing: str = ""
    listeners: list[Tell] = field(default_factory=list)

    def tell(self, doing: str) -> None:
        """Say what is being done."""
        self.doing = doing
        for listener in self.listeners:
            listener(f"installing environment {self.title}: {doing}")


class Environments:
    """The environments of one agent.

    Args:
        bus: a connection of its own, so that large files don't hold up anything else.
        store: where they are installed.
        settings: what the site allows.
        check_room: raises SpoolFull when so many bytes and files don't fit into a folder.
        preferred: Pythons that come first.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        settings: EnvironmentSettings,
        check_room: Callable[[int, int, Path], None],
        preferred: tuple[str, ...] = (),
    ) -> None:
        self.store = store
        self._bus = bus
        self._settings = settings
        self._check_disk = check_room
        self._one_by_one = asyncio.Lock()
        """Held while one is looked up or removed, so that nobody is given what is being removed."""
        self._preferred = (*settings.pythons, *preferred)
        self._underway: dict[str, Underway] = {}
        self._failed: dict[str, tuple[SlurmbusError, float]] = {}
        self._gate = asyncio.Semaphore(settings.at_once)
        self._platform: Platform | None = None
        self._asking = asyncio.Lock()

    async def platform(self) -> Platform:
        """Say what an environment must be made for; the Pythons are asked once."""
        async with self._asking:
            if self._platform is None:
                found = await asyncio.to_thread(pythons.discover, self._preferred)
                self._platform = pythons.this_platform(found)
            return self._platform

    # ------------------------------------------------------------------ getting one ready

    async def resolve(self, name: str) -> Installation:
        """Give the installed environment with this name; UnknownEnvironment when there is none."""
        async with self._one_by_one:
            found = await asyncio.to_thread(self.store.resolve, name)
            await asyncio.to_thread(self.store.touch, found)
            return found

    async def find(self, digest: str) -> Installation | None:
        """Give an environment that is installed, which counts as used now; None when it isn't."""
        async with self._one_by_one:
            found = await asyncio.to_thread(self.store.find, digest)
            if found is not None:
                await asyncio.to_thread(self.store.touch, found)
            return found

    async def remove(self, installation: Installation, is_used: Callable[[Installation], bool]) -> bool:
        """Throw an environment away unless it is used; False when it is."""
        async with self._one_by_one:
            if is_used(installation):
                return False
            await asyncio.to_thread(self.store.remove, installation)
        return True

    async def ready(self, ref: EnvironmentRef, tell: Tell) -> Installation:
        """Give an environment that is installed, after installing it if it isn't; several may ask at once.

        Args:
            ref: which one.
            tell: called with what is being done, for people.

        Raises:
            EnvironmentUnusable: it can't be installed here.
            SpoolFull: there is no room.
            BlobMissing: the bus doesn't hold a file of it any more.
            BlobCorrupt: a file's bytes aren't the ones that were asked for.
        """
        found = await self.find(ref.digest)
        if found is not None:
            return found
        underway = self.begin(ref)
        underway.listeners.append(tell)
        if underway.doing:
            underway.tell(underway.doing)
        try:
            return await asyncio.shield(underway.task)
        finally:
            underway.listeners.remove(tell)
            if not underway.listeners and not underway.task.done():
                underway.task.cancel()  # whoever wanted it doesn't any more
                await asyncio.wait({underway.task})

    def begin(self, ref: EnvironmentRef) -> Underway:
        """Install an environment, in the background; the errors of :meth:`ready` when that failed a moment ago."""
        failed = self._failed.get(ref.digest)
        if failed is not None and time.monotonic() - failed[1] < _REINSTALL_AFTER:
            raise failed[0]
        underway = self._underway.get(ref.digest)
        if underway is None or underway.task.done():
            title = _title(ref)
            task = asyncio.create_task(self._install(ref), name=f"environment {title}")
            underway = self._underway[ref.digest] = Underway(task, title)
            task.add_done_callback(lambda done: self._ended(ref.digest, done))
        return underway

    def _ended(self, digest: str, task: asyncio.Task[Installation]) -> None:
        self._underway.pop(digest, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SlurmbusError):
            log.warning("environment %s: %s", digest[:12], error)
            if not error.retryable:
                self._failed[digest] = (error, time.monotonic())

    def doing(self, digest: str) -> str | None:
        """Tell what is being done for an environment at this moment; None when nothing is."""
        underway = self._underway.get(digest)
        return None if underway is None else underway.doing

    def forgive(self, digest: str) -> None:
        """Forget that an environment couldn't be installed: somebody wants to see it tried again."""
        self._failed.pop(digest, None)

    async def aclose(self) -> None:
        """Stop what is being installed."""
        tasks = [underway.task for underway in self._underway.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ installing

    async def _install(self, ref: EnvironmentRef) -> Installation:
        while True:
            with contextlib.suppress(_TakenOver):
                return await self._attempt(ref)

    async def _attempt(self, ref: EnvironmentRef) -> Installation:
        underway = self._underway[ref.digest]
        begun = time.monotonic()
        if self._gate.locked():
            underway.tell("waiting for another one")
        async with self._gate, self._locked(ref.digest, underway.tell) as found:
            if found is not None:
                return found
            underway.tell("reading its manifest")
            manifest = await self._manifest(ref)
            await asyncio.to_thread(self._check_room, manifest)
            folder = await asyncio.to_thread(self.store.begin, ref.digest, manifest)
            try:
                await self._fetch(folder, manifest, underway.tell)
                done = await self._run(folder, underway.tell)
            except (BusUnreachable, asyncio.CancelledError):
                raise  # the next attempt goes on with the files that were fetched
            except BaseException as error:
                if not await asyncio.to_thread(folder.exists):
                    raise _TakenOver from error
                await asyncio.to_thread(self.store.discard, folder)
                raise
            info = Info(
                digest=ref.digest,
                title=ref.title,
                kind=manifest.kind.value,
                prefix=PREFIX,
                python=done.python,
                size=done.size,
                files=done.files,
                installed_at=time.time(),
            )
            installed = await asyncio.to_thread(self.store.commit, folder, info)
        log.info("environment %s is installed, after %.1f s", underway.title, time.monotonic() - begun)
        return installed

    @contextlib.asynccontextmanager
    async def _locked(self, digest: str, tell: Tell) -> AsyncIterator[Installation | None]:
        """Hold the lock; give what somebody else has installed meanwhile, or None."""
        await asyncio.to_thread(self.store.prepare)
        lock = self.store.lock(digest)
        found = await self._take(lock, digest, tell)
        if found is not None:
            yield found
            return
        renewing = asyncio.create_task(_renew(lock))
        try:
            yield await asyncio.to_thread(self.store.find, digest)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await asyncio.to_thread(lock.release)

    async def _take(self, lock: InstallLock, digest: str, tell: Tell) -> Installation | None:
        """Take the lock, however long that takes; give the installation instead when its holder has finished it."""
        seen, since = "", time.monotonic()
        while not await asyncio.to_thread(lock.take):
            holder = await asyncio.to_thread(lock.holder)
            if holder is None:
                continue
            if holder != seen:
                seen, since = holder, time.monotonic()
                tell(f"waiting for the agent on {host(holder)}, which is installing it")
            if is_dead(holder) or time.monotonic() - since > ABANDONED_AFTER:
                log.info("the agent on %s that was installing environment %s is gone", host(holder), digest[:12])
                await asyncio.to_thread(lock.break_, holder)
                continue
            await asyncio.sleep(_LOOK)
            found = await asyncio.to_thread(self.store.find, digest)
            if found is not None:
                return found
        return None

    async def _manifest(self, ref: EnvironmentRef) -> Manifest:
        if ref.size > MANIFEST_LIMIT:
            raise EnvironmentUnusable(f"the environment's manifest of {ref.size:,} bytes is too large")
        content = io.BytesIO()
        await blobs.fetch_into(self._bus, ref.digest, ref.size, content)
        return decode_manifest(content.getvalue())

    def _check_room(self, manifest: Manifest) -> None:
        if manifest.size > self._settings.max_bytes:
            raise EnvironmentUnusable(
                f"the environment of {manifest.size:,} bytes is larger than this site allows",
                hint="the limit is max_bytes in [environments] of the agent's SITE.settings.toml",
            )
        self._check_disk(manifest.size, len(manifest.files), self.store.root)

    async def _fetch(self, folder: Path, manifest: Manifest, tell: Tell) -> None:
        """Bring the files that aren't here yet."""
        done, last = 0, 0.0
        for file in manifest.files:
            path = folder / FILES / file.sha256
            if not await asyncio.to_thread(_is_there, path, file):
                new = path.with_name(f".{secrets.token_hex(8)}")
                await self._fetch_file(new, path, file)
            done += file.size
            if time.monotonic() - last > _AGAIN:
                last = time.monotonic()
                tell(f"fetching its files, {_part(done, manifest.size)}")

    async def _fetch_file(self, new: Path, path: Path, file: EnvironmentFile) -> None:
        deadline = time.monotonic() + budgets.BLOB_PATIENCE
        while True:
            try:
                with typed(new), new.open("wb") as target:
                    await blobs.fetch_into(self._bus, file.sha256, file.size, target)
                break
            except BlobMissing as error:
                if time.monotonic() > deadline:
                    raise BlobMissing(f"{file.name} of the environment isn't on the bus any more") from error
                await asyncio.sleep(_AGAIN)
            except BlobCorrupt as error:
                raise BlobCorrupt(
                    f"{file.name} of the environment is damaged on the bus: {error.message}",
                    hint="upload it once more with 'slurmbus env push --again'",
                ) from error
        await asyncio.to_thread(new.rename, path)

    async def _run(self, folder: Path, tell: Tell) -> Done:
        """Let a process of its own install what was fetched, and say what it does."""
        work = Work(
            folder=str(folder),
            pythons=self._preferred,
            max_bytes=self._settings.max_bytes,
            max_files=self._settings.max_files,
            pixi_unpack=self._settings.pixi_unpack,
            uv=self._settings.uv,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "slurmbus_agent.environments.install",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        errors = asyncio.create_task(process.stderr.read())
        try:
            process.stdin.write(msgspec.json.encode(work))
            process.stdin.close()
            async for line in process.stdout:
                words = json.loads(line)
                if "ready" in words:
                    return msgspec.convert(words["ready"], Done)
                if "error" in words:
                    raise _error(words["error"])
                part = f", {_part(words['done'], words['total'])}" if words["total"] else ""
                tell(f"{words['doing']}{part}")
            said = (await errors).decode(errors="replace")
            raise EnvironmentUnusable(f"the installation ended without a word: {said[-1000:].strip()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            errors.cancel()
            await asyncio.gather(errors, return_exceptions=True)


async def _renew(lock: InstallLock) -> None:
    while True:
        await asyncio.sleep(RENEW_EVERY)
        with contextlib.suppress(SlurmbusError):  # the file system is away; it will come back or another agent takes it
            await asyncio.to_thread(lock.renew)


def _is_there(path: Path, file: EnvironmentFile) -> bool:
    """Tell whether an earlier attempt has fetched a file."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False


def _error(words: dict[str, str]) -> SlurmbusError:
    error = EnvironmentUnusable(words["message"], hint=words["hint"])
    error.code = words["code"]  # type: ignore[misc]  # the child's own class isn't needed here
    return error


def _title(ref: EnvironmentRef) -> str:
    return f"{ref.title} ({ref.digest[:12]})" if ref.title else ref.digest[:12]


def _part(done: int, total: int) -> str:
    return f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
