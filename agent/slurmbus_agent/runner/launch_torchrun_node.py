"""Becomes one node's torchrun: ``<runner> --torchrun <what all nodes know, as JSON>``."""

from __future__ import annotations

import json
import os
import sys

from slurmbus_agent.runner import launch_network
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_node import seen_here
from slurmbus_agent.runner.protocol import EXIT_NOT_FOUND, EXIT_SETUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(argv: list[str]) -> int:
    """Become torchrun, or give an exit code after having said why not."""
    wanted: dict[str, Any] = json.loads(argv[2])
    name = os.environ.get("SLURMD_NODENAME") or wanted["first"]
    try:
        words = command(name, wanted, seen_here()["gpus"])
    except LaunchFailed as error:
        sys.stderr.write(f"slurmbus: {error}\n")
        return error.exit_code
    try:
        os.execvp(words[0], words)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"slurmbus: {words[0]!r} can't be started on {name}: {error.strerror}\n")
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_SETUP


def command(name: str, wanted: dict[str, Any], gpus: int | None) -> list[str]:
    """Give the words of a node's torchrun, and put what its processes need into this environment.

    Raises:
        LaunchFailed: the node hasn't got what was asked for.
    """
    node = wanted["nodes"][name]
    count = processes(wanted["processes"], node, gpus, name)
    # torchrun would set it to 1, with many words.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, node["cpus"] // count)))
    if wanted["again"]:  # processes that are started again would find the addresses of their predecessors
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    words = [*wanted["command"], f"--nproc-per-node={count}"]
    # Who is the host isn't left to names: a host's own may not be the one in the endpoint.
    is_first = int(name == wanted["first"])
    words.append(f"--rdzv-conf=is_host={is_first},join_timeout={wanted['join_timeout']}")
    if len(wanted["nodes"]) > 1:
        address = launch_network.address_of(name, wanted["interface"])
        interface = next((one for one, its in launch_network.interfaces().items() if its == address), None)
        if interface is not None:  # gloo would take the address of the host's name, which may be this host's alone
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if wanted["interface"]:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", wanted["interface"])
        words.append(f"--local-addr={address}")
    return [*words, *wanted["arguments"]]


def processes(wanted: int | str, node: dict[str, int], gpus: int | None, name: str) -> int:
    """Give how many processes a node gets; LaunchFailed when it has no GPU for them."""
    if isinstance(wanted, int):
        return max(1, wanted)
    if wanted == "cpus":
        return node["cpus"]
    if wanted == "gpus" and not gpus:
        raise LaunchFailed(
            f"processes_per_node: Slurm gave no GPU on {name}; ask for them, e.g. SlurmQueueConfig(gpus_per_node='2'), "
            "or set processes_per_node='tasks'"
        )
    return gpus if gpus and wanted != "tasks" else node["tasks"]
