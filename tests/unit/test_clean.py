"""``slurmbus-agent clean`` and the table ``[retention]``: what is wrong is named."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest

from slurmbus_agent.clean import age
from slurmbus_agent.cli import main
from slurmbus_agent.config import load
from slurmbus_agent.retention import RetentionSettings
from slurmbus_protocol.errors import InvalidSetting

GOOD = 'site = "a"\nservers = ["nats://127.0.0.1:1"]\ntrusted_keys = []\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5m", 90), ("12h", 43200), ("3d", 259200), ("0s", 0)])
def test_ages(text: str, seconds: float) -> None:
    assert age(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "d", "-3d", "3 d", "1e3s", "3w", "3d12h"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no age"):
        age(text)


def test_retention_is_read_and_has_defaults(tmp_path: Path) -> None:
    assert load("a", write(tmp_path, GOOD)).retention == RetentionSettings()
    config = load("a", write(tmp_path, f"{GOOD}[retention]\nsucceeded_days = 3\nlost_days = inf\n"))
    assert config.retention.succeeded_days == 3
    assert math.isinf(config.retention.lost_days)
    assert config.retention.failed_days == RetentionSettings().failed_days


@pytest.mark.parametrize(
    ("line", "words"), [("succeeded_days = -1", "succeeded_days"), ("sucess = 1", "sucess"), ("every_minutes = 0", ">")]
)
def test_what_is_wrong_with_retention_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        load("a", write(tmp_path, f"{GOOD}[retention]\n{line}\n"))


def test_without_a_spool_or_a_bus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = tmp_path / "spool"
    words = ["clean", "--site", "a", "--config", str(write(tmp_path, f'{GOOD}spool = "{spool}"\n'))]
    assert main(words) == 2
    assert "no spool" in capsys.readouterr().err
    (spool / "jobs").mkdir(parents=True)
    assert main([*words, "--dry-run"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in spool.iterdir()] == ["jobs"]
