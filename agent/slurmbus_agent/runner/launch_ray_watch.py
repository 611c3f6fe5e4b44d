"""Says which nodes a Ray cluster has, as Ray itself sees it: ``python <runner> --ray-watch <host:port> <how many>``.

Writes lines of JSON after a word of its own, because Ray writes to the same pipe: what this Ray is, then the addresses
of living nodes whenever they have changed. Looks often until there are as many as expected, then seldom. It is no
driver: Ray starts no workers for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time

from slurmbus_agent.runner.protocol import EXIT_SETUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SAYS = "slurmbus-ray-watch "
"""How each line of ours begins."""
OFTEN = 0.05
SELDOM = 2.0


def main(argv: list[str]) -> int:
    """Watch until this process is killed or the head is gone."""
    address, expected = argv[2], int(argv[3])
    try:
        ray: Any = importlib.import_module("ray")
        state: Any = importlib.import_module("ray._private.state").state
    except ImportError:
        return EXIT_SETUP  # --ray-start says it
    token = importlib.util.find_spec("ray._private.authentication") is not None  # since 2.52
    _say({"ray": ray.__version__, "token": token})
    state._initialize_global_state(_options(ray, address))  # noqa: SLF001 - ray.nodes() is this, but for drivers only
    said = None
    while True:
        alive = sorted(node["NodeManagerAddress"] for node in state.node_table() if node["Alive"])
        if alive != said:
            said = alive
            _say({"alive": alive})
        time.sleep(OFTEN if len(alive) < expected else SELDOM)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(SAYS + json.dumps(message) + "\n")
    sys.stdout.flush()


def _options(ray: Any, address: str) -> Any:
    options = ray._raylet.GcsClientOptions  # noqa: SLF001 - as Ray's own commands do it
    if hasattr(options, "create"):
        return options.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    return options.from_gcs_address(address)
