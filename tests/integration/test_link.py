"""The link of a job on the real cluster, seen from another host."""

from __future__ import annotations

import time
from collections.abc import Callable

from integration.jobs import follow, spec
from slurmbus.client import SiteClient
from slurmbus.events import StateChanged
from slurmbus_cluster import Cluster
from slurmbus_protocol.states import JobState

LOOK = """
import hashlib, json, socket, ssl, sys
address = json.loads(sys.stdin.read())
def connect():
    return socket.create_connection((address["hosts"][0], address["port"]), 10)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(connect()) as link:
    print(link.version(), hashlib.sha256(link.getpeercert(True)).hexdigest() == address["fingerprint"])
with connect() as plain:
    plain.sendall(b'\\0\\0\\0\\x14{"type":"hello"}    \\n')
    try:
        print(b"challenge" in plain.recv(1000))
    except ConnectionResetError:  # words of ours were still unread
        print(False)
"""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def test_a_jobs_link_is_encrypted(alice: SiteClient, cluster: Cluster) -> None:
    key = alice.submit(spec("sleep", "300"))
    with alice.follow(key) as events:
        next(event for event in events if isinstance(event, StateChanged) and event.record.state is JobState.RUNNING)
    file = f"/home/alice/.slurmbus/{alice.site}/link"
    assert cluster.exec("login", ["stat", "-c", "%a", file]).stdout.strip() == "600"
    address = cluster.exec("login", ["cat", file]).stdout
    looked = cluster.exec("c2", ["python3", "-c", LOOK], user="bob", stdin=address).stdout.split()
    assert looked == ["TLSv1.3", "True", "False"]
    wait_until(lambda: alice.heartbeats()[0].heartbeat.vitals.link_connections, "the job's link in a heartbeat")
    alice.cancel(key)
    assert follow(alice, key).record.state is JobState.CANCELLED
