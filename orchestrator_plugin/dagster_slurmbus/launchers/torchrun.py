"""PyTorch over several processes and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from pydantic import Field, field_validator

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.launchers.bash import BashLauncher
from slurmbus_protocol.plans import AnyPlan, TorchrunPlan

_Word = Literal["auto", "gpus", "cpus", "tasks"]
_WORDS: tuple[str, ...] = get_args(_Word)


class TorchrunLauncher(BashLauncher):
    """Runs the payload by one ``torchrun`` on each node; it calls ``torch.distributed.init_process_group()``.

    PyTorch must be installed in the Python that ``python`` names. The nodes meet at the first one, at a port that is
    free there. Every process has Dagster Pipes' variables: open the session where ``RANK`` is 0 only.
    """

    torchrun: str | None = Field(
        default=None, description="The command; 'python -m torch.distributed.run' when unset, which is the same."
    )
    processes_per_node: str = Field(
        default="auto",
        description="Processes on each node: a number, or one for each GPU, CPU or task that Slurm gave. auto is "
        "gpus where there are some, else tasks.",
    )
    min_nodes: int | None = Field(
        default=None, ge=1, description="Go on with so many nodes when others are lost; all are needed when unset."
    )
    max_restarts: int = Field(
        default=0, ge=0, description="How often all processes are started again when one fails, before the job fails."
    )
    interface: str | None = Field(
        default=None, description="The network between the nodes, e.g. ib0; that of the nodes' names when unset."
    )
    start_timeout: float = Field(default=300.0, gt=0, description="Seconds within which all nodes must have met.")
    arguments: list[str] = Field(default_factory=list, description="Further arguments of torchrun.")

    @field_validator("processes_per_node", mode="before")
    @classmethod
    def _processes_are_a_number_or_a_word(cls, value: Any) -> Any:
        text = str(value)
        if not is_env_var(text) and text not in _WORDS and not (text.isdigit() and int(text)):
            raise ValueError(f"{value!r} is neither a number of processes nor one of {', '.join(_WORDS)}")
        return text

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Let torchrun start ``.py`` payloads with its own Python, and others as :class:`BashLauncher` would."""
        is_python = self.interpreter is None and PurePosixPath(payload).suffix == ".py"
        return TorchrunPlan(
            argv=(payload, *args) if is_python else self.words(payload, args),
            preamble=self.preamble,
            python=self.python,
            torchrun=self.torchrun,
            processes_per_node=_processes(self.processes_per_node),
            min_nodes=self.min_nodes,
            max_restarts=self.max_restarts,
            interface=self.interface,
            start_timeout=self.start_timeout,
            arguments=tuple(self.arguments),
        )


def _processes(text: str) -> int | _Word:
    return int(text) if text.isdigit() else cast("_Word", text)
