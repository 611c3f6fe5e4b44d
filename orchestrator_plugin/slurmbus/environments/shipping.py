"""Brings environments to a site: asks what it needs, packs, uploads what isn't there, and has it installed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from slurmbus.client import SiteClient
from slurmbus.environments.packing import Pack, PackedEnvironment, Progress, Target, silent
from slurmbus.environments.places import ApptainerImage, InstalledEnvironment, Modules, SiteFolder
from slurmbus.environments.requirements import cache_folder
from slurmbus.site import problem_error, submitter
from slurmbus_protocol import blobs, codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.codec import BLOB_CHUNK
from slurmbus_protocol.errors import BusFull, BusUnreachable, InvalidSetting, SiteUnreachable
from slurmbus_protocol.messages import (
    AskEnvironments,
    AskPlatform,
    Environment,
    EnvironmentRef,
    Environments,
    EnvironmentStatus,
    InstallEnvironment,
    Platform,
    Problem,
    RemoveEnvironment,
)

AnyEnvironment = str | PackedEnvironment | InstalledEnvironment | SiteFolder | Modules | ApptainerImage
"""What can be given as an environment; a text is the name or the hash of an installed one."""

_ANSWER_TIMEOUT = 10.0
"""Seconds for one question; an agent that doesn't lead yet gives no answer."""
_AGENT_PATIENCE = 60.0
"""Seconds; an agent that takes over from another one answers within 30. It asks each of its Pythons, which a parallel
file system may be slow to give."""
_VALID_FOR = 300.0
_POLL = (0.2, 0.2, 0.5, 0.5, 1.0)
_PATIENCE = 60.0
"""Seconds without an answer after which an agent that was installing counts as gone."""


def as_environment(
    given: AnyEnvironment,
) -> PackedEnvironment | InstalledEnvironment | SiteFolder | Modules | ApptainerImage:
    """Take a name for an installed environment; InvalidSetting when it is nothing that can be one."""
    if isinstance(given, str):
        return InstalledEnvironment(given)
    if isinstance(given, PackedEnvironment | InstalledEnvironment | SiteFolder | Modules | ApptainerImage):
        return given
    raise InvalidSetting(
        f"environment: {given!r} is no environment", hint="e.g. UvLock('uv.lock'), SiteFolder('/opt/envs/x'), 'name'"
    )


class Shipper:
    """Ships environments to one site.

    Args:
        client: the site's.
        tell: called with what takes long.
    """

    def __init__(self, client: SiteClient, tell: Progress = silent) -> None:
        self._client = client
        self._tell = tell

    # ------------------------------------------------------------------ what the site is like

    def target(self) -> Target:
        """Ask the site what it needs; one that can't be asked is as it was the last time.

        Raises:
            SiteUnreachable: no agent answers, and none ever has.
        """
        known = cache_folder() / "platforms" / f"{self._client.site}.{self._bus_id()[:16]}"
        deadline = time.monotonic() + _AGENT_PATIENCE
        while True:
            try:
                platform = self._client.ask("platform", AskPlatform(), Platform, timeout=_ANSWER_TIMEOUT)
                break
            except SiteUnreachable:
                if known.exists():
                    return Target(codec.decode_as(known.read_bytes(), Platform))
                if time.monotonic() > deadline:
                    raise
            self._tell("waiting for the site's agent", 0, 0)
            time.sleep(_POLL[-1])
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_bytes(codec.encode(platform))
        return Target(platform)

    def _bus_id(self) -> str:
        self._client.record("0" * 26)  # whatever it says, the bus is set up afterwards
        return self._client.connection.session.bus_id

    def pack(self, environment: PackedEnvironment) -> Pack:
        """Pack an environment for the site."""
        target = self.target() if environment.needs_platform else None
        return environment.pack(target, self._tell)

    def installed(self, digest: str | None = None) -> Environments:
        """Ask which environments the site has; one that is asked for counts as used now."""
        question = AskEnvironments(digests=(digest,) if digest else ())
        return self._client.ask("environments", question, Environments, _ANSWER_TIMEOUT)

    # ------------------------------------------------------------------ bringing it there

    def upload(self, pack: Pack, *, again: bool = False) -> int:
        """Put an environment on the bus, unless the site has it; give the bytes that were sent.

        Args:
            pack: the environment.
            again: send everything once more, also what the bus seems to have.

        Raises:
            BusFull: the bus keeps less than that.
        """
        if not again and self._is_there(pack):
            return 0
        files = {entry["sha256"]: int(entry["size"]) for entry in json.loads(pack.manifest)["files"]}
        total, begun = sum(files.values()), 0
        self._check_room(total)
        sent = 0
        sources: dict[str, Path | bytes] = {**pack.sources, pack.ref.digest: pack.manifest}
        for digest, source in sources.items():
            size = files.get(digest, len(pack.manifest))
            before = begun

            def moved(done: int, before: int = before) -> None:
                self._tell("uploading", before + done, total)

            sent += self._client.connection.run(self._put(digest, source, size, moved, again=again))
            begun += size if digest in files else 0
        self._client.connection.session.outbox.keep_environment(pack.ref, files)
        return sent

    def _is_there(self, pack: Pack) -> bool:
        try:
            return bool(self.installed(pack.ref.digest).environments)
        except SiteUnreachable:  # then the bus shall have it
            return False

    async def _put(
        self, digest: str, source: Path | bytes, size: int, moved: Callable[[int], None], *, again: bool
    ) -> int:
        session = self._client.connection.session
        bus = await session.blobs()
        session.outbox.keep_file(digest, source)
        if again:
            await bus.api(f"STREAM.PURGE.{subjects.BLOBS}", {"filter": f"blob.{digest}.*"})
        if isinstance(source, bytes):
            await blobs.put_bytes(bus, source)
            return len(source)
        return await blobs.put_file(bus, source, digest, size, moved=moved)

    def _check_room(self, size: int) -> None:
        most = self._client.connection.run(_limit(self._client))
        if size > most:
            raise BusFull(
                f"the environment of {size:,} bytes is larger than what stream {subjects.BLOBS} of the bus keeps, "
                f"{most:,} bytes: its beginning would be gone before its end is there",
                hint=f"give the stream more room: nats stream edit {subjects.BLOBS} --max-bytes=SIZE",
            )

    def install(self, pack: Pack, name: str | None = None, *, again: bool = False) -> str:
        """Have an uploaded environment installed, wait for it, and give its path on the site.

        Raises:
            EnvironmentUnusable: it can't be installed there; the message says why.
            SiteUnreachable: no agent answers.
        """
        deadline = time.monotonic() + _PATIENCE
        wish = self._wish(pack, name, again=again)
        for attempt in range(1_000_000):
            try:
                status = self._ask_signed("install-environment", wish)
            except (SiteUnreachable, BusUnreachable):
                if time.monotonic() > deadline:
                    raise
            else:
                deadline = time.monotonic() + _PATIENCE
                if status.ready:
                    return status.path or ""
                self._tell(status.doing or "installing", 0, 0)
            time.sleep(_POLL[min(attempt, len(_POLL) - 1)])
            if wish.again or wish.expires_at < time.time() + _VALID_FOR / 2:  # else the same again: it is noted once
                wish = self._wish(pack, name)
        raise SiteUnreachable(f"site {self._client.site} never finished installing")

    def _wish(self, pack: Pack, name: str | None, *, again: bool = False) -> InstallEnvironment:
        return InstallEnvironment(
            site=self._client.site,
            expires_at=time.time() + _VALID_FOR,
            submitter=submitter(),
            environment=pack.ref,
            name=name,
            again=again,
        )

    def remove(self, digest: str) -> None:
        """Remove an installed environment.

        Raises:
            EnvironmentInUse: unfinished jobs use it.
            UnknownEnvironment: it isn't there.
        """
        wish = RemoveEnvironment(
            site=self._client.site, expires_at=time.time() + _VALID_FOR, submitter=submitter(), digest=digest
        )
        self._ask_signed("remove-environment", wish)

    def _ask_signed(self, verb: str, wish: InstallEnvironment | RemoveEnvironment) -> EnvironmentStatus:
        return self._client.connection.run(_ask_signed(self._client, verb, wish))

    # ------------------------------------------------------------------ for a request

    def wire(self, environment: AnyEnvironment) -> tuple[Environment, Pack | None]:
        """Give what a request says of an environment, and the pack that has to be uploaded for it, if any."""
        found = as_environment(environment)
        if isinstance(found, PackedEnvironment):
            pack = self.pack(found)
            ref: EnvironmentRef = pack.ref
            return ref, pack
        return found.wire(), None


async def _limit(client: SiteClient) -> int:
    bus = await client.connection.session.bus()
    info = await bus.api(f"STREAM.INFO.{subjects.BLOBS}")
    overhead = 1 + 200 / BLOB_CHUNK  # what the stream adds to each chunk
    return int(int(info["config"]["max_bytes"]) / overhead)


async def _ask_signed(client: SiteClient, verb: str, wish: InstallEnvironment | RemoveEnvironment) -> EnvironmentStatus:
    session = client.connection.session
    bus: Bus = await session.site_bus(client.site)
    subject, body = subjects.rpc(client.site, verb), codec.encode(wish)
    try:
        msg = await bus.request(subject, body, headers=session.signer.headers(subject, body), timeout=10.0)
    except BusUnreachable as error:
        if await bus.probe():
            raise SiteUnreachable(f"no agent of site {client.site} answers about environments") from error
        raise
    reply = codec.decode(msg.data)
    if isinstance(reply, Problem):
        raise problem_error(reply)
    return codec.decode_as(msg.data, EnvironmentStatus)
