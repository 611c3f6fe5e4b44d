"""What the words of sbatch mean for the promise that a payload runs once."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler.command import Ended
from slurmbus_agent.scheduler.words import Meaning, number_of, of_submit, of_words


def ended(stderr: str, code: int | None = 1, stdout: str = "", trouble: str = "", seconds: float = 0.1) -> Ended:
    return Ended("sbatch", code, stdout, stderr, seconds, trouble)


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        (f"{FAILED}Invalid partition name specified\n", Meaning.REFUSED),
        (f"sbatch: error: Memory\n{FAILED}Requested node configuration is not available\n", Meaning.REFUSED),
        (f"sbatch: error: your project has ended\n{FAILED}Unspecified error\n", Meaning.REFUSED),
        (f"{FAILED}A text of a version to come\n", Meaning.REFUSED),
        (f"{FAILED}Unable to contact slurm controller (connect failure)\n", Meaning.NOT_SENT),
        (f"{FAILED}Slurm backup controller in standby mode\n", Meaning.NOT_SENT),
        (f"{FAILED}MaxJobCount limit reached\n", Meaning.NOT_SENT),
        (f"{FAILED}Unable to contact slurm controller (receive failure)\n", Meaning.UNKNOWN),
        (f"{FAILED}Socket timed out on send/recv operation\n", Meaning.UNKNOWN),
        (f"{FAILED}Zero Bytes were transmitted or received\n", Meaning.UNKNOWN),
        (f"{FAILED}Unexpected message received\n", Meaning.UNKNOWN),
        (f"{FAILED}Protocol authentication error\n", Meaning.UNKNOWN),
        (f"{FAILED}Connection reset by peer\n", Meaning.UNKNOWN),
        (f"{FAILED}Resource temporarily unavailable\n", Meaning.UNKNOWN),
        (f"{FAILED}No error\n", Meaning.UNKNOWN),
        (f"{FAILED}Unknown error 4242\n", Meaning.UNKNOWN),
        ("sbatch: error: This does not look like a batch script.  The first\n", Meaning.REFUSED),
        ("sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information\n", Meaning.REFUSED),
        ("/usr/bin/sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information\n", Meaning.REFUSED),
        ("sbatch: error: Invalid --mem specification\n", Meaning.REFUSED),
        ("sbatch: error: name your project\nsbatch: error: cli_filter plugin terminated with error\n", Meaning.REFUSED),
        ("sbatch: error: fetch_config: DNS SRV lookup failed\n", Meaning.NOT_SENT),
        ("sbatch: fatal: Could not establish a configuration source\n", Meaning.NOT_SENT),
        ("sbatch: fatal: something unheard of\n", Meaning.UNKNOWN),
        ("our wrapper: your quota is used up\n", Meaning.UNKNOWN),
        ("", Meaning.UNKNOWN),
    ],
)
def test_a_failed_submit(said: str, meaning: Meaning) -> None:
    assert of_submit(ended(said)) is meaning


def test_a_submit_that_did_not_end_by_itself_is_unknown_whatever_it_said() -> None:
    said = f"{FAILED}Invalid partition name specified\n"
    assert of_submit(ended(said, None, trouble="was killed by SIGKILL")) is Meaning.UNKNOWN


def test_exit_code_0_without_an_id_is_unknown() -> None:
    assert of_submit(ended(f"{FAILED}Invalid partition name specified\n", 0)) is Meaning.UNKNOWN


@pytest.mark.parametrize(
    ("said", "seconds", "meaning"),
    [
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.\n", 0.1, Meaning.NOT_SENT),
        ("sbatch: error: Slurm job queue full, sleeping and retrying.\n", 0.5, Meaning.NOT_SENT),
        ("sbatch: error: Slurm job queue full, sleeping and retrying.\n", 1.1, Meaning.UNKNOWN),
        ("sbatch: error: Slurm controller not responding, sleeping and retrying.\n", 0.1, Meaning.UNKNOWN),
        (
            "sbatch: error: s_p_parse_file: cannot stat file /x: No such file, retrying in 1sec up to 60sec\n",
            0.1,
            Meaning.NOT_SENT,
        ),
    ],
)
def test_a_submit_that_was_stopped_before_it_tried_again(said: str, seconds: float, meaning: Meaning) -> None:
    assert of_submit(ended(said, None, trouble="was stopped", seconds=seconds)) is meaning


def test_hints_need_numbers() -> None:
    assert (
        number_of(ended(f"sbatch: error: invalid partition specified: x\n{FAILED}Invalid partition name specified\n"))
        == 2000
    )
    assert number_of(ended(f"{FAILED}Requested node configuration is not available\n")) == 2014
    assert number_of(ended("sbatch: error: Invalid generic resource (gres) specification\n")) == 2072
    assert number_of(ended("what?\n")) == 0


def test_words_of_a_cancel() -> None:
    assert of_words("Access/permission denied") is Meaning.REFUSED
