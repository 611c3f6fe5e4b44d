"""The programs' own log as JSON lines."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from slurmbus_protocol import logs
from slurmbus_protocol.errors import InvalidSetting

PROGRAM = """
import asyncio, logging
from slurmbus_protocol import logs

log = logging.getLogger("a.logger")

async def job(key):
    logs.about(job=key, task=None, trace_id="f" * 32)
    await asyncio.to_thread(log.warning, "in a thread of %s", key)

async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(job("FIRST"))
        group.create_task(job("SECOND"))
    log.info("of another\\nline ü", extra={"job": "THIRD"})
    log.debug("not told")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")

logs.set_up(logs.JSON, logging.INFO, site="alice", agent="login-1")
asyncio.run(main())
"""


def test_each_line_is_one_object() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 4
    assert all((line["site"], line["agent"], line["logger"]) == ("alice", "login-1", "a.logger") for line in lines)
    assert all(datetime.fromisoformat(line["time"]).utcoffset() is not None for line in lines)
    told = sorted((line["message"], line["level"], line["job"], line.get("trace_id")) for line in lines[:3])
    assert told == [
        ("in a thread of FIRST", "warning", "FIRST", "f" * 32),
        ("in a thread of SECOND", "warning", "SECOND", "f" * 32),
        ("of another\nline ü", "info", "THIRD", None),
    ]
    assert "task" not in lines[0]
    assert "job" not in lines[3]
    assert lines[3]["exception"].endswith("ZeroDivisionError: division by zero")


def test_the_command_line_goes_over_the_environment_and_that_over_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    assert logs.chosen(None) == "text"
    assert logs.chosen(None, "json") == "json"
    monkeypatch.setenv(logs.VARIABLE, "text")
    assert logs.chosen(None, "json") == "text"
    assert logs.chosen("json", "text") == "json"
    monkeypatch.setenv(logs.VARIABLE, "xml")
    with pytest.raises(InvalidSetting, match="'xml' isn't known") as caught:
        logs.chosen(None)
    assert caught.value.hint == "use text or json"


def test_a_bus_that_runs_says_its_address_in_json(tmp_path: Path) -> None:
    async def first_line() -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import sys; from slurmbus.cli import main; sys.exit(main())"),
            *("bus", "run", "--log-format", "json"),
            env={"SLURMBUS_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        async with asyncio.timeout(60):
            line = await process.stderr.readline()
            process.terminate()
            await process.communicate()
        return line.decode()

    line = json.loads(asyncio.run(first_line()))
    assert line["message"].startswith("the bus of ")
    assert line["level"] == "info"
