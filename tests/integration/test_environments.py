"""Environments on a real cluster: packages with compiled parts on both nodes, and two login nodes that install one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.jobs import follow, run, spec
from integration.test_outages import until
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.environments import PixiPack, Requirements, Shipper
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.states import JobState

WHERE = """
import socket, sys
import msgspec, numpy, msgspec._core
print(socket.gethostname(), sys.prefix, msgspec._core.__file__, numpy.linalg.det(numpy.eye(3)), flush=True)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))


def test_packages_are_chosen_for_the_site_and_used_on_both_nodes(
    alice: SiteClient, cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("msgspec==0.22.0\nnumpy>=2.3\ntomli; python_version < '3.12'\n")
    shipper = Shipper(alice)
    python = shipper.target().python()
    ref, pack = shipper.wire(Requirements(str(path)))
    assert pack is not None
    assert b"tomli" not in pack.manifest  # this machine's Python may need it, the site's doesn't
    shipper.upload(pack)
    both = JobOptions(nodes=2, ntasks=2)
    story = run(alice, "srun", "python3", "-c", WHERE, environment=ref, options=both)
    assert story.record.state is JobState.COMPLETED, (story.record, story.stderr)
    lines = [line.split() for line in story.stdout.splitlines()]
    assert {line[0] for line in lines} == {"c1", "c2"}
    (prefix,) = {line[1] for line in lines}
    assert prefix.startswith("/home/alice/.slurmbus/")
    abi = "cp" + "".join(python.version.split(".")[:2])
    assert all(line[2].startswith(prefix) and abi[2:] in line[2] and line[3] == "1.0" for line in lines)
    assert "environment" in story.record.timings
    again = run(alice, "python3", "-c", WHERE, environment=ref)
    assert again.record.state is JobState.COMPLETED
    assert "environment" not in again.record.timings
    status = cluster.exec("login", ["stat", "-c", "%A", f"{prefix}/bin"], user="alice").stdout.strip()
    assert status == "dr-xr-xr-x"


@pytest.fixture
def second_site(cluster: Cluster, home: Home, alice: SiteClient) -> Iterator[SiteClient]:
    """Another site of Alice's, whose agent runs on the other login node and installs into the first one's folder."""
    name = "cluster-alice-2"
    home.add_site(name, scheduler="native", slurm_conf="/etc/slurm/slurm.conf")
    bundle = home.bundle_path(name)
    bundle.write_text(bundle.read_text() + f'\n[environments]\nfolder = "~/.slurmbus/{alice.site}/environments"\n')
    connection = Connection.get(ConnectionSettings.of_site(home, name))
    client = SiteClient(connection, name)
    with AgentProcess(cluster, name, bundle, host="login2") as agent:
        until(lambda: any(one.heartbeat.leader for one in client.heartbeats()), 60, f"its agent: {agent.log}")
        yield client
    connection.close()
    home.remove_site(name)


def test_two_login_nodes_that_install_the_same_at_once_do_it_once(
    alice: SiteClient, second_site: SiteClient, cluster: Cluster, tmp_path: Path
) -> None:
    folder = f"/home/alice/slow-{time.time_ns()}"
    cluster.exec("login", ["mkdir", folder], user="alice")
    script = tmp_path / "slow.sh"
    script.write_text(
        f"#!/bin/sh\nuname -n >> {folder}/runs\n"
        f"for _ in $(seq 1200); do test -e {folder}/release && break; sleep 0.05; done\n"
        "mkdir -p $2/env/bin $2/env/conda-meta; cp /bin/uname $2/env/bin/tool\n"
    )
    sites = (alice, second_site)
    keys = []
    for site in sites:
        ref, pack = Shipper(site).wire(PixiPack(str(script)))
        assert pack is not None
        Shipper(site).upload(pack)
        keys.append(site.submit(spec("tool", "-n", environment=ref)))

    def reasons() -> list[str]:
        records = [site.record(key) for site, key in zip(sites, keys, strict=True)]
        return [str(record.reason) if record else "" for record in records]

    until(
        lambda: any("waiting for the agent on login" in reason for reason in reasons()), 60, "one waits for the other"
    )
    cluster.exec("login", ["touch", f"{folder}/release"], user="alice")
    for site, key in zip(sites, keys, strict=True):
        story = follow(site, key)
        assert story.record.state is JobState.COMPLETED, story.record
        assert story.stdout.strip() in {"c1", "c2"}
    assert len(cluster.exec("login", ["cat", f"{folder}/runs"], user="alice").stdout.split()) == 1
