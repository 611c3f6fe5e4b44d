"""Two users' agents on the cluster's login node, and the bus on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.buses import running_home
from integration.laptops import Laptop
from integration.logins import Logins
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess

SITES = {"alice": "cluster-alice", "bob": "cluster-bob"}


@pytest.fixture(scope="session")
def home(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a running bus that the cluster's hosts reach, and one site a user."""
    with running_home(tmp_path_factory.mktemp("home"), cluster.gateway) as home:
        for site in SITES.values():
            home.add_site(site, scheduler="native", slurm_conf="/etc/slurm/slurm.conf")
        yield home


def _agent(cluster: Cluster, home: Home, user: str) -> Iterator[AgentProcess]:
    site = SITES[user]
    with AgentProcess(cluster, site, home.bundle_path(site), user=user) as agent:
        yield agent


@pytest.fixture(scope="session")
def alice_agent(cluster: Cluster, home: Home) -> Iterator[AgentProcess]:
    """Alice's agent."""
    yield from _agent(cluster, home, "alice")


@pytest.fixture(scope="session")
def bob_agent(cluster: Cluster, home: Home) -> Iterator[AgentProcess]:
    """Bob's agent."""
    yield from _agent(cluster, home, "bob")


def _client(home: Home, site: str) -> Iterator[SiteClient]:
    connection = Connection.get(ConnectionSettings.of_site(home, site))
    yield SiteClient(connection, site)
    connection.close()


@pytest.fixture(scope="session")
def alice(alice_agent: AgentProcess, home: Home) -> Iterator[SiteClient]:
    """A client of Alice's site, whose agent runs."""
    yield from _client(home, alice_agent.site)


@pytest.fixture(scope="session")
def bob(bob_agent: AgentProcess, home: Home) -> Iterator[SiteClient]:
    """A client of Bob's site, whose agent runs."""
    yield from _client(home, bob_agent.site)


@pytest.fixture(scope="session")
def logins(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Logins:
    """The ways to log in on the cluster's hosts."""
    return Logins(cluster, tmp_path_factory.mktemp("logins"))


@pytest.fixture(scope="session")
def make_laptop(logins: Logins, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Laptop]:
    """Makes machines from which sites are set up; what they bring along is got and kept once."""
    cache = tmp_path_factory.mktemp("cache")

    def make(name: str, **how: Any) -> Laptop:
        return Laptop(tmp_path_factory.mktemp(name), logins, cache, **how)

    return make


@pytest.fixture(scope="session")
def laptop(make_laptop: Callable[..., Laptop]) -> Iterator[Laptop]:
    """A machine that nobody reaches: agents come back to its bus through the connection of the login."""
    laptop = make_laptop("laptop")
    yield laptop
    laptop.close()


@pytest.fixture(autouse=True)
def _say_what_the_agent_said(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the end of the agents' logs under a failed test."""
    yield
    for name in ("alice_agent", "bob_agent"):
        if name in request.fixturenames:
            agent: AgentProcess = request.getfixturevalue(name)
            request.node.add_report_section("call", f"log of {name}", agent.log)


@pytest.fixture
def payloads() -> Path:
    """The folder of payload scripts."""
    return Path(__file__).parent / "payloads"
