"""The session with the helper: what is typed, what is fed, and finding the frames in what comes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.resources import files

import pytest

from slurmbus.bootstrap.frames import LONGEST_TYPED, SIGN, Scanner, program, request, starter

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
