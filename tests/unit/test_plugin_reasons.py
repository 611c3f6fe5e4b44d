"""Why jobs wait, in plain words: every reason that Slurm has."""

from __future__ import annotations

import pytest

from dagster_slurmbus.reasons import REASONS, SHOWN_STATES, explain, explain_state

NAMES = """
Priority Dependency Resources PartitionNodeLimit PartitionTimeLimit PartitionDown PartitionInactive JobHeldAdmin
BeginTime Licenses AssociationJobLimit AssociationResourceLimit AssociationTimeLimit Reservation ReqNodeNotAvail
JobHeldUser NvidiaImexChannels SchedDefer NodeDown BadConstraints SystemFailure JobLaunchFailure NonZeroExitCode
TimeLimit InactiveLimit InvalidAccount InvalidQOS QOSUsageThreshold QOSJobLimit QOSResourceLimit QOSTimeLimit
RaisedSignal Cleaning Prolog QOSNotAllowed AccountNotAllowed DependencyNeverSatisfied QOSGrpCpuLimit
QOSGrpCPUMinutesLimit QOSGrpCPURunMinutesLimit QOSGrpJobsLimit QOSGrpMemLimit QOSGrpNodeLimit QOSGrpSubmitJobsLimit
QOSGrpWallLimit QOSMaxCpuPerJobLimit QOSMaxCpuMinutesPerJobLimit QOSMaxNodePerJobLimit QOSMaxWallDurationPerJobLimit
QOSMaxCpuPerUserLimit QOSMaxJobsPerUserLimit QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit
QOSMinCpuNotSatisfied AssocGrpCpuLimit AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit AssocGrpJobsLimit
AssocGrpMemLimit AssocGrpNodeLimit AssocGrpSubmitJobsLimit AssocGrpWallLimit AssocMaxJobsLimit
AssocMaxCpuPerJobLimit AssocMaxCpuMinutesPerJobLimit AssocMaxNodePerJobLimit AssocMaxWallDurationPerJobLimit
AssocMaxSubmitJobLimit JobHoldMaxRequeue JobArrayTaskLimit BurstBufferResources BurstBufferStageIn
BurstBufferOperation AssocGrpUnknown AssocGrpUnknownMinutes AssocGrpUnknownRunMinutes AssocMaxUnknownPerJob
AssocMaxUnknownPerNode AssocMaxUnknownMinutesPerJob AssocMaxCpuPerNode AssocGrpMemMinutes AssocGrpMemRunMinutes
AssocMaxMemPerJob AssocMaxMemPerNode AssocMaxMemMinutesPerJob AssocGrpNodeMinutes AssocGrpNodeRunMinutes
AssocMaxNodeMinutesPerJob AssocGrpEnergy AssocGrpEnergyMinutes AssocGrpEnergyRunMinutes AssocMaxEnergyPerJob
AssocMaxEnergyPerNode AssocMaxEnergyMinutesPerJob AssocGrpGRES AssocGrpGRESMinutes AssocGrpGRESRunMinutes
AssocMaxGRESPerJob AssocMaxGRESPerNode AssocMaxGRESMinutesPerJob AssocGrpLicense AssocGrpLicenseMinutes
AssocGrpLicenseRunMinutes AssocMaxLicensePerJob AssocMaxLicenseMinutesPerJob AssocGrpBB AssocGrpBBMinutes
AssocGrpBBRunMinutes AssocMaxBBPerJob AssocMaxBBPerNode AssocMaxBBMinutesPerJob QOSGrpUnknown QOSGrpUnknownMinutes
QOSGrpUnknownRunMinutes QOSMaxUnknownPerJob QOSMaxUnknownPerNode QOSMaxUnknownPerUser QOSMaxUnknownMinutesPerJob
QOSMinUnknown QOSMaxCpuPerNode QOSGrpMemoryMinutes QOSGrpMemoryRunMinutes QOSMaxMemoryMinutesPerJob
QOSMaxMemoryPerJob QOSMaxMemoryPerNode QOSMaxMemoryPerUser QOSMinMemory QOSGrpEnergy QOSGrpEnergyMinutes
QOSGrpEnergyRunMinutes QOSMaxEnergyPerJob QOSMaxEnergyPerNode QOSMaxEnergyPerUser QOSMaxEnergyMinutesPerJob
QOSMinEnergy QOSGrpNodeMinutes QOSGrpNodeRunMinutes QOSMaxNodeMinutesPerJob QOSMinNode QOSGrpGRES QOSGrpGRESMinutes
QOSGrpGRESRunMinutes QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxGRESPerUser QOSMaxGRESMinutesPerJob QOSMinGRES
QOSGrpLicense QOSGrpLicenseMinutes QOSGrpLicenseRunMinutes QOSMaxLicensePerJob QOSMaxLicensePerUser
QOSMaxLicenseMinutesPerJob QOSMinLicense QOSGrpBB QOSGrpBBMinutes QOSGrpBBRunMinutes QOSMaxBBPerJob QOSMaxBBPerNode
QOSMaxBBPerUser QOSMinBB DeadLine MaxBBPerAccount MaxCpuPerAccount MaxEnergyPerAccount MaxGRESPerAccount
MaxNodePerAccount MaxLicensePerAccount MaxMemoryPerAccount MaxUnknownPerAccount MaxJobsPerAccount
MaxSubmitJobsPerAccount PartitionConfig AccountingPolicy FedJobLock OutOfMemory MaxMemPerLimit AssocGrpBilling
AssocGrpBillingMinutes AssocGrpBillingRunMinutes AssocMaxBillingPerJob AssocMaxBillingPerNode
AssocMaxBillingMinutesPerJob QOSGrpBilling QOSGrpBillingMinutes QOSGrpBillingRunMinutes QOSMaxBillingPerJob
QOSMaxBillingPerNode QOSMaxBillingPerUser QOSMaxBillingMinutesPerJob MaxBillingPerAccount QOSMinBilling
ReservationDeleted ReservationInvalid Constraints MaxBBRunMinsPerAccount MaxBillingRunMinsPerAccount
MaxCpuRunMinsPerAccount MaxEnergyRunMinsPerAccount MaxGRESRunMinsPerAccount MaxNodeRunMinsPerAccount
MaxLicenseRunMinsPerAccount MaxMemoryRunMinsPerAccount MaxUnknownRunMinsPerAccount MaxBBRunMinsPerUser
MaxBillingRunMinsPerUser MaxCpuRunMinsPerUser MaxEnergyRunMinsPerUser MaxGRESRunMinsPerUser MaxNodeRunMinsPerUser
MaxLicenseRunMinsPerUser MaxMemoryRunMinsPerUser MaxUnknownRunMinsPerUser MaxPoweredUpNodes MpiPortsBusy
"""
"""All that slurm_job_state_reason_string of Slurm 26.05 gives; tests/integration compares them with the cluster's."""


@pytest.mark.parametrize("name", NAMES.split())
def test_every_reason_has_a_sentence(name: str) -> None:
    found = explain(name)
    assert found is not None, name
    assert found.why[0].islower()
    assert not found.why.endswith(".")
    assert found.advice or not found.stuck, "who is stuck must hear what to do"
    found.advice.format(job=17)


def test_every_shown_state_has_one() -> None:
    for reason in (*SHOWN_STATES.values(), *REASONS.values()):
        assert reason.advice.format(job=17) or not reason.stuck


@pytest.mark.parametrize(
    ("reason", "why", "stuck"),
    [
        ("ReqNodeNotAvail, UnavailableNodes:c[1-2]", "nodes that it needs are down, drained or reserved", False),
        ("ReqNodeNotAvail(Unavailable:c1)", "nodes that it needs are down, drained or reserved", False),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            "nodes that it needs are down, drained or reserved",
            False,
        ),
        ("launch failed requeued held", "it couldn't be launched on its nodes, was put back and is held", True),
        ("QOSMaxCpuPerUserLimit", "you have all the CPUs in use that its QOS allows", False),
        ("QOSMaxJobsPerUserLimit", "you have all the jobs in use that its QOS allows", False),
        ("MaxJobsPerAccount", "its account has all the jobs in use that its QOS allows", False),
        (
            "AssocGrpCPURunMinutesLimit",
            "the jobs of its account together use all the minutes of CPUs that they may",
            False,
        ),
        ("AssocMaxMemPerNode", "it asks for more memory on one node than its account allows one job", True),
        ("QOSMaxWallDurationPerJobLimit", "it asks for more time than its QOS allows one job", True),
        ("QOSMinGRES", "it asks for less than its QOS wants of GPUs or other generic resources", True),
        (
            "MaxGRESPerAccount",
            "its account has all the GPUs or other generic resources in use that its QOS allows",
            False,
        ),
    ],
)
def test_some_of_them(reason: str, why: str, stuck: bool) -> None:
    found = explain(reason)
    assert found is not None
    assert (found.why, found.stuck) == (why, stuck)


@pytest.mark.parametrize("reason", ["SomethingNew", "", "QOSMaxFooPerUser"])
def test_what_nobody_has_heard_of_stays_as_it_is(reason: str) -> None:
    assert explain(reason) is None


def test_of_several_states_the_one_that_needs_somebody_counts() -> None:
    found = explain_state("PENDING REQUEUED REQUEUE_HOLD")
    assert found is SHOWN_STATES["REQUEUE_HOLD"]
    assert explain_state("RUNNING") is None
