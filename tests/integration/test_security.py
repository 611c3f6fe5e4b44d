"""On a real cluster: secrets and Slurm, another local user, and the centre's own files."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from integration.conftest import SITES
from integration.jobs import follow, run, spec
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import JobOptions, Record
from slurmbus_protocol.states import JobState

SPOOL = f"/home/alice/.slurmbus/{SITES['alice']}"
SHORT = JobOptions(time_limit_minutes=1)


def wait_for(client: SiteClient, key: str, condition: Callable[[Record], bool], seconds: float = 120.0) -> Record:
    deadline = time.monotonic() + seconds
    while (record := client.record(key)) is None or not condition(record):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s; the record is {record}"
        time.sleep(0.1)
    return record


def holders(cluster: Cluster, host: str, value: str, *folders: str) -> str:
    """Give the files of a host that hold a value."""
    found = cluster.exec(host, ["grep", "-rlaF", "--", value, *folders], check=False)
    return found.stdout.strip()


def test_a_secret_reaches_every_start_and_stays_out_of_slurm(alice: SiteClient, cluster: Cluster, home: Home) -> None:
    """Requeued once; searched in Slurm's state, what it shows, the spool, the agent's host and the bus's store."""
    value = f"s3cret-{secrets.token_hex(16)}"
    go = f"/home/alice/go-{secrets.token_hex(4)}"
    script = f'echo "start $SLURMBUS_START: ${{#TOKEN}}"; while ! test -e {go}; do sleep 0.2; done'
    job = spec("bash", "-c", script, options=JobOptions(requeue=True))
    key = alice.submit(job, secret_env={"TOKEN": value})
    try:
        first = wait_for(alice, key, lambda record: record.state is JobState.RUNNING and bool(record.starts))
        cluster.exec("login", ["scontrol", "requeue", str(first.job_id)], user="alice")
        record = wait_for(alice, key, lambda record: len(record.starts) == 2 and record.state is JobState.RUNNING, 240)
        emptied = f"for _ in $(seq 600); do grep -q 'start 1' {SPOOL}/jobs/{key}.0/1.stdout && exit 0; sleep 0.1; done"
        cluster.exec("login", ["bash", "-c", emptied], user="alice")
        assert cluster.exec("login", ["wc", "-c", f"{SPOOL}/jobs/{key}.0/1.secrets"], user="alice").stdout.startswith(
            "0"
        )
        for command in (["scontrol", "-d", "show", "job", str(record.job_id)], ["ps", "-eww", "-o", "args"]):
            assert value not in cluster.exec("login", command).stdout
        script_of = cluster.exec("login", ["scontrol", "write", "batch_script", str(record.job_id), "-"]).stdout
        assert "slurmbus" in script_of
        assert value not in script_of
        assert holders(cluster, "login", value, SPOOL, "/home/alice/.config", "/tmp") == ""
        for host in ("ctld", "c1", "c2"):
            assert holders(cluster, host, value, "/var/lib/slurm", "/var/log", "/tmp") == ""
        assert [path for path in home.path.rglob("*") if path.is_file() and value.encode() in path.read_bytes()] == []
    finally:
        cluster.exec("login", ["touch", go], user="alice")
    assert wait_for(alice, key, lambda record: record.state.is_final).state is JobState.COMPLETED
    cluster.exec("login", ["rm", go], user="alice")
    assert f"start 1: {len(value)}" in cluster.exec("login", ["cat", f"{SPOOL}/jobs/{key}.0/1.stdout"]).stdout


STRANGER_AT_THE_LINK = """
import json, socket, ssl, sys
link = json.loads(sys.argv[1])
anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
peer = anyone.wrap_socket(socket.create_connection((link["hosts"][0], link["port"]), 10))
hello = {"type": "hello", "key": sys.argv[2], "task": 0, "start": 0, "job_id": int(sys.argv[3]), "node": "c1"}
hello |= {"nonce": "0" * 32, "claimed_at": 0.0}
for header in (hello, {"type": "proof", "proof": "0" * 64}, {"type": "ended", "exit_code": 0}):
    line = json.dumps(header).encode() + b"\\n"
    peer.sendall(len(line).to_bytes(4, "big") + line)
peer.settimeout(60)
heard = b""
try:
    while piece := peer.recv(65536):
        heard += piece
except (ConnectionError, ssl.SSLError):
    pass
print(len(heard), b"challenge" in heard, b"welcome" in heard)
"""
"""Speaks the link's TLS and names a real job, without its secret; waits until it is thrown out."""

STRANGER_AT_THE_BUS = """
import socket, ssl, sys
plain = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
greeting = plain.recv(65536)
assert b"tls_required" in greeting, greeting
anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
bus = anyone.wrap_socket(plain)
bus.sendall(b'CONNECT {"verbose":false}\\r\\nSUB slurmbus.> 1\\r\\nPING\\r\\n')
bus.settimeout(60)
heard = b""
try:
    while piece := bus.recv(65536):
        heard += piece
except (ConnectionError, ssl.SSLError):
    pass
print(heard.decode(errors="replace"))
"""
"""Speaks the bus's TLS without a key; waits until it is thrown out."""


def test_another_user_gets_at_no_file_port_or_socket(
    alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster, home: Home
) -> None:
    """Bob on Alice's login node: her spool, her configuration, the link's port, the bus's port, her process.

    Her home is open to all, as it is at many sites: what keeps him out are our own modes.
    """
    config = f"/home/alice/.config/slurmbus/{SITES['alice']}.toml"
    key = alice.submit(spec("sleep", "300"))
    running = wait_for(alice, key, lambda record: record.state is JobState.RUNNING)
    before = cluster.exec("login", ["stat", "-c", "%a", "/home/alice"]).stdout.strip()
    cluster.exec("login", ["chmod", "755", "/home/alice"])
    try:
        assert cluster.exec("login", ["ls", "/home/alice"], user="bob").exit_code == 0
        for path in (SPOOL, f"{SPOOL}/link", f"{SPOOL}/audit.log", f"{SPOOL}/jobs/{key}.0/plan.json", config):
            assert cluster.exec("login", ["test", "-e", path], user="alice").exit_code == 0
            assert "ermission denied" in cluster.exec("login", ["cat", path], user="bob", check=False).stderr
            write = ["bash", "-c", f"echo >> {path}"]
            assert cluster.exec("login", write, user="bob", check=False).exit_code != 0
        # What Slurm, Python and payloads make lies in folders that nobody else may enter.
        loose = ["!", "-type", "l", "-perm", "/077", "-not", "-path", "*/work/*", "-not", "-name", "batch.out"]
        assert cluster.exec("login", ["find", f"{SPOOL}/jobs/{key}.0", *loose], user="alice").stdout == ""
        assert cluster.exec("login", ["find", SPOOL, "-maxdepth", "1", *loose], user="alice").stdout == ""
        pids = cluster.exec("login", ["pgrep", "-u", "alice", "-f", "slurmbus"]).stdout.split()
        for pid in pids:
            assert cluster.exec("login", ["cat", f"/proc/{pid}/environ"], user="bob", check=False).exit_code != 0
        sockets = cluster.exec("login", ["ss", "-Hlnxtp", "state", "listening"]).stdout
        assert "slurmbus" not in " ".join(line for line in sockets.splitlines() if line.startswith("u_str"))
        link = cluster.exec("login", ["cat", f"{SPOOL}/link"], user="alice").stdout
        stranger = ["python3", "-c", STRANGER_AT_THE_LINK, link, key, str(running.job_id)]
        heard = cluster.exec("login", stranger, user="bob").stdout.split()
        assert heard[1:] == ["True", "False"]  # a challenge, which only the job's secret answers, and no more
        assert int(heard[0]) <= 512
        address = home.bus_address()
        assert address is not None
        said = cluster.exec(
            "login", ["python3", "-c", STRANGER_AT_THE_BUS, address.host, str(address.port)], user="bob"
        ).stdout
        assert "Authorization Violation" in said
        assert "MSG" not in said
        assert "PONG" not in said
    finally:
        cluster.exec("login", ["chmod", before, "/home/alice"])
        alice.cancel(key)
        follow(alice, key)


@contextmanager
def of_the_centre(cluster: Cluster, name: str, text: str) -> Iterator[None]:
    """Put a file of root's into /etc/slurmbus on the login node."""
    cluster.exec("login", ["mkdir", "-p", "-m", "755", "/etc/slurmbus"])
    cluster.exec("login", ["tee", f"/etc/slurmbus/{name}"], stdin=text)
    try:
        yield
    finally:
        cluster.exec("login", ["rm", "-f", f"/etc/slurmbus/{name}"])


def test_the_centre_s_policy_stands_above_the_user_s(alice: SiteClient, cluster: Cluster) -> None:
    """Root's policy counts without a restart; it shortens what a login gives, and nobody else can write it."""
    with of_the_centre(cluster, "policy.toml", "max_time_minutes = 1\nauthority_days = 0.5\n"):
        refused = run_until(alice, lambda record: record.error_code == "policy")
        assert "/etc/slurmbus/policy.toml" in (refused.reason or "")
        assert run(alice, "true", options=SHORT).record.state is JobState.COMPLETED
        write = ["bash", "-c", "echo > /etc/slurmbus/policy.toml"]
        assert cluster.exec("login", write, user="alice", check=False).exit_code != 0
        cluster.exec("login", ["chmod", "666", "/etc/slurmbus/policy.toml"])
        broken = run_until(alice, lambda record: record.state is JobState.REJECTED, options=SHORT)
        assert "written by others" in (broken.reason or "")
    run_until(alice, lambda record: record.state is JobState.COMPLETED)


def run_until(client: SiteClient, condition: Callable[[Record], bool], **options: JobOptions) -> Record:
    """Run jobs until one comes out as it should: files of the agent are looked at once in a second."""
    deadline = time.monotonic() + 60
    while not condition(record := run(client, "true", **options).record):
        assert time.monotonic() < deadline, f"waited 60 s; the last job was {record.state}: {record.reason}"
    return record
