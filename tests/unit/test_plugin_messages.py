"""Pipes messages: lines out of byte ranges cut anywhere, results of the last start only, nothing ends the step."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_slurmbus.messages import MAX_WARNINGS, Lines, RelayedMessageReader


class Inbox:
    """A reader in an open session whose handler is Dagster's own, over a context made by hand."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self.warnings: list[str] = []
        self.logged: list[tuple[int, str]] = []
        self.reader = RelayedMessageReader(self.warnings.append)
        handler = logging.Handler()
        handler.emit = self._emit  # type: ignore[method-assign]
        context.log.addHandler(handler)
        self.handler = dg.PipesMessageHandler(context, self.reader)
        self._session = self.handler.handle_messages()
        self._session.__enter__()

    def _emit(self, record: logging.LogRecord) -> None:
        self.logged.append((record.levelno, record.getMessage().removeprefix("system - ")))

    def feed(self, *messages: Any, start: int = 0) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.reader.feed(start, data + b"\n")

    @property
    def results(self) -> list[Any]:
        return list(self.handler.get_reported_results())


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with dg.build_op_context() as context:
        yield Inbox(context)


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"__dagster_pipes_version": "0.1", "method": method, "params": params}


def materialization(key: str, **metadata: Any) -> dict[str, Any]:
    values = {name: {"raw_value": value, "type": "__infer__"} for name, value in metadata.items()}
    return message("report_asset_materialization", asset_key=key, metadata=values, data_version=None)


# ------------------------------------------------------------------ lines


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 200)))
def test_lines_come_out_as_they_were_written(lines: list[bytes], cuts: list[int]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines) + b"rest"
    marks = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assembler = Lines()
    got = [line for a, b in itertools.pairwise(marks) for line in assembler.feed(data[a:b])]
    assert got == lines
    assert assembler.take_rest() == b"rest"
    assert assembler.take_rest() == b""


# ------------------------------------------------------------------ messages


def test_logs_pass_at_once_and_results_wait_for_the_end(inbox: Inbox) -> None:
    inbox.feed(
        message("opened", extras={}), message("log", message="hello", level="WARNING"), materialization("a", n=1)
    )
    assert (logging.WARNING, "hello") in inbox.logged
    assert inbox.results == []
    inbox.reader.finish(0)
    assert [result.asset_key for result in inbox.results] == [dg.AssetKey("a")]
    assert inbox.warnings == []


def test_results_of_a_superseded_start_do_not_count(inbox: Inbox) -> None:
    inbox.feed(message("opened", extras={}), materialization("a", n=1), start=0)
    inbox.reader.feed(0, b'{"half a mess')
    inbox.feed(message("opened", extras={}), materialization("a", n=2), message("closed"), start=1)
    inbox.reader.finish(1)
    assert [result.metadata["n"].value for result in inbox.results] == [2]
    assert inbox.warnings == ["[pipes] start 0 was superseded by start 1: its 1 results don't count."]


def test_a_last_start_that_said_nothing_has_no_results(inbox: Inbox) -> None:
    inbox.feed(message("opened", extras={}), materialization("a", n=1), message("closed"), start=0)
    inbox.reader.finish(1)
    assert inbox.results == []


def test_a_message_of_five_megabytes_in_small_chunks(inbox: Inbox) -> None:
    data = json.dumps(materialization("a", text="x" * 5_000_000)).encode() + b"\n"
    for at in range(0, len(data), 4096):
        inbox.reader.feed(0, data[at : at + 4096])
    inbox.reader.finish(0)
    assert len(inbox.results[0].metadata["text"].value) == 5_000_000


@pytest.mark.parametrize("level", ["NOTICE", "Level 15", "trace", 17, None])
def test_unknown_log_levels_become_info_with_their_name(inbox: Inbox, level: object) -> None:
    inbox.feed(message("log", message="hello", level=level))
    assert inbox.logged == [(logging.INFO, f"[{level}] hello")]
    assert inbox.warnings == []


def test_invalid_utf8_is_replaced_with_a_warning(inbox: Inbox) -> None:
    inbox.feed(
        b'{"__dagster_pipes_version": "0.1", "method": "log", "params": {"message": "caf\xe9", "level": "INFO"}}'
    )
    assert inbox.logged == [(logging.INFO, "caf\ufffd")]
    assert "isn't UTF-8" in inbox.warnings[0]


def test_utf8_cut_across_chunks_is_no_error(inbox: Inbox) -> None:
    data = json.dumps(message("log", message="café", level="INFO"), ensure_ascii=False).encode() + b"\n"
    for at in range(len(data)):
        inbox.reader.feed(0, data[at : at + 1])
    assert inbox.logged == [(logging.INFO, "café")]
    assert inbox.warnings == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "isn't JSON"),
        (b"[1, 2]", "is no Pipes message"),
        (b'{"a": 1}', "is no Pipes message"),
        (b'{"method": 1}', "is no Pipes message"),
        (json.dumps(message("dance")).encode(), "unknown method 'dance'"),
        (b'{"method": "log", "params": {"text": "x"}}', "was refused by Dagster"),
        (b'{"method": "log"}', "was refused by Dagster"),
        (b'{"method": "report_asset_check", "params": {"asset_key": 1}}', "was refused by Dagster"),
        (b'{"method": "closed", "params": {"exception": "boom"}}', "was refused by Dagster"),
        pytest.param(b"[" * 100_000, "isn't JSON", id="nested too deep"),
    ],
)
def test_a_bad_message_becomes_a_warning_and_the_next_one_counts(inbox: Inbox, line: bytes, words: str) -> None:
    inbox.feed(line, message("log", message="next", level="INFO"))
    inbox.reader.finish(0)
    assert words in inbox.warnings[0]
    assert len(inbox.warnings[0]) < 1000
    assert (logging.INFO, "next") in inbox.logged


def test_warnings_are_bounded(inbox: Inbox) -> None:
    inbox.feed(*[b"junk"] * (MAX_WARNINGS + 30))
    inbox.reader.finish(0)
    assert len(inbox.warnings) == MAX_WARNINGS + 1
    assert inbox.warnings[-1] == "[pipes] 30 more messages couldn't be used."


def test_a_message_that_was_cut_off_is_reported(inbox: Inbox) -> None:
    inbox.reader.feed(0, b'{"method": "lo')
    inbox.reader.finish(0)
    assert "isn't JSON" in inbox.warnings[0]


def test_a_last_message_without_its_line_end_counts(inbox: Inbox) -> None:
    inbox.reader.feed(0, json.dumps(materialization("a")).encode())
    inbox.reader.finish(0)
    assert len(inbox.results) == 1


def test_several_processes_may_close_one_after_the_other(inbox: Inbox) -> None:
    inbox.feed(
        message("opened", extras={}),
        message("closed"),
        message("opened", extras={}),
        message("log", message="second", level="INFO"),
        message("closed"),
    )
    inbox.reader.finish(0)
    assert inbox.handler.received_closed_message
    assert not any("after closed" in text for _, text in inbox.logged)


def test_the_payloads_exception_is_kept(inbox: Inbox) -> None:
    exception = {
        "message": "ValueError: no data\n",
        "stack": ['  File "x.py", line 3, in f\n'],
        "name": "ValueError",
        "cause": None,
        "context": None,
    }
    inbox.feed(message("opened", extras={}), message("closed", exception=exception))
    inbox.feed(message("opened", extras={}), message("closed"))
    inbox.reader.finish(0)
    assert inbox.reader.payload_exception == '  File "x.py", line 3, in f\nValueError: no data\n'


def test_custom_messages_are_results_too(inbox: Inbox) -> None:
    inbox.feed(message("report_custom_message", payload={"a": 1}), start=0)
    inbox.feed(message("report_custom_message", payload={"a": 2}), start=1)
    inbox.reader.finish(1)
    assert inbox.handler.get_custom_messages() == ({"a": 2},)
