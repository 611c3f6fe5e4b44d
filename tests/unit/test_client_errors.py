"""Errors that crossed the bus, and paths that come from the other side."""

from __future__ import annotations

import pytest

from slurmbus.site import check_target, problem_error
from slurmbus_protocol import errors
from slurmbus_protocol.messages import Problem


@pytest.mark.parametrize("kind", [errors.LostMessages, errors.BadSignature, errors.TooLarge, errors.SiteUnreachable])
def test_a_problem_becomes_its_class(kind: type[errors.SlurmbusError]) -> None:
    error = problem_error(Problem(code=kind.code, message="words", hint="do this"))
    assert type(error) is kind
    assert (error.message, error.hint) == ("words", "do this")


def test_a_code_of_a_newer_side_is_still_an_error() -> None:
    error = problem_error(Problem(code="not-yet-invented", message="words"))
    assert type(error) is errors.SlurmbusError
    assert str(error) == "words"


@pytest.mark.parametrize("target", ["", "/etc/passwd", "../x", "a/../../x"])
def test_paths_that_leave_the_folder(target: str) -> None:
    with pytest.raises(errors.InvalidSetting):
        check_target(target)


def test_paths_that_stay() -> None:
    check_target("a")
    check_target("a/b.txt")
