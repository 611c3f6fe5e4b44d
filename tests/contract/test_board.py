"""The board over a real bus: what happens there is in the picture, and its subscribers are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from contract.bus_site import DEADLINE, SITE, bus_site
from slurmbus.board import Board
from slurmbus.home import Home
from slurmbus.local import LOCAL_SITE, ensure_local, stop_local
from slurmbus.owner import ServerOwner
from slurmbus.picture import AgentName, BusName, JobName, Name
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid


async def until(board: Board, condition: Callable[[], object]) -> set[Name]:
    """Wait for a condition by listening only, and give what the news named meanwhile."""
    told: set[Name] = set()
    async with asyncio.timeout(DEADLINE), board.subscribe() as news:
        while not condition():
            told.update(await news.changed())
    return told


def play(home: Home, story: Callable[[Board, ScriptedAgent], Awaitable[None]], site: str = SITE) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE), Board(home) as board, ScriptedAgent(home, site) as agent:
            await story(board, agent)

    asyncio.run(run())


def test_heartbeats_and_records_reach_the_picture(tmp_path: Path) -> None:
    async def story(board: Board, agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.record(key, JobState.PENDING)  # before and after the board has begun to read
        name = JobName(SITE, key, 0)
        await until(board, lambda: name in board.picture.jobs)
        await agent.heartbeat()
        told = await until(board, lambda: AgentName(SITE, "scripted") in board.picture.agents)
        assert AgentName(SITE, "scripted") in told
        await agent.record(key, JobState.RUNNING)
        await until(board, lambda: board.picture.jobs[name].state is JobState.RUNNING)
        assert board.picture.counts(SITE) == {"RUNNING": 1}
        bus = next(iter(board.picture.buses.values()))
        assert bus.reachable
        assert bus.round_trip is not None
        assert bus.sites == (SITE,)
        assert (await board.site(SITE).record(key)) == board.picture.jobs[name]

    with bus_site(tmp_path) as there:
        play(there.home, story)


def test_only_the_last_record_of_a_job_is_read_and_each_name_is_told_once(tmp_path: Path) -> None:
    async def story(board: Board, agent: ScriptedAgent) -> None:
        key = new_ulid()
        for state in (JobState.ACCEPTED, JobState.STAGING, JobState.SUBMITTING, JobState.PENDING):
            await agent.record(key, state)
        name = JobName(SITE, key, 0)
        async with board.subscribe() as slow:
            await until(board, lambda: name in board.picture.jobs)
            for state in (JobState.RUNNING, JobState.COMPLETED):
                await agent.record(key, state)
            await until(board, lambda: board.picture.jobs[name].state is JobState.COMPLETED)
            changed = await slow.changed()
            assert changed.count(name) == 1

    with bus_site(tmp_path) as there:
        play(there.home, story)


def test_a_bus_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    def reachable(board: Board) -> bool:
        return any(bus.reachable for bus in board.picture.buses.values())

    with bus_site(tmp_path) as there:

        async def story(board: Board, agent: ScriptedAgent) -> None:
            await until(board, lambda: reachable(board))
            there.owner.server.kill()
            told = await until(board, lambda: not reachable(board))
            assert any(isinstance(name, BusName) for name in told)
            assert next(iter(board.picture.buses.values())).problem
            await asyncio.to_thread(there.owner.server.restart)
            await until(board, lambda: reachable(board))
            key = new_ulid()
            await agent.record(key, JobState.RUNNING)
            await until(board, lambda: JobName(SITE, key, 0) in board.picture.jobs)

        play(there.home, story)


def test_sites_on_several_buses_and_one_that_is_added_later(tmp_path: Path) -> None:
    """The second home's server is a bus that the first home's profile names by its address."""
    other = Home(tmp_path / "other")
    other.add_site("lumi")
    with bus_site(tmp_path) as there, ServerOwner(other):

        async def story(board: Board, agent: ScriptedAgent) -> None:
            await agent.heartbeat()
            await until(board, lambda: AgentName(SITE, "scripted") in board.picture.agents)
            bus = {"credentials": other.credentials, "ca_file": other.tls.authority}
            there.home.add_site("lumi", (other.bus_url(),), **bus)
            async with ScriptedAgent(other, "lumi") as second:
                await second.heartbeat()
                await until(board, lambda: AgentName("lumi", "scripted") in board.picture.agents)
            assert board.picture.sites() == ["lumi", SITE]
            assert board.picture.bus_of("lumi") != board.picture.bus_of(SITE)
            there.home.remove_site("lumi")
            await until(board, lambda: board.picture.sites() == [SITE])

        play(there.home, story)


def test_a_board_of_a_home_without_sites_is_empty_and_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with Board(Home(tmp_path / "nobody")) as board:
            assert board.picture.sites() == []

    asyncio.run(story())


def test_the_local_helper_is_followed_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that has stopped because nobody used it is nothing to worry about."""
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path))
    home = Home(tmp_path)

    async def story() -> None:
        async with asyncio.timeout(DEADLINE), Board(home) as board:
            await asyncio.to_thread(ensure_local, home)
            await until(board, lambda: board.picture.leader_of(LOCAL_SITE) is not None)
            await asyncio.to_thread(stop_local, home)
            await until(board, lambda: board.picture.sites() == [])

    try:
        asyncio.run(story())
    finally:
        stop_local(home)


def test_an_error_of_whoever_uses_the_board_stays_what_it_is(tmp_path: Path) -> None:
    async def story() -> None:
        with bus_site(tmp_path) as there:
            async with Board(there.home):
                raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        asyncio.run(story())
