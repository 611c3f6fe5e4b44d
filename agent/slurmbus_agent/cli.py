"""``slurmbus-agent``: run an agent, keep one running, and say what it may do, has done, or lacks."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from slurmbus_agent import __version__, audit, clean, doctor, ensuring
from slurmbus_agent.agent import Agent
from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.guarding import StoppedByFile, check_stop_file
from slurmbus_agent.authority.standing import renew_by_hand
from slurmbus_agent.config import AgentConfig, default_path, load
from slurmbus_agent.guest.succession import Heritage, Succession
from slurmbus_agent.presence import Places
from slurmbus_protocol import logs
from slurmbus_protocol.errors import InvalidName, InvalidSetting, SlurmbusError

EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_STOPPED = 4
EXIT_INTERRUPTED = 130
IN_SPOOL = Path()


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    The exit code is 0, 1 when ``clean`` couldn't remove something or ``doctor`` found that no job can run, 2 for wrong
    usage or configuration, 3 when something can't be reached, 4 when a stop file keeps the agent down (whoever
    supervises it shall not start it again).
    """
    parser = argparse.ArgumentParser(prog="slurmbus-agent", description="Submits and follows Slurm jobs for Slurmbus.")
    parser.add_argument("--version", action="version", version=f"slurmbus-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="serve one site until it is stopped; jobs go on without it")
    run.set_defaults(log_level=logging.INFO)
    run.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        help=f"lines for people, or one JSON object a line (default: ${logs.VARIABLE}, else log_format of the "
        "settings, else text)",
    )
    cleaning = commands.add_parser(
        "clean",
        help="forget finished jobs now; also while an agent runs",
        description="Forget finished jobs: their request, their record, then their folder in the spool. Never an "
        "unfinished one, and none before its request has been expired for a day.",
    )
    examining = commands.add_parser(
        "doctor",
        help="say whether jobs can run from here, through what, and what is missing",
        description="Look at Python, Slurm and, with --site, the spool and the bus. The exit code is 1 when no job can "
        "run.",
    )
    run.add_argument(
        "--log-file",
        type=Path,
        nargs="?",
        const=IN_SPOOL,
        help="write the log there instead of to stderr, and limit its size (default: agents/HOST.log in the spool)",
    )
    ensuring_ = commands.add_parser(
        "ensure",
        help="start the agent in the background unless it runs on this host; may be called as often as one likes",
    )
    ensuring_.add_argument(
        "--replace", action="store_true", help="start another one, let it take over, and end the one that runs"
    )
    stopping = commands.add_parser("stop", help="end the agent of this host; jobs go on without it")
    telling = commands.add_parser("status", help="say whether the agent runs on this host; the exit code is 1 if not")
    for command in (ensuring_, stopping, telling):
        command.set_defaults(log_level=logging.WARNING)
    renewing = commands.add_parser(
        "renew",
        help="let the authority begin anew, after a login by hand",
        description="For a bundle that was copied by hand: the agent takes new jobs for another 7 days. Where "
        "'slurmbus up' has left a signed grant, only 'slurmbus up' renews it.",
    )
    auditing = commands.add_parser("audit", help="show every request and what came of it, as JSON lines")
    for command in (run, cleaning, examining, ensuring_, stopping, telling, renewing, auditing):
        command.add_argument("--site", required=command is not examining, help="the site's name, e.g. leonardo-alice")
        command.add_argument(
            "--config",
            type=Path,
            help="the file that 'slurmbus sites add' wrote (default: ~/.config/slurmbus/SITE.toml)",
        )
        command.add_argument("-v", "--verbose", action="store_true", help="say more")
    for command in (examining, renewing, auditing):
        command.set_defaults(log_level=logging.ERROR)
    clean.add_options(cleaning)
    arguments = parser.parse_args(argv)
    level = logging.DEBUG if arguments.verbose else arguments.log_level
    logs.set_up(logs.TEXT, level)
    try:
        return _carry_out(arguments, level)
    except (InvalidSetting, InvalidName) as error:
        print(f"slurmbus-agent: {error}", file=sys.stderr)  # noqa: T201  # the command's own output
        return EXIT_USAGE
    except StoppedByFile as error:
        print(f"slurmbus-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_STOPPED
    except SlurmbusError as error:
        print(f"slurmbus-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_UNREACHABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _carry_out(arguments: argparse.Namespace, level: int) -> int:
    site, path = arguments.site, arguments.config
    match arguments.command:
        case "clean":
            return asyncio.run(clean.clean(load(site, path), arguments))
        case "doctor":
            return asyncio.run(doctor.report(load(site, path) if site else None))
        case "renew":
            return _renew(site, path)
        case "audit":
            return _show_audit(load(site, path))
        case "ensure" | "stop" | "status":
            return _keep(arguments)
    _serve(load(site, path), arguments, level)
    return 0


def _keep(arguments: argparse.Namespace) -> int:
    """Start, stop or look at the agent of this host."""
    config = load(arguments.site, arguments.config)
    if arguments.command == "ensure":
        check_stop_file(_files(config, arguments.config))
        path = arguments.config or default_path(arguments.site)
        done = ensuring.ensure(config, path, replace=arguments.replace)
        words = {"nothing": "runs already", "started": "is started", "replaced": "has taken over"}[done.did]
        print(f"the agent of {config.site} {words}: process {done.presence.pid} on {done.presence.host}")  # noqa: T201
        return 0
    if arguments.command == "stop":
        found = ensuring.stop(config)
        print(f"process {found.pid} has ended" if found else "no agent runs here")  # noqa: T201
        return 0
    lines, runs = ensuring.describe(config)
    print("\n".join(lines) if lines else "no agent has run here")  # noqa: T201
    return int(not runs)


def _serve(config: AgentConfig, arguments: argparse.Namespace, level: int) -> None:
    check_stop_file(_files(config, arguments.config))
    succession = Succession(Heritage.take(), asyncio.Event())
    places = Places(config.spool_root)
    agent = Agent(config, _files(config, arguments.config), succession, places.ready)
    logs.set_up(
        logs.chosen(arguments.log_format, config.log_format),
        level,
        file=places.log if arguments.log_file == IN_SPOOL else arguments.log_file,
        site=config.site,
        agent=agent.agent_id,
    )
    if not succession.heritage.parent:  # whoever looks after the agent knows the first process of the line
        places.arrive()
    try:
        asyncio.run(_run(agent, succession))
    finally:
        if not succession.over:
            places.leave()
        succession.leave()


async def _run(agent: Agent, succession: Succession) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, succession.end)
    succession.listen()
    handing_over = asyncio.create_task(succession.run())
    try:
        await agent.run(succession.stop)
    finally:
        handing_over.cancel()


def _files(config: AgentConfig, path: Path | None) -> AuthorityFiles:
    return AuthorityFiles(config.site, (path or default_path(config.site)).absolute(), config.spool_root)


def _renew(site: str, path: Path | None) -> int:
    config = load(site, path)
    renew_by_hand(config, _files(config, path))
    return 0


def _show_audit(config: AgentConfig) -> int:
    for line in audit.lines(config.spool_root / "audit.log"):
        print(json.dumps(line))  # noqa: T201  # the command's own output
    return 0


if __name__ == "__main__":
    sys.exit(main())
