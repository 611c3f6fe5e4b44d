"""What ``auto`` picks, and why."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler.choosing import Trial, choose, try_out
from slurmbus_protocol.errors import InvalidSetting

CONF = "/etc/slurm/slurm.conf"
NATIVE = Trial("native", "26.05.5", answers=True)
COMMANDS = Trial("commands", "26.05.5", answers=True)
NO_PYSLURM = Trial("native", None, "pyslurm isn't installed here")
NO_COMMANDS = Trial("commands", None, "Slurm's commands aren't here: sbatch")


@pytest.mark.parametrize(
    ("native", "commands", "kind", "why"),
    [
        (NATIVE, COMMANDS, "native", "26.05.5"),
        (NATIVE, NO_COMMANDS, "native", "26.05.5"),
        (NO_PYSLURM, COMMANDS, "commands", "pyslurm isn't installed"),
        (NATIVE._replace(version="25.11.2"), COMMANDS, "commands", "25.11.2, the commands here of 26.05.5"),
        (NATIVE._replace(version="26.05.1"), COMMANDS, "native", "26.05.1"),
        (NATIVE, COMMANDS._replace(version=""), "commands", "the commands here of an unknown one"),
        (
            NATIVE._replace(answers=False, problem="Incompatible versions"),
            COMMANDS,
            "commands",
            "Incompatible versions",
        ),
        (NATIVE._replace(answers=False), COMMANDS._replace(answers=False), "native", "26.05.5"),
        (NO_PYSLURM, COMMANDS._replace(answers=False), "commands", "pyslurm isn't installed"),
    ],
)
def test_the_choice(native: Trial, commands: Trial, kind: str, why: str) -> None:
    choice = choose(native, commands, CONF)
    assert choice.kind == kind
    assert why in choice.why


def test_nobody_runs_jobs_on_a_login_node_by_mistake() -> None:
    with pytest.raises(InvalidSetting, match="pyslurm isn't installed here; Slurm's commands aren't here"):
        choose(NO_PYSLURM, NO_COMMANDS, CONF)


def test_commands_alone_are_no_cluster() -> None:
    silent = COMMANDS._replace(answers=False)
    with pytest.raises(InvalidSetting, match=r"no slurm\.conf"):
        choose(NO_PYSLURM, silent, None)
    assert choose(NO_PYSLURM, COMMANDS, None).kind == "commands"


def test_a_missing_configuration_is_the_reason(tmp_path_factory: pytest.TempPathFactory) -> None:
    trial = try_out("commands", str(tmp_path_factory.mktemp("conf") / "slurm.conf"))
    assert not trial.works
    assert "no slurm.conf at" in trial.problem
