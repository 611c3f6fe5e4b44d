"""Removes environments that nobody has used for a long time, and what interrupted installations left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.environments.service import Environments
from slurmbus_agent.environments.store import Installation
from slurmbus_agent.retention import DAY, RetentionSettings
from slurmbus_agent.spool_removal import Pace, Steps, Stopped
from slurmbus_protocol.errors import SlurmbusError

log = logging.getLogger(__name__)

LEFT_OVER = DAY
"""Seconds after which an attempt that made no installation is over, whatever its agent thinks."""

Users = Callable[[Installation], Collection[str]]
"""Gives the keys of the unfinished jobs that use an environment."""


class Tidying:
    """Tidies one site's environments up.

    Args:
        environments: the site's.
        settings: how long they are kept.
        users: who uses them.
        guard: whether this agent holds the lease; nothing is done without.
        audit: where it is noted.
    """

    def __init__(
        self,
        environments: Environments,
        settings: RetentionSettings,
        *,
        users: Users,
        guard: Callable[[], bool],
        audit: Audit,
    ) -> None:
        self._environments = environments
        self._settings = settings
        self._users = users
        self._audit = audit
        self._guard = guard
        self._thrown_away = asyncio.Event()

    async def run(self) -> None:
        """Look now and then, for ever."""
        every = self._settings.every_minutes * 60
        pause = min(budgets.FORGET_FIRST, every)
        pace = Steps(budgets.FORGET_CALLS_BY_HAND, self._guard)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._thrown_away.wait(), pause)
                pause = every
                self._thrown_away.clear()
                try:
                    await self.tidy(pace)
                except Stopped:
                    continue  # without the lease; whoever has it goes on
                except SlurmbusError as error:
                    log.info("tidying environments up: %s; going on later", error)
        finally:
            pace.stop()

    async def tidy(self, pace: Pace) -> None:
        """Do it once."""
        store = self._environments.store
        for installation in await asyncio.to_thread(store.all):
            if self._users(installation):
                await asyncio.to_thread(store.touch, installation)  # other agents that share the folder see that
            elif time.time() - installation.used_at > self._settings.environments_days * DAY:
                await self.remove(installation, f"unused for {(time.time() - installation.used_at) / DAY:.0f} days")
        await asyncio.to_thread(store.tidy, LEFT_OVER)
        for obstacle in await asyncio.to_thread(store.empty_trash, pace):
            log.warning("%s can't be removed: %s", obstacle.path, obstacle.reason)

    async def remove(self, installation: Installation, why: str) -> bool:
        """Remove one, of which the files go later; False when a job uses it after all."""
        removed = await self._environments.remove(installation, lambda one: bool(self._users(one)))
        if removed:
            self._thrown_away.set()
            info = installation.info
            log.info("environment %s (%s) is removed: %s", info.title, info.digest[:12], why)
            self._audit.write("environment removed", digest=info.digest, title=info.title, why=why)
        return removed
