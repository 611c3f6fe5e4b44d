"""The cluster's logins are what they are said to be: the tests of `slurmbus up` stand on them."""

from __future__ import annotations

import socket

import pytest

from integration.logins import Logins
from integration.terminal import Terminal

WHO = ("id", "-un")


def test_keys(logins: Logins) -> None:
    assert logins.run("alice", "login", *WHO).stdout == "alice\n"


def test_passwords_and_codes_typed_by_a_person(logins: Logins) -> None:
    with Terminal(logins.command("carol", "login", *WHO)) as terminal:
        terminal.answer("carol@.*password: ", "carol-pass")
        assert (terminal.end(), terminal.expect("carol\n")) == (0, "carol\n")
    with Terminal(logins.command("dave", "login", *WHO)) as terminal:
        terminal.answer("Password: ", "dave-pass")
        terminal.answer("One-time password .*: ", logins.next_code())
        assert (terminal.end(), terminal.expect("dave\n")) == (0, "dave\n")


def test_passwords_and_codes_from_a_program(logins: Logins) -> None:
    assert logins.run("carol", "login", *WHO, env=logins.askpass("carol-pass")).stdout == "carol\n"
    assert logins.run("carol", "login", *WHO, env=logins.askpass("wrong")).returncode == 255
    code = logins.next_code()
    assert logins.run("dave", "login", *WHO, env=logins.askpass("dave-pass", [code])).stdout == "dave\n"
    again = logins.run("dave", "login", *WHO, env=logins.askpass("dave-pass", [code]))
    assert (again.returncode, again.stdout) == (255, "")


@pytest.mark.parametrize("jumps", [("jump",), ("jump", "jump2")], ids=["one", "two"])
def test_jump_hosts(logins: Logins, jumps: tuple[str, ...]) -> None:
    names = {1: "behind-one", 2: "behind-two"}
    with logins.only_through(*jumps):
        assert logins.run("alice", names[len(jumps)], "hostname").stdout == "login2\n"
        assert logins.run("alice", "login2", "hostname").returncode == 255
        if len(jumps) == 2:
            assert logins.run("alice", "behind-one", "hostname").returncode == 255


def test_a_shell_that_prints_noise(logins: Logins) -> None:
    answer = logins.run("erin", "login", "pwd")
    assert answer.stdout.startswith("####")
    assert answer.stdout.endswith("/tmp\n")
    assert "\ufffd\ufffd" in answer.stdout
    assert "bashrc: module: command not found" in answer.stderr


def test_a_home_in_which_nothing_may_be_executed(logins: Logins) -> None:
    answer = logins.run("frank", "login", "sh", "-c", "cp /bin/true it && ./it; code=$?; rm it; exit $code")
    assert (answer.returncode, "Permission denied" in answer.stderr) == (126, True)


def test_a_full_home(logins: Logins) -> None:
    answer = logins.run("grace", "login", "sh", "-c", "cp /etc/hosts file; code=$?; rm file; exit $code")
    assert answer.returncode != 0
    assert "No space left on device" in answer.stderr
    assert logins.run("grace", "login", "sh", "-c", "echo word >/scratch/grace && rm /scratch/grace").returncode == 0


def test_a_python_that_is_too_old(logins: Logins) -> None:
    version = "import sys; print(sys.version_info[:2])"
    assert logins.run("heidi", "login", "python3", "-c", version).stdout == "(3, 9)\n"
    assert logins.run("heidi", "login", "bash", "-lc", f"python3 -c '{version}'").stdout == "(3, 9)\n"
    loaded = logins.run("heidi", "login", "bash", "-lc", f"module load python/3 && python3 -c '{version}'")
    assert loaded.stdout >= "(3, 11)"
    for forbidden in ("/usr/bin/python3", "/opt/slurmbus/bin/python"):
        assert logins.run("heidi", "login", forbidden, "-V").returncode == 126


def test_no_outbound_network(logins: Logins) -> None:
    with socket.create_server((logins.cluster.gateway, 0)) as server:
        dial = f"import socket; socket.create_connection({server.getsockname()}, 5)"
        assert logins.run("alice", "login", "python3", "-c", dial).returncode == 0
        assert "ConnectionRefusedError" in logins.run("ivan", "login", "python3", "-c", dial).stderr
    assert logins.run("ivan", "login", "squeue").returncode == 0


def test_a_login_that_wants_a_terminal(logins: Logins) -> None:
    assert logins.run("judy", "login", *WHO).returncode == 1
    assert logins.run("judy", "login", *WHO, options=["-tt"]).stdout == "judy\n"
