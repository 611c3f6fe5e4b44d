"""Starts Ray on one node in the Python that has it: ``python <runner> --ray-start <options as JSON>``.

An option that this version of Ray doesn't have, or whose part of Ray isn't installed, is left out.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys

from slurmbus_agent.runner.protocol import EXIT_SETUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NO_RAY = "slurmbus-no-ray"
"""What is written when this Python has no Ray."""
OPEN_FILES = 65536
"""Ray's advice. Source: its documentation, "Deploying on Slurm" and "System limits"."""
CLIENT_PORT = "ray_client_server_port"
NEEDED_FOR_CLIENTS = "get_ray_client_dependency_error"
"""By this ``ray start`` finds out whether it can serve remote clients."""


def main(argv: list[str]) -> int:
    """Become ``ray start`` for as long as the node is part of the cluster."""
    wanted: dict[str, Any] = json.loads(argv[2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    try:
        scripts: Any = importlib.import_module("ray.scripts.scripts")
    except ImportError as error:
        sys.stderr.write(f"{NO_RAY} {error}\n")
        return EXIT_SETUP
    options = {option.name: option for option in scripts.start.params}
    if hasattr(scripts, NEEDED_FOR_CLIENTS):
        # Payloads need no server for remote clients, and when it can't keep up Ray's own command ends the whole head.
        setattr(scripts, NEEDED_FOR_CLIENTS, lambda: ImportError("not wanted"))
        wanted.pop(CLIENT_PORT, None)
    arguments = ["start"]
    for name, value in wanted.items():
        if name in options:
            flag = max(options[name].opts, key=len)
            arguments += [flag] if value is True and options[name].is_flag else [f"{flag}={value}"]
    scripts.cli(arguments)  # it ends the process itself
    return 0
