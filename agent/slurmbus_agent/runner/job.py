"""The runner's way to its payload: the plan, the claim, the start. What follows is loaded while the payload runs."""

from __future__ import annotations

import os
import sys
import time

from slurmbus_agent.runner import claims, payload
from slurmbus_agent.runner.plan import BadPlan, Plan
from slurmbus_agent.runner.protocol import ERROR_LAUNCH, ERROR_NOT_STARTED, EXIT_SETUP, EXIT_TWIN, STREAMS
from slurmbus_agent.runner.signals import Signals
from slurmbus_agent.runner.trouble import spool_trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST_ERROR = 1000
"""Characters; a command that isn't there may have a very long name."""


class Taken(Exception):
    """Another start has the claim."""


def main(argv: list[str]) -> int:
    """Run the job in the folder that is the only argument, or do another of the runner's jobs; give the exit code."""
    if len(argv) > 1 and argv[1].startswith("--"):
        from slurmbus_agent.runner import launch  # noqa: PLC0415 - most jobs don't need it

        return launch.main(argv)
    signals = Signals()
    try:
        plan = Plan(argv[1])
        identity = claim(plan)
    except IndexError:
        return say(EXIT_SETUP, "the folder of the job is missing on the command line")
    except BadPlan as error:
        return say(EXIT_SETUP, str(error))
    except Taken as error:
        return say(EXIT_TWIN, f"{error}; this one ends without running the job's command")
    except OSError as error:
        return say(EXIT_SETUP, f"this start can't be claimed: {spool_trouble(error)[0]}: {argv[1]}")
    return run(plan, identity, signals)


def say(exit_code: int, text: str) -> int:
    """Write to the batch script's own output."""
    sys.stderr.write(f"slurmbus: {text}\n")
    return exit_code


def launch_trouble(plan: Plan, start: int) -> dict[str, Any]:
    """Give what a launch that failed said of itself."""
    from slurmbus_agent.runner.launch_files import read_trouble  # noqa: PLC0415 - most jobs don't need it

    words = read_trouble(plan.folder, start)
    return {} if words is None else {"error": words[:LONGEST_ERROR], "error_code": ERROR_LAUNCH}


def claim(plan: Plan) -> dict[str, Any]:
    """Take the first free start, and give what identifies it.

    Raises:
        Taken: the job may not start again.
        OSError: the spool doesn't work.
    """
    job_id, own_id = slurm_ids(plan)
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    nonce = os.urandom(8).hex()
    now = time.time()
    mine = claims.target(job_id, node, nonce, now)
    start = 0
    while True:
        found = claims.take(plan.folder + "/starts", start, mine)
        if found == mine:
            break
        try:
            other_id, other_node, _, _ = claims.parse(found)
        except ValueError:
            raise Taken(f"start {start} of this job has been taken by somebody unknown: {found[:80]!r}") from None
        if other_node == claims.AGENT_NODE:
            raise Taken("the agent has closed this job")
        if not plan.requeue or other_id != job_id:  # a requeue keeps the id: another one is a twin
            raise Taken(f"start {start} of this job was taken by Slurm job {other_id} on {other_node}")
        start += 1
    identity = {
        "key": plan.key,
        "task": plan.task,
        "start": start,
        "job_id": job_id,
        "node": claims.parse(mine)[1],
        "nonce": nonce,
        "claimed_at": claims.parse(mine)[3],
    }
    if plan.array_index is not None:
        identity["task_job_id"] = own_id
    return identity


def slurm_ids(plan: Plan) -> tuple[int, int]:
    """Give the id by which this job is told from its twins, and its own: a task of an array has the array's and one.

    Raises:
        BadPlan: this isn't the job that the plan is for.
    """
    try:
        own_id = int(os.environ["SLURM_JOB_ID"])
    except (KeyError, ValueError):
        raise BadPlan("this isn't a Slurm job: SLURM_JOB_ID isn't set") from None
    if plan.array_index is None:
        return own_id, own_id
    array_id = os.environ.get("SLURM_ARRAY_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_TASK_ID") != str(plan.array_index) or not array_id.isdigit():
        raise BadPlan(f"this isn't task {plan.array_index} of a job array: SLURM_ARRAY_TASK_ID says otherwise")
    return int(array_id), own_id


def secret_values(plan: Plan, start: int, signals: Signals) -> dict[str, str]:
    """Wait for the secret variables of a start, and give them."""
    from slurmbus_agent.runner import secret_values  # noqa: PLC0415 - most jobs don't need it

    return secret_values.read(plan.folder, start, signals)


def burn_secret_values(plan: Plan, start: int) -> None:
    """Leave no secret variables behind in the spool."""
    from slurmbus_agent.runner import secret_values  # noqa: PLC0415 - most jobs don't need it

    try:
        secret_values.burn(plan.folder, start)
    except OSError as error:
        say(0, f"{start}.secrets can't be emptied: {spool_trouble(error)[0]}")


def run(plan: Plan, identity: dict[str, Any], signals: Signals) -> int:
    """Run the payload of a claimed start to its end, and give the exit code for Slurm."""
    start: int = identity["start"]
    end: dict[str, Any] = {
        "exit_code": None,
        "signal": None,
        "ended_at": 0.0,
        "sizes": dict.fromkeys(STREAMS, 0),
        "started_at": None,
        "error": None,
        "error_code": None,
        "usage": None,
    }
    writers: dict[str, int] = {}
    running: payload.Payload | None = None
    try:
        for name in STREAMS:
            path = f"{plan.folder}/{start}.{name}"
            writers[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        plan.runs_in.check()
        command = plan.command(start, os.path.abspath(sys.argv[0]))
        env = plan.environment(start)
        if plan.secrets:
            env.update(secret_values(plan, start, signals))
        running = payload.start(command, env, plan.cwd, writers["stdout"], writers["stderr"])
        del env
    except payload.NotStarted as error:
        end.update(exit_code=error.exit_code, error=str(error)[:LONGEST_ERROR], error_code=ERROR_NOT_STARTED)
    except OSError as error:
        words, code = spool_trouble(error)
        end.update(exit_code=EXIT_SETUP, error=words, error_code=code)
    finally:
        if plan.secrets:
            burn_secret_values(plan, start)

    from slurmbus_agent.runner.following import Following  # noqa: PLC0415 - the payload needn't wait for it

    following = Following(plan, identity, writers, signals)
    if running is not None:
        end.update(following.follow(running))
        if plan.launch and end["exit_code"] and not end["error"]:
            end.update(launch_trouble(plan, start))
    following.finish(end)
    if end["error"]:
        say(0, end["error"])
    if following.superseded:
        return EXIT_TWIN
    return 128 + end["signal"] if end["signal"] else int(end["exit_code"])
