"""What keeps an agent running, where its way to the bus has a say in it."""

from __future__ import annotations

import pytest

from slurmbus.bootstrap.plan import Choice, supervisor_for_way
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


def test_scrontab_and_a_tunnel_cannot_both_be_had() -> None:
    with pytest.raises(SiteUnfit, match="the tunnel to the bus ends on the login node"):
        supervisor_for_way(SCRONTAB, "tunnel", "scrontab")
