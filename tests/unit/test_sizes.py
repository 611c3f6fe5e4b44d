"""What goes into a record has to fit into it."""

from __future__ import annotations

from slurmbus_agent.sizes import MAX_OUTPUTS, fitting


def test_outputs_are_as_many_as_a_record_can_name() -> None:
    few = [f"file-{number}" for number in range(100)]
    assert fitting(few) == few
    assert fitting([]) == []
    many = [f"{'d' * 200}/file-{number}" for number in range(100_000)]
    kept = fitting(many)
    assert kept == many[: len(kept)]
    assert 500 < len(kept) < MAX_OUTPUTS / 200
