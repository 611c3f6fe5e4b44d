"""Trace context: made, carried in variables, read again."""

from __future__ import annotations

import pytest

from slurmbus_protocol.messages import TraceContext
from slurmbus_protocol.traces import derived, from_variables, trace_id, variables

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_same_names_give_the_same_ids() -> None:
    assert derived("run", "step") == derived("run", "step")
    assert trace_id(derived("run", "step")) == trace_id(derived("run", "other"))
    assert derived("run", "step") != derived("run", "other")
    assert trace_id(derived("run", "step")) != trace_id(derived("another", "step"))
    assert trace_id(None) == ""


@pytest.mark.parametrize("state", ["", "rojo=00f067aa0ba902b7,congo=t61"])
def test_variables_carry_a_context(state: str) -> None:
    trace = TraceContext(traceparent=PARENT, tracestate=state)
    carried = variables(trace)
    assert carried["TRACEPARENT"] == PARENT
    assert ("TRACESTATE" in carried) == bool(state)
    assert from_variables(carried) == trace
    assert trace_id(trace) == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.replace("00-", "ff-", 1),
        PARENT.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
def test_what_is_no_context_is_none(parent: str) -> None:
    assert from_variables({"TRACEPARENT": parent}) is None
    assert from_variables({}) is None
    assert variables(None) == {}
