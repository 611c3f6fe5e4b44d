"""What a killed process leaves of a cluster is removed by the next one, also when several come at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import docker
import pytest

from slurmbus_cluster import engine as container_engine
from slurmbus_cluster import leftovers
from slurmbus_cluster.image import ensure_image

NAME = "slurmbus-leftovers-test"
STARTERS = 4


@pytest.fixture
def client(engine: None) -> Iterator[docker.DockerClient]:
    connection = container_engine.connect()
    yield connection
    leftovers.remove_cluster(connection, NAME)
    connection.close()


@pytest.fixture
def abandoned(client: docker.DockerClient, progress: Callable[[str], None]) -> dict[str, str]:
    """Three containers with a volume and a network, labelled as those of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    labels = {
        leftovers.CLUSTER_LABEL: NAME,
        "slurmbus.owner.host": socket.gethostname(),
        "slurmbus.owner.pid": str(ended.pid),
        "slurmbus.owner.start": "1",
    }
    image = ensure_image(progress)
    client.volumes.create(f"{NAME}-home", labels=labels)
    client.networks.create(NAME, labels=labels)
    for number in range(3):
        client.containers.run(
            image,
            ["300"],
            entrypoint=["sleep"],
            name=f"{NAME}-{number}",
            network=NAME,
            labels=labels,
            volumes={f"{NAME}-home": {"bind": "/home", "mode": "rw"}},
            detach=True,
        )
    return labels


def test_those_that_start_at_once_remove_it_together(client: docker.DockerClient, abandoned: dict[str, str]) -> None:
    """The lock is on a file each opens for itself, so it keeps threads apart as it does processes."""

    def start() -> list[str]:
        lines: list[str] = []
        connection = container_engine.connect()
        leftovers.remove_abandoned(connection, lines.append)
        connection.close()
        return lines

    with ThreadPoolExecutor(STARTERS) as pool:
        starters = [pool.submit(start) for _ in range(STARTERS)]
    lines = [line for starter in starters for line in starter.result()]
    assert lines == [f"removing cluster {NAME}: the process that started it is gone"]
    assert _left(client) == []


def test_a_removal_waits_for_one_that_is_under_way(client: docker.DockerClient, abandoned: dict[str, str]) -> None:
    """Somebody else, who knows nothing of our lock, removes the same containers."""
    removing = subprocess.Popen(["docker", "rm", "-f", *(f"{NAME}-{number}" for number in range(3))])
    leftovers.remove_cluster(client, NAME)
    removing.wait()
    assert _left(client) == []


def test_what_cannot_be_removed_is_reported_and_stops_nobody(
    client: docker.DockerClient, abandoned: dict[str, str], progress: Callable[[str], None]
) -> None:
    """A container of somebody else, without our label, holds the volume."""
    guest = client.containers.run(
        ensure_image(progress),
        ["300"],
        entrypoint=["sleep"],
        volumes={f"{NAME}-home": {"bind": "/home", "mode": "rw"}},
        detach=True,
    )
    lines: list[str] = []
    try:
        leftovers.remove_abandoned(client, lines.append)
    finally:
        guest.remove(force=True)
    assert lines[0] == f"removing cluster {NAME}: the process that started it is gone"
    assert lines[1].startswith(f"cluster {NAME} couldn't be removed: ")
    assert "volume is in use" in lines[1]
    assert _left(client) == [f"{NAME}-home"]


def _left(client: docker.DockerClient) -> list[str]:
    label: dict[str, str | list[str] | bool] = {"label": f"{leftovers.CLUSTER_LABEL}={NAME}"}
    return [
        *(str(found.name) for found in client.containers.list(all=True, filters=label)),
        *(str(found.name) for found in client.networks.list(filters=label)),
        *(str(found.name) for found in client.volumes.list(filters=label)),
    ]
