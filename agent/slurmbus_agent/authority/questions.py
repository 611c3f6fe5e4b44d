"""Answers questions about keys, and changes them for whoever has signed that with a key that counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.expiry import Expiry, Memory, claimed, identity
from slurmbus_agent.authority.standing import Authority
from slurmbus_protocol import codec, subjects
from slurmbus_protocol import messages as wire
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import SlurmbusError, WrongAddress


class KeyQuestions:
    """Answers on the site's rpc subjects. A change is durable before it is answered, and may be asked for again.

    Args:
        bus: the connection.
        site: whose questions.
        authority: has the keys.
        expiry: which requests still count.
        audit: where changes are noted.
        leading: whether this agent serves the site at this moment.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        authority: Authority,
        *,
        expiry: Expiry,
        audit: Audit,
        leading: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._site = site
        self._authority = authority
        self._expiry = expiry
        self._audit = audit
        self._leading = leading
        self._noted = Memory(expiry.clock)
        """What stands in the audit log: a broker may deliver a question as often as it likes."""
        self._turn = asyncio.Lock()
        """One change at a time, so that none is lost."""

    async def serve(self) -> None:
        """Begin to answer."""
        answers: dict[str, Callable[[Msg], Awaitable[None]]] = {
            "keys": self._list,
            "trust-key": self._trust,
            "revoke-key": self._revoke,
        }
        for verb, answer in answers.items():
            await self._bus.serve(subjects.rpc(self._site, verb), self._handler(answer))

    def _handler(self, answer: Callable[[Msg], Awaitable[None]]) -> Callable[[Msg], Awaitable[None]]:
        async def handle(msg: Msg) -> None:
            if not self._leading():
                return
            reply: wire.Message
            try:
                async with self._turn:
                    await answer(msg)
                reply = wire.SiteKeys(keys=self._authority.ring.keys)
            except SlurmbusError as error:
                if self._noted.add((identity(msg), error.code), self._expiry.clock()):
                    about = {"claimed": claimed(msg), "error": error.code, "message": error.message}
                    self._audit.write("refused", subject=msg.subject, **about)
                reply = wire.Problem(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)
            await self._bus.respond(msg, codec.encode(reply))

        return handle

    async def _list(self, msg: Msg) -> None:
        codec.decode_as(msg.data, wire.AskKeys)

    async def _trust(self, msg: Msg) -> None:
        signer = self._authority.verify(msg.subject, msg.data, msg.headers)
        wish = codec.decode_as(msg.data, wire.TrustKey)
        self._check(wish)
        ring = self._authority.ring
        changed = ring.trust(signer, wish.key, wish.name, succeeds=wish.succeeds, now=time.time())
        await self._authority.change_keys(changed)
        self._note(wish, signer, name=wish.name, succeeds=wish.succeeds)

    async def _revoke(self, msg: Msg) -> None:
        signer = self._authority.verify(msg.subject, msg.data, msg.headers)
        wish = codec.decode_as(msg.data, wire.RevokeKey)
        self._check(wish)
        await self._authority.change_keys(self._authority.ring.revoke(signer, wish.key))
        self._note(wish, signer)

    def _check(self, wish: wire.TrustKey | wire.RevokeKey) -> None:
        if wish.site != self._site:
            raise WrongAddress(f"the request names site {wish.site!r}, but was sent to {self._site!r}")
        self._expiry.check(wish.expires_at)

    def _note(self, wish: wire.TrustKey | wire.RevokeKey, signer: str, **fields: object) -> None:
        if self._noted.add((wish.TYPE, wish.key, signer, wish.expires_at), wish.expires_at):
            about = {"key": wish.key, "signer": signer, "submitter": wish.submitter, "expires_at": wish.expires_at}
            self._audit.write(wish.TYPE, **about, **fields)
