"""Names: what may stand in a subject, and what comes back out of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmbus_protocol import subjects
from slurmbus_protocol.errors import InvalidName
from slurmbus_protocol.subjects import Stream

KEY = "01JD0000000000000000000000"


def test_subjects_are_what_the_design_says() -> None:
    assert subjects.request("leonardo-alice", KEY) == f"slurmbus.v1.leonardo-alice.req.{KEY}"
    assert subjects.control("a", KEY, KEY) == f"slurmbus.v1.a.ctl.{KEY}.{KEY}"
    assert subjects.state("a", KEY, 3) == f"slurmbus.v1.a.job.{KEY}.3.state"
    assert subjects.stream("a", KEY, 0, 1, Stream.MESSAGES) == f"slurmbus.v1.a.msg.{KEY}.0.1"
    assert subjects.stream("a", KEY, 0, 1, Stream.STDERR) == f"slurmbus.v1.a.log.{KEY}.0.1.stderr"
    assert subjects.blob("0" * 64, 7) == f"blob.{'0' * 64}.7"


@pytest.mark.parametrize("token", ["", "a.b", "*", ">", "A", "a b", "ä", "x" * 65, "a\n", "a\x00"])
def test_a_token_that_could_widen_a_subject_is_refused(token: str) -> None:
    with pytest.raises(InvalidName):
        subjects.rpc(token, "ping")
    with pytest.raises(InvalidName):
        subjects.rpc("site", token)


@given(st.text())
def test_no_text_ever_breaks_out_of_its_token(text: str) -> None:
    try:
        subject = subjects.lease(text)
    except InvalidName:
        return
    assert subject.count(".") == 2
    assert "*" not in subject
    assert ">" not in subject


def test_parsing_gives_back_what_was_built() -> None:
    address = subjects.parse_request(subjects.control("site", KEY, KEY))
    assert (address.site, address.key, address.control_id) == ("site", KEY, KEY)
    chunk = subjects.parse_stream(subjects.stream("site", KEY, 2, 1, Stream.STDOUT))
    assert (chunk.key, chunk.task, chunk.start, chunk.stream) == (KEY, 2, 1, Stream.STDOUT)
    wish = subjects.parse_forget(subjects.forget("site", KEY, 4))
    assert (wish.site, wish.key, wish.task) == ("site", KEY, 4)
    state = subjects.parse_state(subjects.state("site", KEY, 4))
    assert (state.site, state.task) == ("site", 4)


@pytest.mark.parametrize(
    "subject", ["", "slurmbus.v2.a.req.x", f"slurmbus.v1.a.job.{KEY}.x.state", "slurmbus.v1.a.req.short"]
)
def test_other_subjects_are_refused(subject: str) -> None:
    for parse in (subjects.parse_request, subjects.parse_stream, subjects.parse_state, subjects.parse_forget):
        with pytest.raises(InvalidName):
            parse(subject)


def test_ulids_are_unique_and_ordered_by_time() -> None:
    keys = [subjects.new_ulid() for _ in range(1000)]
    assert len(set(keys)) == 1000
    assert [key[:10] for key in keys] == sorted(key[:10] for key in keys)
    assert all(subjects.check_key(key) == key for key in keys)
