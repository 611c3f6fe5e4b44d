"""How one gets into a site: settings, the commands of ssh made of them, and what answers prompts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from slurmbus.bootstrap import prompts, ssh
from slurmbus.bootstrap.login import Login, merged
from slurmbus.commands.up import _BUS_SETTINGS, _SITE_SETTINGS, _keep
from slurmbus.errors import LoginFailed
from slurmbus.home import Home
from slurmbus_protocol.errors import InvalidSetting

FULL = Login(
    host="login.example.org",
    user="alice",
    port=2222,
    jump=("gate", "bob@inner:22"),
    ssh_options=("StrictHostKeyChecking=accept-new",),
    ssh_config="/tmp/config",
)
SOCKET, LOG = Path("/run/x.ssh"), Path("/tmp/x.log")


def test_what_is_said_stands_over_what_is_kept() -> None:
    login = merged(FULL, {"user": "carol", "port": None, "jump": (), "way": "tunnel"})
    assert (login.host, login.user, login.port, login.jump, login.way) == (
        "login.example.org",
        "carol",
        2222,
        ("gate", "bob@inner:22"),
        "tunnel",
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "where the site is"),
        ({"host": "-oProxyCommand=x"}, "is no name"),
        ({"host": "a b"}, "is no name"),
        ({"host": "a", "user": "-l"}, "is no name"),
        ({"host": "a", "jump": ("-x",)}, "is no name"),
        ({"host": "a", "ssh_options": ("Foo",)}, "no option of ssh"),
        ({"host": "a", "before_login": "step 'ssh"}, "split into words"),
        ({"host": "a", "way": "pigeon"}, "way"),
        ({"host": "a", "way": "direct", "tunnel_relogin": True}, "tunnel"),
    ],
)
def test_wrong_settings_are_named(said: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        merged(None, said)


def test_a_profile_keeps_the_login(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.add_site("leo")
    home.change_site("leo", login=FULL)
    home.add_site("leo", scheduler="commands")
    assert home.site("leo").login == FULL
    assert "[login]" in (tmp_path / "sites" / "leo.toml").read_text()
    assert "login" not in home.bundle_path("leo").read_text()


def test_another_bus_is_reached_in_another_way(tmp_path: Path) -> None:
    """How the agent reached the old one is forgotten; as long as the bus is the same it is kept."""
    home = Home(tmp_path)
    nothing = dict.fromkeys((*_SITE_SETTINGS, *_BUS_SETTINGS))
    _keep(home, "leo", {**nothing, "host": "login"}, ask=False)
    home.change_site("leo", agent_servers=("tls://10.0.0.1:4222",))
    _keep(home, "leo", {**nothing, "scheduler": "commands"}, ask=False)
    assert home.site("leo").agent_servers == ("tls://10.0.0.1:4222",)
    _keep(home, "leo", {**nothing, "urls": ("tls://team:4222",)}, ask=False)
    assert (home.site("leo").agent_servers, home.site("leo").scheduler) == (None, "commands")
    home.change_site("leo", agent_servers=("tls://inside:4222",))
    _keep(home, "leo", {**nothing, "urls": ("tls://team:4222",), "link_host": "node"}, ask=False)
    assert home.site("leo").agent_servers == ("tls://inside:4222",)


def test_the_command_that_logs_in() -> None:
    command = ssh.master_command(FULL, SOCKET, LOG)
    assert command[:3] == ["ssh", "-F", "/tmp/config"]
    assert command[-4:] == ["-J", "gate,bob@inner:22", "--", "alice@login.example.org"]
    assert "ControlPath=/run/x.ssh" in command
    assert "StrictHostKeyChecking=accept-new" in command
    assert "ForwardAgent=no" in command
    assert "BatchMode=yes" not in command
    assert "BatchMode=yes" in ssh.master_command(FULL, SOCKET, LOG, batch=True)


def test_a_session_goes_over_the_master_only() -> None:
    command = ssh.session_command(FULL, SOCKET, "exec sh")
    assert command[-4:] == ["-T", "--", "alice@login.example.org", "exec sh"]
    assert "ProxyCommand=false" in command
    assert "-tt" in ssh.session_command(FULL, SOCKET, None)
    assert "-tt" in ssh.session_command(FULL, SOCKET, "exec sh", terminal=True)


@pytest.mark.parametrize(
    ("said", "words", "hint"),
    [
        ("alice@a: Permission denied (publickey).", "refused the login", "ssh -v a"),
        ("ssh: Could not resolve hostname a: Name or service not known", "isn't known", "VPN"),
        ("ssh: connect to host a port 22: Connection refused", "nobody listens", "port"),
        ("ssh: connect to host a port 22: Connection timed out", "can't be reached", "--jump"),
        (
            "the secrets file has no answer for bob@gate\nbob@gate: Permission denied (password).",
            "for bob@gate",
            "SLURMBUS_SSH_PASSWORD__",
        ),
        ("Host key verification failed.", "host's key", "ssh-keygen -R"),
        ("something else", "something else", "ssh -v a"),
        ("", "didn't say why", "ssh -v a"),
    ],
)
def test_a_failed_login_is_explained(said: str, words: str, hint: str) -> None:
    error = ssh.explain(said, Login(host="a"))
    assert isinstance(error, LoginFailed)
    assert words in error.message
    assert hint in (error.hint or "")


def test_sockets_lie_in_a_folder_of_ones_own() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        folder = ssh.run_folder({"XDG_RUNTIME_DIR": runtime})
        assert folder.parent == Path(runtime)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        with pytest.raises(InvalidSetting, match="yours alone"):
            ssh.run_folder({"XDG_RUNTIME_DIR": runtime})


def test_sockets_have_short_paths(tmp_path: Path) -> None:
    assert len(str(ssh.run_folder({"XDG_RUNTIME_DIR": str(tmp_path / ("x" * 100))}))) < 40


# RFC 6238, appendix B, of which 6 digits are asked for.
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


@pytest.mark.parametrize(("now", "code"), [(59, "287082"), (1111111109, "081804"), (2000000000, "279037")])
def test_one_time_codes(now: float, code: str) -> None:
    assert prompts.one_time_code(SECRET, now) == code


TARGET = "alice@a"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("alice@a's password: ", "pw"),
        ("alice@A's password: ", "pw"),
        ("(alice@a) Password: ", "pw"),
        ("(alice@a) Verification code: ", "287082"),
        ("Enter passphrase for key '/home/alice/.ssh/id': ", "pp"),
        ("One-time password (OATH) for `alice': ", "287082"),
        ("Verification code: ", "287082"),
        ("Are you sure you want to continue connecting (yes/no)? ", None),
    ],
)
def test_prompts_are_told_apart(prompt: str, answer: str | None) -> None:
    secrets = {prompts.PASSWORD: "pw", prompts.PASSPHRASE: "pp", prompts.OTP: SECRET}
    assert prompts.answer(prompt, secrets, 59, TARGET, direct=True) == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "alice@gate's password: ",
        "bob@a's password: ",
        "(alice@gate) Password: ",
        "(alice@gate) One-time password (OATH) for `alice': ",
        "(alice@gate) alice@a's password: ",
        "(alice@gate) (alice@a) Password: ",
        "(alice@gate) Enter passphrase for key '/home/alice/.ssh/id': ",
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_another_host_gets_nothing_of_the_login_node_s(prompt: str, direct: bool) -> None:
    secrets = {prompts.PASSWORD: "pw", prompts.PASSPHRASE: "pp", prompts.OTP: SECRET, f"{prompts.PASSWORD}__B": "b"}
    assert prompts.answer(prompt, secrets, 59, TARGET, direct=direct) is None


@pytest.mark.parametrize("prompt", ["Password: ", "alice@gate) (alice@a's password: "])
def test_who_does_not_say_who_asks_is_the_login_node_or_nobody(prompt: str) -> None:
    assert prompts.answer(prompt, {prompts.PASSWORD: "pw"}, 59, TARGET, direct=False) is None
    assert prompts.answer(prompt, {prompts.PASSWORD: "pw"}, 59, TARGET, direct=True) == "pw"


def test_each_host_gets_its_own() -> None:
    secrets = {
        prompts.PASSWORD: "pw",
        f"{prompts.PASSWORD}__GATE_EXAMPLE_ORG": "gate",
        f"{prompts.PASSWORD}__BOB_GATE_EXAMPLE_ORG": "bob",
        f"{prompts.OTP}__10_0_0_1": SECRET,
    }
    asked = {
        "alice@gate.example.org's password: ": "gate",
        "(bob@gate.example.org) Password: ": "bob",
        "(alice@10.0.0.1) Verification code: ": "287082",
        "(alice@10.0.0.1) Password: ": None,
        "(alice@a) Password: ": "pw",
    }
    assert {prompt: prompts.answer(prompt, secrets, 59, TARGET, direct=False) for prompt in asked} == asked


def test_the_names_of_prompts_are_ssh_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an alias stands for, who it is there, and whether others are on the way: as ssh has it."""
    config = tmp_path / "config"
    config.write_text(
        "Host a\n  HostName login.example.org\n  User carol\nHost b\n  HostKeyAlias c\n  ProxyJump gate\n"
    )
    monkeypatch.setattr(prompts, "open_file", lambda _path: {prompts.PASSWORD: "pw"})
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.mkdtemp(dir="/tmp"))
    found = {}
    for login in (
        Login(host="a", ssh_config=str(config), secrets_file="s"),
        Login(host="a", user="eve", jump=("gate",), ssh_config=str(config), secrets_file="s"),
        Login(host="b", user="eve", ssh_config=str(config), secrets_file="s"),
    ):
        given = prompts.environment(login)
        found[given["SLURMBUS_SSH_DESTINATION"]] = given.get("SLURMBUS_SSH_DIRECT")
    assert found == {"carol@login.example.org": "1", "eve@login.example.org": None, "eve@c": None}
    old = tmp_path / "ssh"
    old.write_text('#!/bin/sh\n[ "$1" != -V ] || { echo "OpenSSH_8.0p1, OpenSSL" >&2; exit; }\nexec ssh "$@"\n')
    old.chmod(0o700)
    monkeypatch.setenv("SLURMBUS_SSH", str(old))
    with pytest.raises(InvalidSetting, match="doesn't say which host asks"):
        prompts.environment(Login(host="b", ssh_config=str(config), secrets_file="s"))


@pytest.mark.parametrize(
    "text",
    ['{"A": "x=1", "B": 2}', "# comment\nexport A='x=1'\nB=2\n", 'A: "x=1"\nB: 2\n'],
    ids=["json", "env", "yaml"],
)
def test_secrets_of_every_form(text: str) -> None:
    assert prompts.parse(text) == {"A": "x=1", "B": "2"}


def test_a_command_before_the_login_that_fails() -> None:
    with pytest.raises(LoginFailed, match="ended with 1"):
        prompts.before_login(Login(host="a", before_login="false"), {})
    with pytest.raises(LoginFailed, match="can't be started"):
        prompts.before_login(Login(host="a", before_login="/no/such/program"), {})
    prompts.before_login(Login(host="a", before_login="true"), {})


def test_an_askpass_program_has_to_be_there() -> None:
    with pytest.raises(InvalidSetting, match="is no program"):
        prompts.environment(Login(host="a", askpass="/no/such/program"))
