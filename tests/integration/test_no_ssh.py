"""After the one login nothing speaks SSH, on neither side, while assets run."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
from pathlib import Path

import dagster as dg
import pytest

from contract.scripted_jobs import failure_of
from dagster_slurmbus import PipesSlurmClient
from integration.laptops import Laptop, ssh_processes
from integration.logins import Logins
from slurmbus_cluster import Cluster

ASSETS = 20

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


def make_asset(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"asset_{number}")
    def asset(context: dg.AssetExecutionContext, slurm: PipesSlurmClient) -> dg.MaterializeResult[None]:
        completed = slurm.run(context=context, command=["echo", str(number)])
        return completed.get_materialize_result()

    return asset


def test_twenty_assets_make_no_ssh_process_and_no_connection(
    laptop: Laptop, logins: Logins, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    calls.touch()
    spy = tmp_path / "bin" / "ssh"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" >>{calls}\nexec /usr/bin/ssh "$@"\n')
    spy.chmod(0o755)
    with laptop.up("bob", "login") as (site, _):
        monkeypatch.setenv("PATH", f"{spy.parent}:/usr/bin:/bin")
        monkeypatch.setenv("SLURMBUS_HOME", str(laptop.home.path))

        def seen() -> tuple[list[int], list[int], str, str]:
            """Look at both sides: processes, and what the login node's sshd wrote about connections."""
            daemons = cluster.exec("login", ["pgrep", "sshd"]).stdout.split()
            log = cluster.daemon("log", "sshd", host="login")
            return ssh_processes([str(logins.config)]), sorted(map(int, daemons)), log, calls.read_text()

        before = seen()
        result = dg.materialize(
            [make_asset(number) for number in range(ASSETS)],
            resources={"slurm": PipesSlurmClient(site=site)},
            raise_on_error=False,
        )
        assert result.success, failure_of(result)
        assert seen() == before
