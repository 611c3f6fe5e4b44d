"""What all tests share: the one real cluster of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from slurmbus_cluster import Cluster, engine_problem
from slurmbus_cluster.agents import install_agent

REQUIRED = "SLURMBUS_REQUIRE_CLUSTER"
HOSTS = ("ctld", "c1", "c2", "login", "login2", "jump", "jump2")
"""Two login nodes: an agent may stand by for another. Two jump hosts: a way in may lead over both."""


@pytest.fixture(scope="session")
def engine() -> None:
    """A container engine; without one the test is skipped, or fails where SLURMBUS_REQUIRE_CLUSTER is set."""
    problem = engine_problem()
    if problem is not None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and {problem}")
        pytest.skip(problem)


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Says on the terminal what takes so long."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n[cluster] {line}")
            sys.stderr.flush()

    return say


@pytest.fixture(scope="session")
def cluster(engine: None, progress: Callable[[str], None]) -> Iterator[Cluster]:
    """A Slurm cluster with this checkout's agent on its login nodes."""
    with Cluster(progress, HOSTS) as running:
        install_agent(running)
        yield running


def _older(release: str, progress: Callable[[str], None]) -> Iterator[Cluster]:
    with Cluster(progress, ("ctld", "c1", "c2", "login"), release=release) as running:
        install_agent(running)
        yield running


@pytest.fixture(scope="session")
def cluster_trixie(engine: None, progress: Callable[[str], None]) -> Iterator[Cluster]:
    """A cluster with Slurm 24.11, where there is no pyslurm."""
    yield from _older("trixie", progress)


@pytest.fixture(scope="session")
def cluster_bookworm(engine: None, progress: Callable[[str], None]) -> Iterator[Cluster]:
    """A cluster with Slurm 22.05, where there is no pyslurm."""
    yield from _older("bookworm", progress)


CLUSTERS = {"cluster", "cluster_trixie", "cluster_bookworm", "slurm_sites"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the cluster, and run it last, so that quick failures come first."""
    for item in items:
        if CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)
