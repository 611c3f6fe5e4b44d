"""``slurmbus down``: undoes what ``up`` did at a site; jobs go on."""

from __future__ import annotations

from slurmbus import authority
from slurmbus.bootstrap import installing, journal
from slurmbus.bootstrap.entering import master_of, visiting
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.keeper import keeper_of
from slurmbus.bootstrap.session import Remote
from slurmbus.bootstrap.supervising import KINDS
from slurmbus.bootstrap.telling import Teller
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import BusUnreachable


def abandon(home: Home, site: str) -> None:
    """Forget what ``up`` did at a site where nobody gets in any more; there nothing is undone."""
    keeper_of(home, site).stop()
    master_of(home, site).close()
    journal.forget(home, site)


class Down:
    """One run.

    Args:
        home: whose site.
        site: its name.
        teller: is told.
        batch: never ask anybody.
    """

    def __init__(self, home: Home, site: str, teller: Teller, *, batch: bool = False) -> None:
        self.home = home
        self.site = site
        self._tell = teller
        self._batch = batch

    def run(self, *, purge: bool) -> list[str]:
        """End the agent, and say what was done; nothing when ``up`` has done nothing here.

        Args:
            purge: remove its program and its keys, too.

        Raises:
            SlurmbusError: nobody gets in, or it doesn't end.
        """
        before = journal.read(self.home, self.site)
        if before is None:
            return []
        with visiting(self.home, self.site, self._tell, batch=self._batch) as master:
            keeper_of(self.home, self.site).stop()
            with Remote(master) as remote:
                done = self._undo(remote, before, purge=purge)
            master.close()
        journal.forget(self.home, self.site)
        self._look_for_others(before)
        return done

    def _look_for_others(self, before: Journal) -> None:
        """Name the agents on further login nodes: this login has ended the one of its own node."""
        client = SiteClient(Connection.get(ConnectionSettings.of_site(self.home, self.site)), self.site)
        try:
            found = client.heartbeats()
        except BusUnreachable:
            return
        for host in sorted({one.heartbeat.host for one in found if one.alive} - {before.host}):
            self._tell.note(
                f"another agent of {self.site} runs on {host}: 'slurmbus-agent stop --site {self.site}' there"
            )

    def _undo(self, remote: Remote, before: Journal, *, purge: bool) -> list[str]:
        layout = Layout(before.install_folder, self.site)
        supervised = KINDS[before.supervisor](layout, before.config, before.environment)
        self._tell.progress("ending the agent", 0, 0)
        there = remote.call("look", path=layout.command)["kind"]
        supervised.leave(remote)
        done = [f"the agent has ended, and {supervised.kind} doesn't start it again"]
        if not there:
            done.append(f"its program was gone already: there is no {layout.command}")
        if purge:
            remote.call("remove", path=layout.own)
            removed = installing.tidy(remote, layout, before.version)
            if not remote.call("names", path=f"{layout.folder}/versions"):
                remote.call("remove", path=layout.folder)
            folder = before.config.rpartition("/")[0]
            for name in (*authority.files(self.home, self.site), self.home.grant_path(self.site).name):
                remote.call("remove", path=f"{folder}/{name}")
            done.append(f"its keys and {len(removed)} installations were removed from {layout.folder}")
        return done
