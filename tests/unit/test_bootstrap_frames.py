"""The session with the helper: what is typed, what is fed, and finding the frames in what comes."""

from __future__ import annotations

import base64
import errno
import json
import shlex
import subprocess
import sys
import tarfile
from importlib.resources import files
from pathlib import Path

import pytest

from slurmbus.bootstrap.frames import LONGEST_TYPED, SIGN, Scanner, program, request, starter
from slurmbus.bootstrap.session import RemoteNoRoom, _error

NONCE = "0123456789abcdef"
MARK = f"{SIGN}{NONCE}".encode()


def test_frames_are_found_among_noise() -> None:
    scanner = Scanner(NONCE)
    assert scanner.feed(b'Welcome! {"a": 1}\n@@ not mine\nquota 93 %\xff') == []
    assert scanner.feed(MARK + b' {"ready": true}\n' + MARK[:5]) == ['{"ready": true}']
    assert scanner.feed(MARK[5:] + b" feed\r\n") == ["feed"]
    assert scanner.words.splitlines() == ['Welcome! {"a": 1}', "@@ not mine", "quota 93 %\ufffd"]


def test_a_frame_may_come_byte_by_byte() -> None:
    scanner = Scanner(NONCE)
    found = [frame for byte in MARK + b" feed\n" for frame in scanner.feed(bytes([byte]))]
    assert found == ["feed"]


def test_noise_is_bounded() -> None:
    scanner = Scanner(NONCE)
    for _ in range(100):
        scanner.feed(b"x" * 1000 + b"\n")
    assert len(scanner.noise) <= 4000


def test_what_is_typed_is_short_and_never_holds_the_mark() -> None:
    line = starter(NONCE, "/opt/python/bin/python3")
    assert MARK.decode() not in line
    assert len(line) < LONGEST_TYPED
    assert "\n" not in line


def test_what_is_typed_goes_through_every_login_shell() -> None:
    """Csh expands exclamation marks and fish backslashes even in single quotes."""
    inner = shlex.split(starter(NONCE))
    assert inner[:3] == ["exec", "/bin/sh", "-c"]
    assert not set("!\\'\n") & set(inner[3])


@pytest.mark.parametrize("before", ["", "echo noise; "])
def test_the_helper_answers(before: str) -> None:
    source = files("slurmbus.bootstrap.remote").joinpath("helper.py").read_text()
    with subprocess.Popen(
        ["/bin/sh", "-c", before + starter(NONCE, sys.executable)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        said, _ = process.communicate(program(source, NONCE) + request(1, "look", {"path": "/"}), timeout=60)
    frames = Scanner(NONCE).feed(said)
    assert frames[0] == "feed"
    assert '"ready": true' in frames[1]
    assert '"id": 1' in frames[2]
    assert '"kind": "folder"' in frames[2]


def helper(*requests: tuple[str, dict[str, object]]) -> list[dict[str, object]]:
    """Let a helper of its own do some things, one after the other, until its input ends; give its answers."""
    source = files("slurmbus.bootstrap.remote").joinpath("helper.py").read_text()
    lines = b"".join(request(number, op, arguments) for number, (op, arguments) in enumerate(requests, 1))
    with subprocess.Popen(
        ["/bin/sh", "-c", starter(NONCE, sys.executable)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        said, _ = process.communicate(program(source, NONCE) + lines, timeout=60)
    return [json.loads(frame) for frame in Scanner(NONCE).feed(said) if '"id"' in frame]


def test_what_isnt_finished_is_gone_when_the_session_ends(tmp_path: Path) -> None:
    begun, whole = tmp_path / "versions" / "begun", tmp_path / "versions" / "whole"
    data = base64.b64encode(b"x").decode()
    helper(
        ("folder", {"path": str(begun), "new": True}),
        ("append", {"path": str(begun / "file"), "data": data, "offset": 0}),
        ("folder", {"path": str(whole), "new": True}),
        ("write", {"path": str(whole / "file"), "data": data}),
        ("keep", {"path": str(whole)}),
    )
    assert not begun.exists()
    assert (whole / "file").read_bytes() == b"x"
    assert (whole / "file").stat().st_mode & 0o777 == 0o600


def test_a_program_ends_with_the_session(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path / 'pid'}; exec sleep 600"
    (answer,) = helper(("run", {"argv": ["/bin/sh", "-c", script], "timeout": 1.0}))
    assert answer["result"] == {"code": -9, "out": "", "err": "", "late": True}
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_mistakes_are_answers(tmp_path: Path) -> None:
    missing, unknown = helper(("digest", {"path": str(tmp_path)}), ("nope", {}))
    assert (missing["errno"], missing["path"]) == (errno.EISDIR, str(tmp_path))
    assert "KeyError" in str(unknown["error"])


@pytest.mark.parametrize("name", ["../out", "/tmp/slurmbus-out"])
def test_an_archive_stays_where_it_is_put(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    target = tmp_path / "in" / "here"
    target.mkdir(parents=True)
    (answer,) = helper(("untar", {"path": str(tmp_path / "a.tar"), "target": str(target)}))
    assert "leads out" in str(answer["error"])
    assert not list(target.iterdir())


def test_a_full_file_system_is_named() -> None:
    error = _error("room", {"errno": errno.EDQUOT, "path": "/home/alice/x", "error": "Disk quota exceeded"})
    assert isinstance(error, RemoteNoRoom)
    assert "/home/alice/x: the file system has no room left in your quota" in error.message
