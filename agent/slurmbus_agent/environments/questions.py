"""Answers questions about environments, and installs and removes them for whoever has signed that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.expiry import Expiry, Memory, claimed, identity
from slurmbus_agent.authority.standing import Authority
from slurmbus_agent.environments.service import Environments
from slurmbus_agent.environments.store import Installation
from slurmbus_agent.environments.tidying import Tidying, Users
from slurmbus_protocol import codec, subjects
from slurmbus_protocol import messages as wire
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.environments import check_name
from slurmbus_protocol.errors import (
    EnvironmentInUse,
    RequestExpired,
    SlurmbusError,
    UnknownEnvironment,
    UnknownType,
    WrongAddress,
)

_WORDS = 500
"""Characters of what somebody else says that stand in the audit log."""

Signed = wire.InstallEnvironment | wire.RemoveEnvironment


class EnvironmentQuestions:
    """Answers on the site's rpc subjects.

    Args:
        bus: the connection.
        site: whose questions.
        environments: the site's.
        tidying: removes them.
        users: who uses them.
        unused_days: after which they are removed.
        authority: whose wishes to install or to remove are granted.
        expiry: which of these still count.
        audit: where these are noted, and what was refused.
        leading: whether this agent serves the site at this moment.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        environments: Environments,
        tidying: Tidying,
        *,
        users: Users,
        unused_days: float,
        authority: Authority,
        expiry: Expiry,
        audit: Audit,
        leading: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._site = site
        self._environments = environments
        self._tidying = tidying
        self._users = users
        self._unused_days = unused_days
        self._authority = authority
        self._expiry = expiry
        self._audit = audit
        self._leading = leading
        self._noted = Memory(expiry.clock)
        """What stands in the audit log: the same question comes again and again until it is done."""
        self._done = Memory(expiry.clock)
        """Questions that were carried out: what comes again changes nothing more."""

    async def serve(self) -> None:
        """Begin to answer."""
        answers: dict[str, Callable[[Msg], Awaitable[wire.Message]]] = {
            "platform": self._platform,
            "environments": self._list,
            "install-environment": self._install,
            "remove-environment": self._remove,
        }
        for verb, answer in answers.items():
            await self._bus.serve(subjects.rpc(self._site, verb), self._handler(answer))

    def _handler(self, answer: Callable[[Msg], Awaitable[wire.Message]]) -> Callable[[Msg], Awaitable[None]]:
        async def handle(msg: Msg) -> None:
            if not self._leading():
                return
            try:
                reply = await answer(msg)
            except SlurmbusError as error:
                self._note_refusal(msg, error)
                reply = wire.Problem(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)
            await self._bus.respond(msg, codec.encode(reply))

        return handle

    async def _platform(self, msg: Msg) -> wire.Message:
        codec.decode_as(msg.data, wire.AskPlatform)
        return await self._environments.platform()

    async def _list(self, msg: Msg) -> wire.Message:
        question = codec.decode_as(msg.data, wire.AskEnvironments)
        if question.digests:
            looked = [await self._environments.find(digest) for digest in question.digests]
            found = [one for one in looked if one is not None]
        else:
            found = await asyncio.to_thread(self._environments.store.all)
        names = await asyncio.to_thread(self._environments.store.names)
        entries = tuple(self._entry(one, names.get(one.link.name, [])) for one in found)
        return wire.Environments(environments=entries, unused_days=self._unused_days)

    def _entry(self, installation: Installation, names: list[str]) -> wire.InstalledEnvironment:
        info = installation.info
        return wire.InstalledEnvironment(
            digest=info.digest,
            title=info.title,
            kind=info.kind,
            path=str(installation.prefix),
            names=tuple(names),
            size=info.size,
            files=info.files,
            python=info.python,
            installed_at=info.installed_at,
            used_at=installation.used_at,
            jobs=tuple(self._users(installation)),
        )

    def _note_refusal(self, msg: Msg, error: SlurmbusError) -> None:
        if self._noted.add((identity(msg), error.code), self._expiry.clock()):
            # Who signed it is known only when the signature is good.
            words = error.message[:_WORDS]
            self._audit.write(
                "refused", subject=msg.subject, claimed=claimed(msg)[:_WORDS], error=error.code, message=words
            )

    # ------------------------------------------------------------------ what has to be signed

    async def _verified(self, msg: Msg) -> Signed:
        await self._authority.freshen()
        signer = self._authority.verify(msg.subject, msg.data, msg.headers)
        wish = codec.decode(msg.data)
        if not isinstance(wish, Signed):
            raise UnknownType(f"a {wish.TYPE} message can't be asked on {msg.subject}", hint="")
        if wish.site != self._site:
            raise WrongAddress(f"the request names site {wish.site!r}, but was sent to {self._site!r}")
        self._expiry.check(wish.expires_at)
        self._authority.check_person(signer, wish.submitter)
        digest = wish.environment.digest if isinstance(wish, wire.InstallEnvironment) else wish.digest
        if self._noted.add((wish.TYPE, digest, signer, wish.expires_at), wish.expires_at):
            self._audit.write(
                wish.TYPE,
                digest=digest,
                signer=signer,
                submitter=wish.submitter[:_WORDS],
                expires_at=wish.expires_at,
                **({"name": wish.name} if isinstance(wish, wire.InstallEnvironment) and wish.name else {}),
            )
        return wish

    async def _install(self, msg: Msg) -> wire.Message:
        wish = await self._verified(msg)
        if not isinstance(wish, wire.InstallEnvironment):
            raise UnknownType(f"expected install-environment, got {wish.TYPE}", hint="")
        ref = wish.environment
        if wish.name is not None:
            check_name(wish.name)
        found = await self._environments.find(ref.digest)
        if found is None:
            self._check_new(msg)
            if wish.again:
                self._environments.forgive(ref.digest)
            self._environments.begin(ref)
            doing = self._environments.doing(ref.digest) or ""
            return wire.EnvironmentStatus(digest=ref.digest, ready=False, doing=doing)
        if self._done.add(identity(msg), wish.expires_at) and wish.name is not None:
            await asyncio.to_thread(self._environments.store.name, ref.digest, wish.name)
        return wire.EnvironmentStatus(digest=ref.digest, ready=True, path=str(found.prefix))

    async def _remove(self, msg: Msg) -> wire.Message:
        wish = await self._verified(msg)
        if not isinstance(wish, wire.RemoveEnvironment):
            raise UnknownType(f"expected remove-environment, got {wish.TYPE}", hint="")
        found = await asyncio.to_thread(self._environments.store.find, wish.digest)
        if found is None:
            raise UnknownEnvironment(f"this site has no environment {wish.digest[:12]}")
        self._check_new(msg)
        if not await self._tidying.remove(found, f"{wish.submitter[:_WORDS]} asked for it"):
            jobs = self._users(found)
            raise EnvironmentInUse(f"environment {wish.digest[:12]} is used by {len(jobs)} jobs: {', '.join(jobs)}")
        self._done.add(identity(msg), wish.expires_at)
        return wire.EnvironmentStatus(digest=wish.digest, ready=False)

    def _check_new(self, msg: Msg) -> None:
        """Raise RequestExpired for a question that was carried out before: whoever means it again signs it again."""
        if identity(msg) in self._done:
            raise RequestExpired("the request was carried out before")
