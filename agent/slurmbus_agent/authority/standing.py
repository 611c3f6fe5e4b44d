"""What one agent may do at this moment: its policies, its grant and its keys, read again whenever they change."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.files import AuthorityFiles, read_private
from slurmbus_agent.authority.keyring import Keyring
from slurmbus_agent.authority.policy import Policy, folders_of, refusal, refusal_of_person
from slurmbus_agent.config import AgentConfig, load
from slurmbus_agent.guest.limits import HostLimits, in_force
from slurmbus_agent.spool_writing import SpoolError, write
from slurmbus_protocol import grants
from slurmbus_protocol.errors import InvalidSetting, NotAllowed
from slurmbus_protocol.grants import CLOCKS_APART, DAY, DAYS, GrantNotAccepted
from slurmbus_protocol.messages import SiteKey, Submit

log = logging.getLogger(__name__)

ALARM_BEFORE = DAY
"""Seconds before the end of the authority from which on people are told."""
_changes = msgspec.json.Decoder(tuple[SiteKey, ...])


class AuthorityExpired(NotAllowed):
    """The agent has no authority to take new jobs."""

    code = "authority-expired"


class NotYours(NotAllowed):
    """The job was asked for with another key."""

    code = "not-owner"
    default_hint = 'use the key that submitted it, or let the policy say control = "trusted"'


class Authority:
    """Decides whether an agent may do what it is asked for.

    Args:
        config: the agent's.
        files: where the rest is written.
        audit: where changes are noted.
        clock: gives the time in seconds since 1970.
    """

    def __init__(
        self,
        config: AgentConfig,
        files: AuthorityFiles,
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.files = files
        self._config = config
        self._audit = audit
        self._clock = clock
        self._state: object = None
        self._policies: dict[str, Policy] = {}
        self.ring = Keyring.of(config.trusted_keys, config.keys, config.revoked_keys)
        self.problem: str | None = None
        """Why nothing new is allowed although there is authority: a file can't be used."""
        self.expires_at: float | None = None
        """Until when new jobs are taken; None: without an end."""
        self.stop_file: Path | None = None
        """The stop file that was there at the last look."""
        self.limits: tuple[HostLimits, ...] = ()
        """Of the policies, when the agent began."""
        self.limits_changed = False
        self.config_changed = False
        """The bundle, or what the user has set, isn't what this agent was started with."""
        self._why = ""
        self._looked = 0.0

    def load(self) -> None:
        """Read everything.

        Raises:
            InvalidSetting: a policy, or what is known of keys, can't be used.
        """
        state = self.files.state()
        policies = self.files.read_policies()
        ring = self._read_ring()
        expires_at, why = self._read_grant(ring, policies)
        self._tell_changes(policies, expires_at)
        limits = tuple(policy.limits for policy in policies.values())
        if self._state is None:
            self.limits = limits
        self.limits_changed = in_force(*limits) != in_force(*self.limits)
        self._policies, self.ring, self.expires_at, self._why = policies, ring, expires_at, why
        self._state = state
        self.problem = None

    async def freshen(self) -> None:
        """Before something is decided: refresh unless that was done a moment ago."""
        if time.monotonic() - self._looked > budgets.AUTHORITY_FRESH:
            await self.refresh()

    async def refresh(self) -> None:
        """Look for a stop file, and read again what has changed; something broken stops new jobs until it is mended."""
        self._looked = time.monotonic()
        try:
            await asyncio.to_thread(self._refresh)
        except InvalidSetting as error:
            if self.problem != str(error):
                log.error("nothing new is taken: %s", error)  # noqa: TRY400  # the reason is in the words
                self._audit.write("authority broken", reason=error.message)
            self.problem = str(error)

    def _refresh(self) -> None:
        self.stop_file = self.files.stopped_by()
        if self.problem is None and self.files.state() == self._state:
            return
        self.load()
        self.config_changed = load(self._config.site, self.files.bundle) != self._config

    def _read_ring(self) -> Keyring:
        content = read_private(self.files.keys)
        try:
            changes = _changes.decode(content) if content is not None else ()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidSetting(
                f"{self.files.keys} can't be read: {error}", hint="it says which keys were revoked: mend it"
            ) from error
        config = self._config
        return Keyring.of(config.trusted_keys, config.keys, config.revoked_keys, changes)

    def _read_grant(self, ring: Keyring, policies: Mapping[str, Policy]) -> tuple[float | None, str]:
        """Give until when there is authority, and why there is none.

        Local processes need none, since they get around nobody's login; a grant that is there counts all the same.
        """
        now = self._clock()
        content = read_private(self.files.grant)
        if content is not None:
            try:
                grant = grants.read(content, self._config.site, ring.signers_of_grants, now)
            except NotAllowed as error:
                return 0.0, error.message
            begin, end = grant.issued_at, grant.expires_at
        elif any(policy.require_grant for policy in policies.values()):
            return 0.0, "the policy asks for a signed grant, and there is none"
        elif self._config.scheduler == "local":
            return None, ""
        else:  # copied by hand: the login that brought it is as old as the file
            begin = self.files.bundle.stat().st_mtime
            end = begin + DAYS * DAY
            if begin > now + CLOCKS_APART:
                return 0.0, f"{self.files.bundle} is from the future"
        days = [policy.authority_days for policy in policies.values() if policy.authority_days is not None]
        return min([end, *(begin + most * DAY for most in days)]), ""

    def _tell_changes(self, policies: Mapping[str, Policy], expires_at: float | None) -> None:
        if policies != self._policies or self._state is None:
            self._audit.write("policy", policies=sorted(policies))
        if expires_at != self.expires_at:
            self._audit.write("authority", expires_at=expires_at)

    # ------------------------------------------------------------------ questions

    def verify(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> str:
        """Return the public key that signed this; BadSignature when it doesn't count."""
        return self.ring.verify(subject, body, headers, self._clock())

    async def real_folders(self, submit: Submit) -> dict[str, str]:
        """Give where the symlinks lead of all folders that a policy has a say in; file systems may take their time."""
        folders = set().union(*(folders_of(policy, submit) for policy in self._policies.values()))
        return await asyncio.to_thread(lambda: {one: os.path.realpath(one) for one in folders if one.startswith("/")})

    def check_submit(
        self, submit: Submit, signer: str, unfinished: Callable[[], int], real: Mapping[str, str] | None = None
    ) -> None:
        """Raise NotAllowed unless this job may be taken now, besides so many unfinished ones."""
        self._check_authority()
        for name, policy in self._policies.items():
            found = refusal(policy, submit, signer, unfinished() if policy.max_jobs is not None else 0, real)
            if found is not None:
                raise found.error(name)

    def check_person(self, signer: str, submitter: str) -> None:
        """Raise NotAllowed unless this signer may have something installed or removed now."""
        self._check_authority()
        for name, policy in self._policies.items():
            found = refusal_of_person(policy, signer, submitter)
            if found is not None:
                raise found.error(name)

    def check_control(self, signer: str, owner: str) -> None:
        """Raise NotYours unless this signer may control what the owner asked for."""
        if not owner or self.ring.may_control(signer, owner):  # before there were owners, every trusted key could
            return
        said = {policy.control for policy in self._policies.values()} - {None}
        if said != {"trusted"}:
            raise NotYours(f"the job was submitted with the key {owner[:16]}…, and this is signed by {signer[:16]}…")

    def _check_authority(self) -> None:
        if self.problem is not None:
            raise NotAllowed(f"the agent takes nothing new: {self.problem}", hint="see its log on the login node")
        if self.expires_at is not None and self._clock() >= self.expires_at:
            site = self._config.site
            raise AuthorityExpired(
                f"the login's authority has ended{': ' + self._why if self._why else ''}",
                hint=f"log in: slurmbus up {site} (by hand: slurmbus-agent renew --site {site})",
            )

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a person should know."""
        if self.problem is not None:
            return (f"nothing new is taken: {self.problem}",)
        if self.expires_at is None:
            return ()
        left = self.expires_at - self._clock()
        if left > ALARM_BEFORE:
            return ()
        renew = f"log in: slurmbus up {self._config.site}"
        if left > 0:
            return (f"authority ends in {left / 3600:.1f} h; {renew}",)
        return (f"authority has ended{': ' + self._why if self._why else ''}; no new jobs are taken; {renew}",)

    # ------------------------------------------------------------------ keys over the bus

    async def change_keys(self, ring: Keyring) -> None:
        """Keep changed keys durably, then go by them.

        Raises:
            InvalidSetting: they can't be written.
        """
        content = msgspec.json.format(msgspec.json.encode(ring.changes)) + b"\n"
        try:
            await asyncio.to_thread(write, self.files.keys, content)
        except SpoolError as error:
            raise InvalidSetting(f"the keys can't be kept: {error.message}", hint=error.hint) from error
        self.ring = ring


def renew_by_hand(config: AgentConfig, files: AuthorityFiles) -> None:
    """Let the authority of a bundle without a grant begin now; whoever can run this has logged in.

    Raises:
        GrantNotAccepted: there is a grant, which only its signer can renew.
    """
    if files.grant.exists():
        raise GrantNotAccepted(
            f"the authority of site {config.site} comes from a signed grant",
            hint=f"renew it from the machine that signed it: slurmbus up {config.site}",
        )
    files.bundle.touch()
