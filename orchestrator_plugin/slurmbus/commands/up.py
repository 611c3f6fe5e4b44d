"""``slurmbus up``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from slurmbus.bootstrap import account
from slurmbus.bootstrap.login import SUPERVISORS, WAYS, Login, default_user, merged
from slurmbus.bootstrap.up import Outcome, Up, Wishes
from slurmbus.commands.console import note
from slurmbus.errors import UnknownSite
from slurmbus.exits import JOB_FAILED, SUCCESS
from slurmbus.home import EMBEDDED, Home, SiteProfile

_WIDTH = 11
_SITE_SETTINGS = ("scheduler", "spool", "slurm_conf", "link_host", "runner_python")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_BUS_SETTINGS = ("urls", "agent_urls", "credentials", "ca_file", "tls_name", "allow_plain")


class Console:
    """Shows how far it is, on stderr: a line a step, and on a terminal what is going on at the moment."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = 0.0

    def step(self, what: str, words: str) -> None:
        """Say what came of a step."""
        self.clear()
        note(f"  {what:<{_WIDTH}} {words}")

    def note(self, words: str) -> None:
        """Say something that a person should know."""
        self.clear()
        note(f"  {'':<{_WIDTH}} {words}", colour="yellow")

    def progress(self, doing: str, done: int, total: int) -> None:
        """Show what is going on, ten times a second at most."""
        if not self._live or (done and done != total and time.monotonic() - self._shown < 0.1):  # noqa: PLR2004
            return
        self._shown = time.monotonic()
        amount = f" {100 * done // total} %" if total else ""
        self.clear()
        click.echo(f"  … {doing}{amount}", nl=False, err=True)

    def clear(self) -> None:
        """Take away what was going on."""
        if self._live:
            click.echo("\r\x1b[K", nl=False, err=True)


@click.command("up")
@click.argument("site")
@click.option("--host", help="The login node, or its alias in ~/.ssh/config.")
@click.option("--user", help="Your name there.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its SSH port.")
@click.option("--jump", multiple=True, metavar="HOST", help="A host to go through; several in their order.")
@click.option("--ssh-option", "ssh_options", multiple=True, metavar="NAME=VALUE", help="As for ssh -o.")
@click.option("--ssh-config", metavar="FILE", help="In the place of ~/.ssh/config.")
@click.option("--askpass", metavar="PROGRAM", help="Answers the prompts in your place.")
@click.option("--before-login", metavar="COMMAND", help="Run here first, e.g. to get a certificate.")
@click.option("--secrets-file", metavar="FILE", help="SOPS or age: password, passphrase, one-time secret.")
@click.option("--post-login-command", metavar="COMMAND", help="Run there first; {command} is what follows.")
@click.option("--force-tty", is_flag=True, default=None, help="The login wants a terminal.")
@click.option("--way", type=click.Choice(WAYS), help="How the agent reaches the bus.")
@click.option("--supervisor", type=click.Choice(SUPERVISORS), help="What keeps the agent running.")
@click.option("--tunnel-relogin/--no-tunnel-relogin", default=None, help="Log in again when the tunnel died.")
@click.option("--install-folder", metavar="PATH", help="Where the agent is installed there.")
@click.option("--agent-python", metavar="PATH", help="The Python there on which the agent runs (3.11 or newer).")
@click.option("--python-archive", metavar="FILE", help="A Python to take along (python-build-standalone).")
@click.option("--pyslurm/--no-pyslurm", "pyslurm", default=None, help="Compile Slurm's Python library there.")
@click.option("--scheduler", type=click.Choice(["auto", "native", "commands", "local"]), help="What it submits to.")
@click.option("--spool", metavar="PATH", help="The spool, on the cluster's shared file system.")
@click.option("--slurm-conf", metavar="PATH", help="slurm.conf on the cluster.")
@click.option("--link-host", metavar="HOST", help="On which address compute nodes reach the agent.")
@click.option("--runner-python", metavar="PROGRAM", help="The Python that starts runners on compute nodes.")
@click.option("--url", "urls", multiple=True, metavar="URL", help="The team's own bus. [default: this home's]")
@click.option("--agent-url", "agent_urls", multiple=True, metavar="URL", help="How the agent reaches the bus.")
@click.option("--credentials", type=_FILE, help="NKEY seed for --url.")
@click.option("--ca", "ca_file", type=_FILE, help="TLS authority of --url.")
@click.option("--tls-name", metavar="HOST", help="The name in the certificate of --url, if it is another one.")
@click.option(
    "--allow-plain/--no-allow-plain", default=None, help="Reach --url without TLS: the network itself is safe."
)
@click.option("--upgrade", is_flag=True, help="Replace an agent of another version; jobs go on.")
@click.option("--login", "log_in", is_flag=True, help="Log in even if nothing has to be done.")
@click.option("--no-trial", is_flag=True, help="Run no trial job.")
@click.option("--no-input", is_flag=True, help="Never ask; fail instead.")
def command(site: str, *, upgrade: bool, log_in: bool, no_trial: bool, no_input: bool, **given: Any) -> int:
    """Log in once at a site, install its agent, start it, and check the whole way.

    What is said here is kept in the site's profile, so the next time 'slurmbus up SITE' is enough. Run again, it
    changes nothing unless something has to be changed, and doesn't even log in. Prompts of the login (passwords,
    one-time codes, keys that want to be touched) come on your terminal as with ssh.

    Example: slurmbus up leonardo --host login.leonardo.example.org --user alice
    """
    home = Home.default()
    _keep(home, site, given, ask=not no_input and sys.stdin.isatty())
    note(f"slurmbus up {site}", bold=True)
    wishes = Wishes(upgrade=upgrade, login=log_in, trial=not no_trial, batch=no_input)
    console = Console()
    try:
        outcome = Up(home, site, wishes, console).run()
    except KeyboardInterrupt:
        console.clear()
        note(f"interrupted; nothing is left half done at {site}", colour="yellow")
        raise
    return _report(site, outcome)


def _keep(home: Home, site: str, given: dict[str, Any], *, ask: bool) -> SiteProfile:
    """Put what was said into the site's profile; make the profile where there is none."""
    about_login = {name: value for name, value in given.items() if name in Login.__struct_fields__}
    before = _known(home, site)
    if before is None or before.login is None:
        about_login |= _asked(site, about_login, ask=ask)
    login = merged(before.login if before else None, about_login)
    said = {name: given[name] for name in (*_SITE_SETTINGS, *_BUS_SETTINGS) if given[name] not in (None, ())}
    if before is None or said:
        _add(home, site, before, said)
    if home.site(site).login != login:
        home.change_site(site, login=login)
    return home.site(site)


def _known(home: Home, site: str) -> SiteProfile | None:
    try:
        return home.site(site)
    except UnknownSite:
        return None


def _asked(site: str, given: dict[str, Any], *, ask: bool) -> dict[str, Any]:
    """Ask for what isn't known yet."""
    if given["host"] is not None or not ask:
        return {}
    note(f"Where is {site}? An alias of your ~/.ssh/config is enough.")
    host = click.prompt("  login node", err=True)
    user = given["user"] or click.prompt("  your name there", default=default_user(), err=True)
    return {"host": host, "user": user}


def _add(home: Home, site: str, before: SiteProfile | None, said: dict[str, Any]) -> None:
    def of(name: str, field: str | None = None) -> Any:
        return said.get(name, getattr(before, field or name) if before else None)

    bus = before.bus if before and before.bus != EMBEDDED else None
    urls = said.get("urls") or bus
    # How the agent reached one bus isn't how it reaches another.
    agent_urls = before.agent_servers if before and urls == bus else None
    home.add_site(
        site,
        urls,
        credentials=said.get("credentials") or (home.path / before.credentials if before else None),
        ca_file=of("ca_file"),
        agent_servers=said.get("agent_urls") or agent_urls,
        scheduler=of("scheduler") or "auto",
        spool=of("spool"),
        slurm_conf=of("slurm_conf"),
        link_host=of("link_host"),
        python=of("runner_python", "python"),
        tls_name=of("tls_name"),
        allow_plain=bool(of("allow_plain")),
    )


def _report(site: str, outcome: Outcome) -> int:
    if outcome.account is not None:
        _show_account(outcome.account)
    if outcome.older:
        note(f"another version of the agent is here: 'slurmbus up {site} --upgrade' takes it there", colour="yellow")
    if outcome.trial is not None and not (outcome.trial.works or outcome.trial.waiting):
        note(f"{site} is up, but the trial job failed: 'slurmbus doctor {site}' says more", colour="red")
        return JOB_FAILED
    if not outcome.changes:
        where = "" if outcome.logged_in else ", and nobody had to log in"
        note(f"{site} is up; nothing had to be changed{where}", colour="green", bold=True)
    else:
        note(f"{site} is up", colour="green", bold=True)
    return SUCCESS


def _show_account(found: account.Account) -> None:
    for line in account.describe(found):
        note(f"  {'account':<{_WIDTH}} {line}")
    note("  for your resource:")
    click.echo(f"    queue={account.queue_configuration(found)}")
