"""A stream's offsets, whatever the agent answers."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurmbus_agent.runner import streams
from slurmbus_agent.runner.protocol import MAX_DATA
from slurmbus_agent.runner.streams import Stream


def armed(_path: str) -> bool:
    return True


class Made:
    """A stream and its file."""

    def __init__(self, folder: Path, name: str = "stdout") -> None:
        self.path = folder / name
        self.writer = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.stream = Stream(name, str(self.path), self.writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.writer)
        os.close(self.stream._reader)


def test_a_window_bounds_what_is_under_way(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        os.write(made.writer, bytes(10 * MAX_DATA))
        sent = []
        while (found := made.stream.next_chunk(0.0, armed)) is not None:
            sent.append(found)
        assert sum(len(data) for _, data in sent) <= streams.WINDOW_BYTES
        assert made.stream.due() == float("inf")
        made.stream.acknowledge(MAX_DATA, MAX_DATA, 0)
        assert made.stream.due() == 0.0


def test_many_small_chunks_wait_and_grow(tmp_path: Path) -> None:
    with Made(tmp_path, "messages") as made:
        for _ in range(50):
            os.write(made.writer, b"x")
            made.stream.idle = False
            made.stream.next_chunk(0.0, armed)
        assert len(made.stream._under_way) == streams.WINDOW_CHUNKS
        made.stream.acknowledge(1, 1, 0)
        rest = b"x" * (50 - streams.WINDOW_CHUNKS)
        assert made.stream.next_chunk(0.0, armed) == (streams.WINDOW_CHUNKS, rest)


@pytest.mark.parametrize(("name", "rests"), [("stdout", True), ("stderr", True), ("messages", False)])
def test_logs_rest_and_messages_dont(tmp_path: Path, name: str, rests: bool) -> None:
    with Made(tmp_path, name) as made:
        stream = made.stream
        os.write(made.writer, b"a")
        assert stream.next_chunk(10.0, armed) == (0, b"a")
        assert stream.due() == (10.0 + streams.REST if rests else 0.0)
        os.write(made.writer, b"b")
        assert stream.next_chunk(10.05, armed) == (None if rests else (1, b"b"))
        stream.finish()
        assert stream.next_chunk(10.06, armed) == ((1, b"b") if rests else None)


def test_without_inotify_files_are_looked_at_every_now_and_then(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        assert made.stream.next_chunk(10.0, lambda _: False) is None
        assert made.stream.due() == 10.0 + streams.POLL


def test_a_shrunken_file_is_no_error(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        os.write(made.writer, b"0123456789")
        assert made.stream.next_chunk(0.0, armed) == (0, b"0123456789")
        made.stream.acknowledge(10, 10, 0)
        os.truncate(made.path, 1)
        assert made.stream.size() == 10
        assert made.stream.done()
        assert made.stream.next_chunk(1.0, armed) is None


def test_what_another_node_wrote_is_read_by_a_fresh_open(tmp_path: Path) -> None:
    with Made(tmp_path, "messages") as made:
        assert made.stream.next_chunk(0.0, armed) is None
        before = os.fstat(made.stream._reader).st_ino
        (tmp_path / "new").write_bytes(b"from elsewhere")
        (tmp_path / "new").rename(made.path)
        made.stream.reopen()
        assert os.fstat(made.stream._reader).st_ino != before
        made.stream.look_anyway()
        assert made.stream.next_chunk(0.0, armed) == (0, b"from elsewhere")


def test_beyond_its_limit_only_the_newest_lines_are_sent_every_now_and_then(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        stream = made.stream
        stream.resume(0)
        stream.sample_beyond(10, 8, 2.0)
        os.write(made.writer, b"first 10 bytes\n")
        assert stream.next_chunk(10.0, armed) == (0, b"first 10 b")
        assert stream.next_chunk(10.2, armed) is None, "the first bytes aren't acknowledged yet"
        stream.acknowledge(10, 10, 0)
        assert stream.next_chunk(10.3, armed) == (10, b"ytes\n")
        stream.acknowledge(15, 15, 0)
        os.write(made.writer, b"much more than is shown\nxyz\nunf")
        assert stream.due() == 12.3
        assert stream.next_chunk(12.2, armed) is None
        assert stream.next_chunk(12.3, armed) == (39, b"xyz\n")
        stream.acknowledge(43, 43, 0)
        stream.look_anyway()
        assert stream.next_chunk(14.3, armed) is None, "only half a line is new"
        assert stream.due() == float("inf")
        os.write(made.writer, b"inished\n")
        stream.idle = False
        assert stream.due() == 16.3
        assert stream.next_chunk(16.3, armed) == (46, b"inished\n"), "no whole line is among the last 8 bytes"
        assert not stream.done()
        stream.acknowledge(54, 54, 0)
        assert stream.done()
        os.write(made.writer, b"the end")
        assert not stream.done()
        stream.finish()
        assert stream.next_chunk(20.0, armed) is None, "the agent reads the end from the spool"
        assert (stream.done(), stream.size()) == (True, 61)


def test_a_stream_is_sent_in_full_again_when_the_bus_has_lost_it(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        stream = made.stream
        stream.resume(30)
        stream.sample_beyond(10, 8, 2.0)
        os.write(made.writer, b"0123456789" * 4 + b"\n")
        assert stream.next_chunk(0.0, armed) == (33, b"3456789\n")
        stream.acknowledge(41, 0, 1)
        assert stream.next_chunk(2.0, armed) == (0, b"0123456789")
        stream.finish()
        assert not stream.done()
        stream.acknowledge(10, 10, 1)
        assert stream.done()


def test_an_agent_that_names_no_limit_gets_everything(tmp_path: Path) -> None:
    with Made(tmp_path) as made:
        stream = made.stream
        stream.resume(0)
        stream.sample_beyond(2, 8, 2.0)
        os.write(made.writer, b"0123456789")
        assert stream.next_chunk(0.0, armed) == (0, b"01")
        stream.resume(2)
        assert stream.next_chunk(0.2, armed) == (2, b"23456789")


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(min_size=1, max_size=4000),
    piece=st.integers(1, 700),
    wishes=st.lists(st.integers(0, 5000), max_size=6),
    cuts=st.sets(st.integers(0, 40), max_size=6),
)
def test_every_byte_arrives_whatever_is_wished_for(
    content: bytes, piece: int, wishes: list[int], cuts: set[int]
) -> None:
    """The agent may ask for any other bytes at any time, and connections may break; the rules are the protocol's."""
    wanted = list(wishes)
    have = bytearray()
    wire: deque[tuple[int, int, bytes]] = deque()
    number = 0
    old_max, streams.MAX_DATA = streams.MAX_DATA, piece
    old_window, streams.WINDOW_BYTES = streams.WINDOW_BYTES, 3 * piece
    try:
        with TemporaryDirectory() as folder, Made(Path(folder), "messages") as made:
            stream = made.stream
            os.write(made.writer, content)
            stream.finish()
            for step in range(10_000):
                if stream.done() and have == content and not wire:
                    break
                if step in cuts:
                    wire.clear()
                    number = 0
                    stream.resume(len(have))
                found = stream.next_chunk(float(step), armed)
                if found is not None:
                    wire.append((stream.round, *found))
                elif wire:
                    chunk_round, offset, data = wire.popleft()
                    if chunk_round != number:
                        continue
                    end = offset + len(data)
                    if offset <= len(have):
                        have += data[len(have) - offset :]
                    following = len(have)
                    if wanted and end != len(content):
                        following = min(wanted.pop(), len(have))  # an agent that lost something
                    if following != end:
                        number += 1
                    stream.acknowledge(end, following, number)
            assert bytes(have) == content
            assert stream.done()
    finally:
        streams.MAX_DATA, streams.WINDOW_BYTES = old_max, old_window
