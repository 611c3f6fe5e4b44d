"""What keeps the agent running on the site: a systemd unit, a crontab, a scrontab, or nothing but the process itself.

All of them call the one command ``slurmbus-agent``: ``run`` in the foreground where something watches the process,
``ensure`` (start it unless it is there) where something only calls from time to time.
"""

from __future__ import annotations

import re
import shlex
import zlib
from dataclasses import dataclass
from typing import ClassVar

from slurmbus.bootstrap import account
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.session import Done, Remote
from slurmbus.errors import SiteUnfit

EVERY = 5
"""Minutes between two looks of cron: what an agent that was killed stays away at most."""
START_PATIENCE = 150.0
"""Seconds for ``ensure``, which gives a successor time to reach the bus."""
END_PATIENCE = 30.0
"""Seconds for an agent that was asked to end."""
STOPPED = 4
"""The agent's exit code when a stop file keeps it down: nothing shall start it again."""
SITE_STOP = "/etc/slurmbus/stop"
"""The stop file of a site's staff."""
SCRON_MINUTES = 7 * 24 * 60
"""The longest an agent under scrontab runs as one job; the next minute starts the next."""


@dataclass(frozen=True)
class Supervised:
    """The agent of a site, as what keeps it running sees it.

    Args:
        layout: where it lies.
        config: the path of its configuration on the site.
        environment: what a login shell sets there.
        spool: the agent's; needed to make an entry.
    """

    layout: Layout
    config: str
    environment: dict[str, str]
    spool: str = ""

    kind: ClassVar[str]
    patience: ClassVar[float] = 60.0
    """Seconds until an agent that was started answers: a cold file system, and trying out Slurm's libraries."""

    def arguments(self, verb: str, *more: str) -> str:
        """Give the command line of the agent's command, quoted for a shell."""
        words = [self.layout.command, verb, "--site", self.layout.site, "--config", self.config, *more]
        return shlex.join(words)

    @property
    def unless_stopped(self) -> str:
        """Give what a shell runs before the agent's command, to start no Python while a stop file is there."""
        own = (f"{self.config.rpartition('/')[0]}/{self.layout.site}.stop", f"{self.spool}/stop")
        return "".join(f"test -e {shlex.quote(path)} || " for path in (SITE_STOP, *own))

    @property
    def unless_running(self) -> str:
        """Give what a shell runs before the agent's command, to start no Python while the agent is there.

        The agent leaves its pid and when the kernel started it (``slurmbus_agent.presence``); the latter is field 22 of
        its stat, the 20th after the name in brackets. Source: proc_pid_stat(5).
        """
        left = f'{shlex.quote(f"{self.spool}/agents")}/"$(uname -n)".process'
        same = 'read -r stat <"/proc/$pid/stat" && set -- ${stat##*) } && test "$1" != Z && test "${20}" = "$ticks"'
        return f"{{ read -r pid ticks <{left} && {same}; }} 2>/dev/null || "

    def call(self, remote: Remote, verb: str, *more: str) -> Done:
        """Run the agent's command on the site."""
        words = [self.layout.command, verb, "--site", self.layout.site, "--config", self.config, *more]
        return remote.run(words, timeout=START_PATIENCE)

    # ------------------------------------------------------------------ what each kind does

    def enter(self, remote: Remote) -> bool:
        """Make the entry that keeps the agent running; False when it was there as it is now."""
        raise NotImplementedError

    def start(self, remote: Remote, *, replace: bool) -> str:
        """Start the agent, or let another one take over from it; give what was done in words, nothing for nothing.

        Raises:
            SiteUnfit: it doesn't start; the message has its last words.
        """
        done = self.call(remote, "ensure", *(("--replace",) if replace else ()))
        if done.code != 0:
            raise SiteUnfit(f"the agent doesn't start: {done.words}", hint="its log lies in the spool, under agents/")
        return "" if "runs already" in done.out else done.out.strip()

    def runs_from(self, remote: Remote) -> str:
        """Give from where the agent of the login node runs, or nothing."""
        said = self.call(remote, "status")
        here = [line for line in said.out.splitlines() if " runs" in line]
        return here[0].rpartition(" from ")[2] if here and said.code == 0 else ""

    def leave(self, remote: Remote) -> None:
        """Take the entry away, and end the agent, also one whose program is gone; jobs go on.

        Raises:
            SiteUnfit: it doesn't end.
        """
        self.forget(remote)
        if not remote.call("look", path=self.layout.command)["kind"]:
            self._end_process(remote)
            return
        done = self.call(remote, "stop")
        if done.code != 0:
            raise SiteUnfit(f"the agent doesn't end: {done.words}")

    def _end_process(self, remote: Remote) -> None:
        """End the agent of the login node by its command line: one in memory goes on when its files were removed."""
        words = ["slurmbus_agent", "run", "--site", self.layout.site, "--config", self.config]
        left = remote.call("end", words=words, seconds=END_PATIENCE)["left"]
        if left:
            pids = " ".join(map(str, left))
            raise SiteUnfit(f"the agent (process {pids}) doesn't end", hint=f"there: kill -9 {pids}")

    def forget(self, remote: Remote) -> None:
        """Take the entry away."""
        raise NotImplementedError


class Detached(Supervised):
    """Nothing but the process itself: it survives the logout, not a boot."""

    kind = "detached"

    def enter(self, remote: Remote) -> bool:  # noqa: ARG002
        """There is no entry."""
        return False

    def forget(self, remote: Remote) -> None:
        """There is no entry."""


class Cron(Supervised):
    """The user's crontab: at boot, and every few minutes in case it was killed."""

    kind = "cron"
    program = "crontab"

    def lines(self) -> str:
        """Give the entry."""
        minute = zlib.crc32(self.layout.site.encode()) % EVERY  # not all people's at the same second
        ensure = self.arguments("ensure")
        boot, look = (
            # The user's crontab may name another shell.
            cron_quoted(f"/bin/sh -c {shlex.quote(words + ensure)} >/dev/null 2>&1")
            for words in (self.unless_stopped, self.unless_stopped + self.unless_running)
        )
        return f"@reboot {boot}\n{minute}-59/{EVERY} * * * * {look}\n"

    def enter(self, remote: Remote) -> bool:
        """Put the entry in the place of an older one."""
        old = self._table(remote)
        new = with_entry(old, self.layout.site, self.entry(remote))
        if new == old:
            return False
        self._write(remote, new)
        return True

    def entry(self, remote: Remote) -> str:  # noqa: ARG002
        """Give the entry for this site."""
        return self.lines()

    def forget(self, remote: Remote) -> None:
        """Take the entry out."""
        old = self._table(remote)
        new = with_entry(old, self.layout.site, "")
        if new != old:
            self._write(remote, new)

    def _table(self, remote: Remote) -> str:
        done = remote.run([self.program, "-l"], env=dict(self.environment))
        return done.out if done.code == 0 else ""

    def _write(self, remote: Remote, table: str) -> None:
        done = remote.run([self.program, "-"], env=dict(self.environment), data=table.encode())
        if done.code != 0:
            raise SiteUnfit(f"{self.program} doesn't take the entry: {done.words}", hint="use --supervisor detached")


class Scrontab(Cron):
    """Slurm's crontab: the agent runs as a job of its own, which the next minute starts again when it has ended.

    Not when a stop file has ended it: a job every minute would be no good guest. Then the entry is disabled, as
    ``scancel --cron`` does it, until the next ``slurmbus up``.
    """

    kind = "scrontab"
    program = "scrontab"
    patience = 240.0  # until the next minute, and then in the queue

    def entry(self, remote: Remote) -> str:
        """Give the entry for this site: a job that wants more time than its partition allows would wait for ever."""
        shown = remote.run(["scontrol", "show", "partition", "--oneliner"], env=dict(self.environment))
        partitions = account.parse_partitions(shown.out) if shown.code == 0 else ()
        longest = next((account.minutes(one.max_time) for one in partitions if one.default), None)
        path = remote.run(["/bin/sh", "-c", "command -v scancel"], env=dict(self.environment)).out.strip()
        return self.lines(min(longest or SCRON_MINUTES, SCRON_MINUTES), path or "scancel")

    def lines(self, minutes: int = SCRON_MINUTES, scancel: str = "scancel") -> str:
        """Give the entry. The next start waits for the end of this one. Source: scrontab(1)."""
        run = self.arguments("run", "--log-file")
        command = f'{run}; test $? -ne {STOPPED} || {shlex.quote(scancel)} --cron "$SLURM_JOB_ID"'
        return (
            f"#SCRON --job-name={self._job}\n#SCRON --time={minutes}\n#SCRON --mem=500M\n"
            f"#SCRON --output=/dev/null\n* * * * * {cron_quoted(command)}\n"
        )

    def start(self, remote: Remote, *, replace: bool) -> str:
        """Leave the start to Slurm; a new version needs the job to begin anew."""
        if not replace:
            return "" if self._node(remote) else "Slurm starts the agent's job within a minute"
        self._end_job(remote)
        return "the agent's job begins anew"

    def _end_job(self, remote: Remote) -> None:
        done = remote.run(["scancel", "--cron", "--name", self._job], env=dict(self.environment))
        if done.code != 0:
            raise SiteUnfit(f"the agent's job can't be ended: {done.words}")

    def runs_from(self, remote: Remote) -> str:
        """Give from where the agent runs on the node of its job, or nothing."""
        node = self._node(remote)
        said = self.call(remote, "status").out.splitlines() if node else []
        return next(
            (line.rpartition(" from ")[2] for line in said if line.partition(":")[0].partition(".")[0] == node), ""
        )

    @property
    def _job(self) -> str:
        return f"slurmbus-agent-{self.layout.site}"

    def _node(self, remote: Remote) -> str:
        """Give the node on which the agent's job runs, or nothing."""
        words = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%N", "--name", self._job]
        return remote.run(words, env=dict(self.environment)).out.strip()

    def leave(self, remote: Remote) -> None:
        """Take the entry away, so that nothing starts its job again, and end the job."""
        self.forget(remote)
        self._end_job(remote)


class Systemd(Supervised):
    """A unit of the user's own systemd."""

    kind = "systemd"

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"slurmbus-agent-{self.layout.site}.service"

    def text(self) -> str:
        """Give the unit. Source: systemd.service(5), systemd.exec(5)."""
        words = [self.layout.command, "run", "--site", self.layout.site, "--config", self.config, "--log-file"]
        command = " ".join(f'"{systemd_quoted(word)}"' for word in words)
        return (
            f"# Written by 'slurmbus up {self.layout.site}'.\n"
            f"[Unit]\nDescription=Slurmbus agent of {self.layout.site}\n\n"
            f"[Service]\nExecStart={command}\nRestart=always\nRestartSec=5\n"
            f"# A stop file keeps it down until somebody starts it.\nRestartPreventExitStatus={STOPPED}\n"
            "# Jobs that are processes of this machine go on without it.\nKillMode=process\nNice=5\n\n"
            "[Install]\nWantedBy=default.target\n"
        )

    def enter(self, remote: Remote) -> bool:
        """Write the unit and switch it on."""
        path = self._path(remote)
        if remote.read(path) == self.text().encode():
            return False
        remote.call("folder", path=path.rpartition("/")[0])
        remote.write(path, self.text().encode(), 0o600)
        self._systemctl(remote, "daemon-reload")
        self._systemctl(remote, "enable", self.unit)
        return True

    def start(self, remote: Remote, *, replace: bool) -> str:
        """Start it, or start it again: its lease is given up, and taken again at once."""
        if replace:
            self._systemctl(remote, "restart", self.unit)
            return "the agent is started again"
        if remote.run(["systemctl", "--user", "is-active", "--quiet", self.unit]).code == 0:
            return ""
        self._systemctl(remote, "start", self.unit)
        return "the agent is started"

    def leave(self, remote: Remote) -> None:
        """Stop it and take the unit away."""
        self.forget(remote)

    def forget(self, remote: Remote) -> None:
        """Stop it and take the unit away."""
        path = self._path(remote)
        if remote.call("look", path=path)["kind"]:
            self._systemctl(remote, "disable", "--now", self.unit)
            remote.call("remove", path=path)
            self._systemctl(remote, "daemon-reload")

    def _path(self, remote: Remote) -> str:
        home = remote.run(["/bin/sh", "-c", 'echo "${XDG_CONFIG_HOME:-$HOME/.config}"']).out.strip()
        return f"{home}/systemd/user/{self.unit}"

    @staticmethod
    def _systemctl(remote: Remote, *words: str) -> None:
        done = remote.run(["systemctl", "--user", *words])
        if done.code != 0:
            raise SiteUnfit(f"systemctl --user {words[0]}: {done.words}", hint="use another --supervisor")


KINDS: dict[str, type[Supervised]] = {kind.kind: kind for kind in (Systemd, Cron, Scrontab, Detached)}


def with_entry(table: str, site: str, lines: str) -> str:
    """Give a crontab with an entry in the place of a site's older one, and everything else as it was; pure."""
    begin, end = f"# slurmbus {site}: begin\n", f"# slurmbus {site}: end\n"
    rest = re.sub(rf"^{re.escape(begin)}.*?^{re.escape(end)}", "", table, flags=re.MULTILINE | re.DOTALL)
    if not lines:
        return rest
    if rest and not rest.endswith("\n"):
        rest += "\n"
    return f"{rest}{begin}{lines}{end}"


def cron_quoted(command: str) -> str:
    """Write a command as a crontab takes it: a percent sign would end it. Source: crontab(5)."""
    return command.replace("%", r"\%")


def systemd_quoted(word: str) -> str:
    """Write a word as a unit takes it inside quotes. Source: systemd.service(5), "Command lines"."""
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
