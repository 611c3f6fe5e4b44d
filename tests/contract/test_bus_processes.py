"""A connection in forked and spawned children, in threads, and at the end of a process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from contract.bus_site import JOB, SITE, BusSite, bus_site
from slurmbus import connection
from slurmbus.connection import Connection


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("bus")) as site:
        yield site


def in_fork(site: BusSite, sender: multiprocessing.connection.Connection) -> None:
    """The client of the parent, its connection and what it follows are all used, or let go of, in the child."""
    try:
        thread = site.client.connection._background
        key = site.client.submit(JOB)
        sender.send((key, thread is None, threading.active_count()))
    except BaseException as error:
        sender.send(error)
        raise


def test_a_forked_child_gets_a_connection_of_its_own(site: BusSite) -> None:
    following = site.client.follow(site.client.submit(JOB))
    assert following.wait(0.05) is None
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=in_fork, args=(site, sender))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
            child.start()
        assert receiver.poll(30)
        key, was_unopened, threads = receiver.recv()
        child.join(30)
        assert child.exitcode == 0
        assert was_unopened
        assert threads == 2
        assert site.client.submit(JOB, key=key) == key
    following.close()
    assert isinstance(site.client.records(), list)  # the parent's still works


def test_a_fork_while_another_thread_holds_the_lock(site: BusSite) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with connection._all.lock:
            held.set()
            release.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:  # the child
        code = 1
        try:
            code = 0 if site.client.submit(JOB) else 1
        finally:
            os._exit(code)
    release.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_spawned_process_ends_cleanly_whatever_it_was_doing(site: BusSite) -> None:
    """Settings travel by pickle; at the end the thread is stopped without a word on stderr."""
    script = f"""
import pickle, sys
from slurmbus.client import SiteClient
from slurmbus import connection
from slurmbus.connection import Connection
settings = pickle.loads(sys.stdin.buffer.read())
client = SiteClient(Connection.get(settings), {SITE!r})
events = client.follow("01JD0000000000000000000000")
assert events.wait(0.05) is None
print(len(client.records()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", script],
        input=pickle.dumps(site.client.connection.settings),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip().isdigit()


def test_threads_share_one_connection(site: BusSite) -> None:
    settings = site.client.connection.settings
    keys: list[str] = []

    def submit() -> None:
        assert Connection.get(settings) is site.client.connection
        keys.append(site.client.submit(JOB))

    threads = [threading.Thread(target=submit) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 16


def test_its_own_thread_cannot_wait_for_itself(site: BusSite) -> None:
    async def wrong() -> None:
        site.client.connection.run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="await instead"):
        site.client.connection.run(wrong())


def test_a_timeout_cancels(site: BusSite) -> None:
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        site.client.connection.run(long(), timeout=0.01)
    assert cancelled.wait(10)


def test_a_closed_connection_is_opened_again(site: BusSite) -> None:
    site.client.connection.close()
    assert not site.client.connection.is_open
    assert isinstance(site.client.records(), list)
