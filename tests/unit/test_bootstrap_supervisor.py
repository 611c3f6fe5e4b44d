"""What keeps an agent running, where its way to the bus has a say in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.plan import Choice, supervisor_for_way
from slurmbus.bootstrap.session import Done, Remote
from slurmbus.bootstrap.supervising import SCRON_MINUTES, Scrontab
from slurmbus.errors import SiteUnfit

SCRONTAB = Choice("scrontab", "scrontab is enabled")
CRON = Choice("cron", "crontab is allowed")


@pytest.mark.parametrize(
    ("chosen", "way", "then"),
    [
        (CRON, "tunnel", "cron"),
        (CRON, "direct", "cron"),
        (SCRONTAB, "direct", "scrontab"),
        (SCRONTAB, "websocket", "scrontab"),
        (SCRONTAB, "tunnel", "detached"),
    ],
)
def test_a_job_of_scrontab_does_not_run_where_a_tunnel_ends(chosen: Choice, way: str, then: str) -> None:
    assert supervisor_for_way(chosen, way, "auto").what == then


@pytest.mark.parametrize(
    ("limit", "time"),
    [("1-00:00:00", 1440), ("00:30:00", 30), ("30-00:00:00", SCRON_MINUTES), ("UNLIMITED", SCRON_MINUTES)],
)
def test_a_job_of_scrontab_fits_into_its_partition(limit: str, time: int) -> None:
    class Slurm:
        """What `scontrol show partition` says there."""

        def run(self, _argv: Sequence[str], **_how: object) -> Done:
            shown = f"PartitionName=long MaxTime=UNLIMITED\nPartitionName=main Default=YES MaxTime={limit}\n"
            return Done(0, shown, "", late=False)

    entry = Scrontab(Layout("/home/alice", "leo"), "/home/alice/leo.toml", {}).entry(cast("Remote", Slurm()))
    assert f"#SCRON --time={time}\n" in entry


def test_scrontab_and_a_tunnel_cannot_both_be_had() -> None:
    with pytest.raises(SiteUnfit, match="the tunnel to the bus ends on the login node"):
        supervisor_for_way(SCRONTAB, "tunnel", "scrontab")
