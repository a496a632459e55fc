"""Condition types and reasons: documented constants that users, tests and GitOps health checks rely on."""

from __future__ import annotations

# Condition types -----------------------------------------------------------------------------------------------------
READY = "Ready"  # accepted and either running or complete
RECONCILING = "Reconciling"  # abnormal-true (kstatus): not accepted yet, or between two states
STALLED = "Stalled"  # abnormal-true (kstatus): a person must act
SUSPENDED = "Suspended"
COMPLETE = "Complete"  # terminal: there is a result
FAILED = "Failed"  # terminal: there is none
CONSTRAINTS_MET = "ConstraintsMet"
COMPRESSED = "Compressed"  # something measured is smaller or faster than the dense model
PORTABLE = "Portable"  # the artefact holds a program that needs no training script
ARTIFACT_AVAILABLE = "ArtifactAvailable"
CODE_CHANGED = "CodeChanged"  # trials of one sweep ran different code

# Reasons -------------------------------------------------------------------------------------------------------------
PENDING = "Pending"  # nothing was started yet
RUNNING = "Running"
RETRYING = "Retrying"  # an attempt was lost; the next one starts or has started
COLLECTING = "Collecting"  # the runner ended without a message; its manifest is being read
SUSPENDED_BY_USER = "SuspendedByUser"  # spec.suspend, the object's own or its sweep's
RESUMED = "Resumed"
STOPPED_BY_SWEEP = "StoppedBySweep"
SUCCEEDED = "Succeeded"
INVALID_SPEC = "InvalidSpec"  # semantic error found before a start
INVALID_MODEL = "InvalidModel"  # the runner ended with exit code 2
NOT_ON_CLUSTER = "NotOnCluster"  # asks for something that no pod can honour
NAME_CONFLICT = "NameConflict"  # a Job of that name belongs to somebody else
SPEC_TOO_LARGE = "SpecTooLarge"
BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
TOO_MANY_DISRUPTIONS = "TooManyDisruptions"
DEADLINE_EXCEEDED = "DeadlineExceeded"
RUNNER_FAILED = "RunnerFailed"  # exit code 1 and anything not named otherwise
RUNNER_OOM_KILLED = "RunnerOOMKilled"
RUNNER_DISRUPTED = "RunnerDisrupted"  # eviction, preemption, node gone, shell killed
RUNNER_TERMINATED = "RunnerTerminated"  # exit code 143
CONSTRAINTS_SATISFIED = "ConstraintsSatisfied"
NO_CONSTRAINTS = "NoConstraints"
CONSTRAINT_MISSED = "ConstraintMissed"
SMALLER_OR_FASTER = "SmallerOrFaster"
NOTHING_SMALLER = "NothingSmallerOrFaster"
EXPORTED = "Exported"
EXPORT_FAILED = "ExportFailed"
COMMITTED = "Committed"  # the manifest is written
NOT_FOUND = "NotFound"  # no manifest where one was expected
# Sweeps
PREPARING = "Preparing"  # building the dense model and its baseline
PREPARE_FAILED = "PrepareFailed"
PUBLISHING = "Publishing"
PUBLISHED = "Published"
PUBLISH_FAILED = "PublishFailed"
TRIALS_FINISHED = "TrialsFinished"  # maxTrials reached
SPACE_EXHAUSTED = "SearchSpaceExhausted"
BUDGET_EXHAUSTED = "BudgetExhausted"
TRIAL_REFUSED = "TrialRefused"  # its parameters give an invalid recipe; counts as failed
TOO_MANY_FAILED_TRIALS = "TooManyFailedTrials"
NO_RESULT = "NoTrialSucceeded"
CODE_UNCHANGED = "CodeUnchanged"
