"""Looks at the authority's files while an agent runs, and says when it has to end or to begin anew."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar

from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.standing import Authority
from slurmbus_protocol.errors import SlurmbusError

log = logging.getLogger(__name__)


class StoppedByFile(SlurmbusError):
    """There is a stop file."""

    code: ClassVar[str] = "stopped-by-file"


_HINT = "remove the file, then start the agent"


def check_stop_file(files: AuthorityFiles) -> None:
    """Look for a stop file before an agent is started, by a few stat calls.

    Whatever keeps the agent running may come again and again while there is one: nothing is started, made or noted.

    Raises:
        StoppedByFile: there is one.
    """
    stop = files.stopped_by()
    if stop is not None:
        raise StoppedByFile(f"the agent is kept down by the file {stop}; jobs go on", hint=_HINT)


class Guard:
    """Reads the files again, at the pace of the heartbeat, since each look costs CPU time on the login node.

    Args:
        authority: is told to read again.
        audit: where a stop is noted.
        next_look: comes back when it is time for the next look.
        end: is called when the agent has to end.
        begin_anew: is called, with a reason, when another process has to take over, with the bundle as it is now.
    """

    def __init__(
        self,
        authority: Authority,
        audit: Audit,
        next_look: Callable[[], Awaitable[None]],
        end: Callable[[], None],
        begin_anew: Callable[[str], None],
    ) -> None:
        self._authority = authority
        self._audit = audit
        self._next_look = next_look
        self._end = end
        self._begin_anew = begin_anew
        self.words = ""
        """Why it ends, for people; stands in the last heartbeat."""

    def stopped(self) -> StoppedByFile:
        """Give the reason as an error."""
        return StoppedByFile(f"the agent is {self.words}", hint=_HINT)

    async def look(self) -> None:
        """Look at all files.

        Raises:
            StoppedByFile: one of them is a stop file.
        """
        await self._authority.refresh()
        stop = self._authority.stop_file
        if stop is not None:
            self.words = f"stopped by the file {stop}; jobs go on"
            self._audit.write("stopped", file=stop)
            raise self.stopped()

    async def run(self) -> None:
        """Look for ever, or until the agent has to end."""
        while True:
            try:
                await self.look()
            except StoppedByFile as stopped:
                log.warning("%s", stopped)
                self._end()
                return
            if self._authority.config_changed:
                self._audit.write("bundle changed")
                self._begin_anew(f"its bundle {self._authority.files.bundle} or the settings beside it have changed")
            elif self._authority.limits_changed:
                self._begin_anew("a policy's limits have changed")
            await self._next_look()
