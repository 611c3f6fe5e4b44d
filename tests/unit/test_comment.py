"""The comment of a job in Slurm: ours first and parseable, the user's own after it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slurmbus_agent.scheduler.comment import LENGTH, compose

LABELS = {"dagster_run": "1234", "dagster_partition": "2024-01-01 to 2024-02-01", "dagster_step": "train"}
OURS = "dagster_partition=2024-01-01 to 2024-02-01 dagster_run=1234 dagster_step=train"


def test_the_users_own_comment_stands_beside_ours() -> None:
    assert compose(LABELS, None) == OURS
    assert compose(LABELS, "the nightly one; ask Bob") == f"{OURS} ; the nightly one; ask Bob"
    assert compose({}, "mine") == "; mine"
    assert compose({}, None) == ""


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(max_size=600)), st.text(min_size=1, max_size=2000))
def test_ours_is_what_stands_before_the_first_semicolon(labels: dict[str, str], own: str) -> None:
    comment = compose(labels, own)
    assert len(comment) <= LENGTH
    ours, semicolon, theirs = comment.partition(";")
    assert semicolon
    assert own.startswith(theirs.removeprefix(" "))
    whole = " ".join(f"{name}={value.replace(';', ',')}" for name, value in sorted(labels.items()))
    assert whole.lstrip().startswith(ours.strip()) or not ours.strip()
