"""What is changed on a person's machine is brought by the next `slurmbus up`; what is set at the site stays there."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator

import pytest

from integration.jobs import follow, spec, wait_until_it_runs
from integration.laptops import Laptop, processes
from integration.logins import Logins
from slurmbus_cluster import Cluster
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState

CONFIG = "/home/alice/.config/slurmbus"
NOBODY = "nothing had to be changed, and nobody had to log in"


@pytest.fixture(scope="module")
def open_laptop(make_laptop: Callable[..., Laptop], cluster: Cluster) -> Iterator[Laptop]:
    """A machine whose bus the cluster's hosts reach, so that every login is a new one."""
    laptop = make_laptop("again", listen=cluster.gateway)
    yield laptop
    laptop.close()


def test_settings_keys_and_revocations_are_brought_under_running_jobs(
    open_laptop: Laptop, logins: Logins, cluster: Cluster
) -> None:
    laptop, spool = open_laptop, "/home/alice/.slurmbus/another"
    # A spool of its own: a new bus gets the records of all jobs in a spool, also of those that other tests left.
    first = ("--spool", "/home/alice/.slurmbus/first")
    with (
        laptop.up("alice", "login", "--supervisor", "detached", "--scheduler", "local", "--no-trial", *first) as (
            site,
            _,
        ),
        laptop.client(site) as client,
    ):

        def up(*more: str) -> str:
            """Run it, and see that it logs in; give what it said."""
            before = logins.accepted("login", "alice")
            said = laptop.slurmbus("up", site, "--no-trial", *more).err
            assert logins.accepted("login", "alice") == before + 1, said
            assert len(processes(cluster, "login", "alice", "slurmbus_agent run")) == 1
            return said

        def read(name: str) -> dict[str, object]:
            return tomllib.loads(cluster.exec("login", ["cat", f"{CONFIG}/{site}.{name}"], user="alice").stdout)

        # Another scheduler and another spool, once no job needs the old ones. What was edited by hand survives.
        edit = f"printf '[retention]\\nsucceeded_days = 3\\n' >> {CONFIG}/{site}.toml"
        cluster.exec("login", ["sh", "-c", edit], user="alice")
        waits = spec("sh", "-c", "echo before; until [ -e ~/go ]; do sleep 0.1; done; echo after")
        key = client.submit(waits)
        wait_until_it_runs(client, key)
        refused = laptop.slurmbus("up", site, "--scheduler", "commands", "--spool", spool, ok=False)
        assert refused.code == 4
        assert f"1 unfinished jobs lie in the spool {first[1]}" in refused.err, refused.err
        cluster.exec("login", ["touch", "/home/alice/go"], user="alice")
        assert follow(client, key).stdout == "before\nafter\n"
        cluster.exec("login", ["rm", "/home/alice/go"], user="alice")
        assert f"what was set by hand went to {CONFIG}/{site}.settings.toml" in up()
        assert read("settings.toml") == {"retention": {"succeeded_days": 3}}
        assert "retention" not in read("toml")
        assert laptop.run_job(site, "hostname").out.strip() in {"c1", "c2"}

        key = client.submit(waits)
        job = wait_until_it_runs(client, key)
        assert job.spool is not None
        assert job.spool.startswith(spool)

        # The agent's own key. The bus forgets the old one at once.
        laptop.slurmbus("keys", "rotate-agent", site)
        assert "has taken over" in up()
        laptop.slurmbus("keys", "rotate-agent", site, "--finish")
        assert laptop.run_job(site, "hostname").out.strip() in {"c1", "c2"}

        # Keys that sign requests.
        stranger = Signer.generate().public
        laptop.slurmbus("keys", "trust", "--site", site, "--login", "--name", "bob", stranger)
        up()
        assert "bob" in laptop.slurmbus("keys", "list", "--site", site).out
        laptop.slurmbus("keys", "revoke", "--site", site, "--login", stranger)
        laptop.slurmbus("keys", "rotate", "--site", site, "--login")
        up()
        listed = laptop.slurmbus("keys", "list", "--site", site).out
        assert any(stranger[:12] in line and "revoked" in line for line in listed.splitlines()), listed
        assert laptop.run_job(site, "id", "-un").out == "alice\n"
        assert NOBODY in laptop.slurmbus("up", site).err

        assert read("settings.toml") == {"retention": {"succeeded_days": 3}}
        cluster.exec("login", ["touch", "/home/alice/go"], user="alice")
        story = follow(client, key)
        assert (story.record.state, story.stdout) == (JobState.COMPLETED, "before\nafter\n")
        assert story.record.job_id == job.job_id
    cluster.exec("login", ["rm", "-r", "/home/alice/go", spool, f"{CONFIG}/{site}.settings.toml"], user="alice")
