// A job's states in five kinds, which have a colour and a mark each.

const KINDS = {
  ACCEPTED: "waiting",
  STAGING: "waiting",
  SUBMITTING: "waiting",
  PENDING: "waiting",
  RUNNING: "running",
  COMPLETING: "running",
  COMPLETED: "completed",
  CANCELLED: "cancelled",
};

export const ALL_KINDS = ["waiting", "running", "completed", "failed", "cancelled"];

export const kindOf = (state) => KINDS[state] ?? "failed";

/** What stands in the table. */
export function stateWord(job) {
  if (job.cancelling) return `${job.state} · ending`;
  return (job.word ?? job.state).replaceAll("_", " ");
}
