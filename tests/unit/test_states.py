"""The state table, and its copy in the documentation."""

from __future__ import annotations

from pathlib import Path

from slurmbus_protocol.states import FINAL, TRANSITIONS, JobState, may_follow

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"


def table() -> str:
    lines = ["| state | may be followed by |", "|---|---|"]
    for state in JobState:
        following = (
            "nothing: it is final" if state.is_final else ", ".join(s for s in JobState if s in TRANSITIONS[state])
        )
        lines.append(f"| {state} | {following} |")
    return "\n".join(lines)


def test_the_documentation_shows_the_table_of_the_code() -> None:
    shown = DOCUMENT.read_text().partition("<!-- states: begin -->")[2].partition("<!-- states: end -->")[0]
    assert shown.strip() == table(), f"put this into {DOCUMENT.name}:\n{table()}"


def test_nothing_follows_a_final_state() -> None:
    for state in FINAL:
        assert not TRANSITIONS[state]
        assert may_follow(state, state)
        assert not any(may_follow(state, other) for other in JobState if other is not state)
