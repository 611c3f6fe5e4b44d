"""What the doctor says of Slurm: what the agent answers now, not what it knew when it last spoke."""

from __future__ import annotations

from contract.scripted_jobs import DagsterSite
from slurmbus.bootstrap.chain import Chain, Finding, Grade
from slurmbus_protocol.messages import Message, Partition, Partitions, Problem, SchedulerHealth


def said_of_slurm(site: DagsterSite, answer: Message) -> Finding:
    site.answer("partitions", answer)
    chain = Chain(site.home, site.site)
    assert chain.agents().grade is Grade.FINE
    return chain.scheduler()


def test_the_agent_is_asked(slurm: DagsterSite) -> None:
    silent = SchedulerHealth(kind="native", responding=False, since=0.0, error="ping timed out")
    slurm.beat(scheduler=silent)
    there = Partitions(partitions=tuple(Partition(name=name, state="UP", nodes=2, cpus=16) for name in ("main", "gpu")))
    found = said_of_slurm(slurm, there)
    assert (found.grade, found.words) == (Grade.FINE, "native answers; partitions: main, gpu")

    found = said_of_slurm(slurm, Problem(code="scheduler-unavailable", message="Slurm doesn't respond"))
    assert (found.grade, found.words) == (Grade.BROKEN, "native doesn't answer: Slurm doesn't respond")

    found = said_of_slurm(slurm, Problem(code="budget-spent", message="the next partitions may be made in 40 s"))
    assert (found.grade, found.words) == (Grade.NOTE, "native wasn't asked: the next partitions may be made in 40 s")


def test_without_a_question_it_is_what_the_agent_said_last(slurm: DagsterSite) -> None:
    chain = Chain(slurm.home, slurm.site)

    def known(**fields: bool) -> tuple[Grade, str]:
        slurm.beat(scheduler=SchedulerHealth(kind="native", since=0.0, error="ping timed out", **fields))
        assert chain.agents().grade is Grade.FINE
        found = chain.scheduler_as_known()
        return found.grade, found.words

    assert known(responding=False) == (Grade.BROKEN, "native doesn't answer: ping timed out")
    assert known(responding=False, asked=False) == (Grade.FINE, "native")
    assert known(responding=True) == (Grade.FINE, "native")
