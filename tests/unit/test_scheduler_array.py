"""How the tasks of an array are called."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler.array import expanded, split_name, task_name
from slurmbus_protocol.arrays import compact


@pytest.mark.parametrize(
    ("indexes", "text"),
    [([0], "0"), ([3, 1, 2], "1-3"), ([0, 1, 2, 7, 9, 10], "0-2,7,9-10"), (range(1000), "0-999"), ([5, 5], "5")],
)
def test_indexes_are_written_as_sbatch_takes_them(indexes: list[int], text: str) -> None:
    assert compact(indexes) == text
    assert expanded(text) == tuple(sorted(set(indexes)))


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("3-9%2", (3, 4, 5, 6, 7, 8, 9)),
        ("[1,4-6]", (1, 4, 5, 6)),
        ("[1,4-6%3]", (1, 4, 5, 6)),
        ("0-8:4", (0, 4, 8)),
        ("[7]%1", (7,)),
        ("0x29%4", (0, 3, 5)),
    ],
)
def test_slurms_own_words_are_read(text: str, indexes: tuple[int, ...]) -> None:
    assert expanded(text) == indexes


@pytest.mark.parametrize("text", ["1,3,5,...", "", "N/A", "1-", "a-b", "0xZZ"])
def test_a_list_that_was_cut_short_is_never_taken_for_all(text: str) -> None:
    with pytest.raises(ValueError, match=r"array.s tasks|invalid literal"):
        expanded(text)


def test_a_task_has_a_name_of_its_own() -> None:
    name = "train.01JDXAMPLE000000000000TASK"
    assert task_name(name, 0) == f"{name}[0]"
    assert split_name(task_name(name, 12)) == (name, (12,))
    assert split_name(task_name(name, [4, 0, 1])) == (name, (0, 1, 4))
    assert split_name(name) == (name, None)
    assert split_name("somebody's [job]") == ("somebody's [job]", None)
