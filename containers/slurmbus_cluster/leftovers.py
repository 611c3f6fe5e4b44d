"""Removing a cluster's containers, network and volume: at its end, and what a killed process left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import docker.errors
import requests.exceptions
from docker.models.containers import Container

from .engine import owner_is_dead

CLUSTER_LABEL = "slurmbus.cluster"
"""On everything that belongs to a cluster; its value is the cluster's name."""

REMOVAL_TIMEOUT = 60
"""Seconds to wait for a container that somebody else is removing."""


def remove_cluster(client: docker.DockerClient, name: str) -> None:
    """Remove every container, network and volume of the cluster of this name. What is already gone is fine."""
    label: dict[str, str | list[str] | bool] = {"label": f"{CLUSTER_LABEL}={name}"}
    containers = client.containers.list(all=True, filters=label, ignore_removed=True)
    if containers:
        with ThreadPoolExecutor(len(containers)) as pool:
            list(pool.map(_remove_container, containers))
    for network in client.networks.list(filters=label):
        _gone_is_fine(network.remove)
    for volume in client.volumes.list(filters=label):
        _gone_is_fine(volume.remove)


def remove_abandoned(client: docker.DockerClient, progress: Callable[[str], None]) -> None:
    """Remove the clusters of this host's processes that died without removing them.

    Several processes may ask at once: one removes, the others wait for it. What can't be removed is reported and
    stays; it's no reason not to start another cluster.
    """
    label: dict[str, str | list[str] | bool] = {"label": CLUSTER_LABEL}
    with (Path(tempfile.gettempdir()) / f"slurmbus-leftovers-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        labels = [found.labels for found in client.containers.list(all=True, filters=label, ignore_removed=True)]
        labels += [network.attrs.get("Labels") or {} for network in client.networks.list(filters=label)]
        labels += [volume.attrs.get("Labels") or {} for volume in client.volumes.list(filters=label)]
        for name in sorted({found[CLUSTER_LABEL] for found in labels if owner_is_dead(found)}):
            progress(f"removing cluster {name}: the process that started it is gone")
            try:
                remove_cluster(client, name)
            except (docker.errors.APIError, requests.exceptions.RequestException) as error:
                progress(f"cluster {name} couldn't be removed: {error}")


def _remove_container(container: Container) -> None:
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        if "already in progress" not in str(error):
            raise
        # Its volumes and its network are free only once it is gone.
        _gone_is_fine(lambda: container.wait(condition="removed", timeout=REMOVAL_TIMEOUT))


def _gone_is_fine(action: Callable[[], object]) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        action()
