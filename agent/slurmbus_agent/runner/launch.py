"""What runs between the runner and a payload that needs more than a process: ``<runner> --launch <job> <start>``.

It starts after the preamble, in the environment that the payload will have, and ends as the payload ends. The other
programs of the runner's file that a launch needs are found here, too.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys

from slurmbus_agent.runner.launch_errors import Interrupted, LaunchFailed
from slurmbus_agent.runner.launch_job import Launch
from slurmbus_agent.runner.payload import NotStarted
from slurmbus_agent.runner.plan import BadPlan, Plan
from slurmbus_agent.runner.protocol import EXIT_SETUP
from slurmbus_agent.runner.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LAUNCHERS = {"mpi": "launch_mpi", "ray": "launch_ray", "spark": "launch_spark", "torchrun": "launch_torchrun"}
"""Launchers by the type of their plan: modules with ``launch(job: Launch) -> int``, see :class:`Launch`."""
PROGRAMS = {
    "--environment": "launch_environment",
    "--node": "launch_node",
    "--ray-start": "launch_ray_start",
    "--ray-watch": "launch_ray_watch",
    "--torchrun": "launch_torchrun_node",
}
"""Other programs by their option: modules with ``main(argv: list[str]) -> int``."""


def main(argv: list[str]) -> int:
    """Carry a launch out, and give the exit code, or end by the signal that ended the payload."""
    if argv[1] in PROGRAMS:
        code: int = _module(PROGRAMS[argv[1]]).main(argv)
        return code
    if argv[1] != "--launch" or len(argv) != 4:  # noqa: PLR2004 - the option, the job's folder and the start
        sys.stderr.write(f"slurmbus: {' '.join(argv[1:])!r} is no command of the runner\n")
        return EXIT_SETUP
    signals = Signals()
    try:
        job = Launch(Plan(argv[2]), int(argv[3]), os.path.abspath(argv[0]), signals)
    except BadPlan as error:
        sys.stderr.write(f"slurmbus: {error}\n")
        return EXIT_SETUP
    return _end_as(_carry_out(job))


def _carry_out(job: Launch) -> int:
    kind = str(job.options.get("type"))
    if kind not in LAUNCHERS:
        job.fail(f"this runner knows no launcher {kind!r}; update the agent")
        return EXIT_SETUP
    launcher = _module(LAUNCHERS[kind])
    try:
        status: int = launcher.launch(job)
    except Interrupted as interrupt:
        status = -interrupt.number
    except (LaunchFailed, NotStarted) as error:
        job.fail(str(error))
        status = error.exit_code
    finally:
        job.close()
    return status


def _module(name: str) -> Any:
    return importlib.import_module(f"slurmbus_agent.runner.{name}")


def _end_as(status: int) -> int:
    """Give an exit code, or end by a signal as the payload did, without a core file of our own."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        sys.stderr.flush()
        os.kill(os.getpid(), -status)
    return status
