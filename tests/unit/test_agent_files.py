"""The agent's configuration and its audit log: what is wrong is named, and nobody else can read them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from slurmbus_agent.audit import Audit
from slurmbus_agent.cli import main
from slurmbus_agent.config import load
from slurmbus_protocol.errors import InvalidSetting

GOOD = 'site = "a"\nservers = ["tls://host:4222"]\ntrusted_keys = []\n'


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "a.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_good_configuration_is_read(tmp_path: Path) -> None:
    config = load("a", write(tmp_path, GOOD))
    assert config.servers == ("tls://host:4222",)
    assert config.scheduler == "auto"
    assert config.spool_root == Path.home() / ".slurmbus" / "a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + 'shceduler = "local"\n', "shceduler"),
        (GOOD.replace('"tls://host:4222"', "7"), "servers"),
        (GOOD.replace('["tls://host:4222"]', "[]"), "servers is empty"),
        (GOOD.replace('site = "a"', 'site = "b"'), "for site 'b'"),
        ("site = ", "a.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        load("a", write(tmp_path, text))


def test_settings_count_more_than_the_bundle_entry_by_entry(tmp_path: Path) -> None:
    bundle = write(tmp_path, f"{GOOD}array_size = 10\n[retention]\nsucceeded_days = 3\nlost_days = 4\n")
    settings = tmp_path / "a.settings.toml"
    settings.write_text('log_format = "json"\n[retention]\nlost_days = inf\n[limits]\ncpu_minutes = 20\n')
    config = load("a", bundle)
    assert (config.log_format, config.array_size, config.limits.cpu_minutes) == ("json", 10, 20)
    assert (config.retention.succeeded_days, config.retention.lost_days) == (3, float("inf"))
    settings.unlink()
    assert load("a", bundle).log_format == "text"


@pytest.mark.parametrize(
    "text", ['servers = ["nats://mine"]\n', "trusted_keys = []\n", "[limits]\ncpu = 1\n", "[limits\n", "\xff"]
)
def test_settings_that_cannot_be_meant_are_named(tmp_path: Path, text: str) -> None:
    """Whom the agent trusts and where it goes is no setting."""
    (tmp_path / "a.settings.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSetting, match=r"a\.settings\.toml"):
        load("a", write(tmp_path, GOOD))


def test_settings_that_others_can_write_are_refused(tmp_path: Path) -> None:
    settings = tmp_path / "a.settings.toml"
    settings.touch()
    settings.chmod(0o664)
    with pytest.raises(InvalidSetting, match="chmod 600"):
        load("a", write(tmp_path, GOOD))


def test_a_file_that_others_can_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="chmod 600"):
        load("a", write(tmp_path, GOOD, 0o644))


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="slurmbus sites add"):
        load("a", tmp_path / "nowhere.toml")


def test_the_command_ends_with_words_and_not_with_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--site", "a", "--config", str(tmp_path / "nowhere.toml")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_audit_log_is_appended_to_and_private(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.write("accepted", subject="one")
    audit.write("refused", subject="two", error="bad-signature")
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["accepted", "refused"]
    assert stat.S_IMODE((tmp_path / "audit.log").stat().st_mode) == 0o600
    assert audit.problem is None


def test_a_full_disk_under_the_audit_log_is_an_alarm_and_no_crash() -> None:
    audit = Audit(Path("/dev/full"))
    audit.write("accepted", subject="one")
    assert audit.problem is not None
    assert "audit" in audit.problem
