"""Condition types and reasons: documented constants that users, tests and GitOps health checks rely on."""

from __future__ import annotations

# Condition types -----------------------------------------------------------------------------------------------------
READY = "Ready"  # accepted and either running or complete
RECONCILING = "Reconciling"  # abnormal-true (kstatus): not accepted yet, or between two states
STALLED = "Stalled"  # abnormal-true (kstatus): a person must act
SUSPENDED = "Suspended"  # nothing runs, as spec.suspend demands
COMPLETE = "Complete"  # terminal: there is a result
FAILED = "Failed"  # terminal: there is none
CONSTRAINTS_MET = "ConstraintsMet"  # the result keeps every constraint
COMPRESSED = "Compressed"  # something measured is smaller or faster than the dense model
PORTABLE = "Portable"  # the artifact holds a program that needs no training script
ARTIFACT_AVAILABLE = "ArtifactAvailable"  # the files are in the store
CODE_CHANGED = "CodeChanged"  # trials of one sweep ran different code

# Reasons -------------------------------------------------------------------------------------------------------------
PENDING = "Pending"  # nothing was started yet
QUEUED = "Queued"  # the child Job waits until a queue admits it
PODS_REFUSED = "PodsRefused"  # a quota, a policy or a webhook lets no pod be created; the message says which
UNSCHEDULABLE = "Unschedulable"  # no node takes the pod
IMAGE_UNAVAILABLE = "ImageUnavailable"  # the runner's image cannot be pulled
POD_NOT_STARTED = "PodNotStarted"  # the node cannot start the pod: a Secret or a volume is missing, and the like
RUNNING = "Running"  # a child Job runs
RETRYING = "Retrying"  # an attempt was lost; the next one starts or has started
COLLECTING = "Collecting"  # the runner ended without a message; its manifest is being read
SUSPENDED_BY_USER = "SuspendedByUser"  # spec.suspend, the object's own or its sweep's
RESUMED = "Resumed"  # spec.suspend was set back; the next Job goes on from the checkpoint
STOPPED_EARLY = "StoppedEarly"  # spec.earlyStopping of the sweep: it was too far behind
STOPPED_BY_SWEEP = "StoppedBySweep"  # the sweep ended this trial early
SUCCEEDED = "Succeeded"  # there is a result
INVALID_SPEC = "InvalidSpec"  # semantic error found before a start
INVALID_MODEL = "InvalidModel"  # the runner ended with exit code 2
NOT_ON_CLUSTER = "NotOnCluster"  # asks for something that no pod can honour
NAME_CONFLICT = "NameConflict"  # a Job of that name belongs to somebody else
SPEC_TOO_LARGE = "SpecTooLarge"  # the resolved specification does not fit into a pod's annotation
OPERATOR_FAILED = "OperatorFailed"  # the operator fails on this object again and again; the message says with what
FORGED_TRIAL = "ForgedTrial"  # names a sweep as its controller, and the sweep has not created it
BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"  # more attempts failed than backoffLimit allows
TOO_MANY_DISRUPTIONS = "TooManyDisruptions"  # more attempts were lost than maxDisruptions allows
DEADLINE_EXCEEDED = "DeadlineExceeded"  # it ran longer than activeDeadlineSeconds
RUNNER_FAILED = "RunnerFailed"  # exit code 1 and anything not named otherwise
RUNNER_OOM_KILLED = "RunnerOOMKilled"  # the runner was killed for memory
RUNNER_DISRUPTED = "RunnerDisrupted"  # eviction, preemption, node gone, `modelpress run` killed
RUNNER_TERMINATED = "RunnerTerminated"  # exit code 143
CONSTRAINTS_SATISFIED = "ConstraintsSatisfied"  # every constraint is met
NO_CONSTRAINTS = "NoConstraints"  # there was nothing to judge
CONSTRAINT_MISSED = "ConstraintMissed"  # at least one is missed; the message says which, and by how much
LATENCY_UNCERTAIN = "LatencyUncertain"  # none is missed, but the spread of a latency leaves at least one open
SMALLER_OR_FASTER = "SmallerOrFaster"  # something measured is smaller or faster than the dense model
NOTHING_SMALLER = "NothingSmallerOrFaster"  # nothing measured is
EXPORTED = "Exported"  # the artifact holds a program
EXPORT_FAILED = "ExportFailed"  # the model could not be exported; the message says why
COMMITTED = "Committed"  # the manifest is written
NOT_FOUND = "NotFound"  # no manifest where one was expected
# Sweeps
PREPARING = "Preparing"  # building the dense model and its baseline
PREPARE_FAILED = "PrepareFailed"  # the dense model could not be built or measured
SUGGESTION_PENDING = "SuggestionPending"  # a runner is asked for the parameters of the next trial
SUGGESTION_FAILED = "SuggestionFailed"  # it cannot say them
SUGGESTED = "Suggested"  # what it says of itself
PUBLISHING = "Publishing"  # the trials are finished; best and report are being written
PUBLISHED = "Published"  # best and report are in the store
PUBLISH_FAILED = "PublishFailed"  # they could not be written; the trials' own files are there
TRIALS_FINISHED = "TrialsFinished"  # maxTrials reached
SPACE_EXHAUSTED = "SearchSpaceExhausted"  # every recipe that the space holds was tried
BUDGET_EXHAUSTED = "BudgetExhausted"  # the budget is used up
TRIAL_REFUSED = "TrialRefused"  # its parameters give an invalid recipe; counts as failed
TOO_MANY_FAILED_TRIALS = "TooManyFailedTrials"  # more trials failed than maxFailedTrials allows
OBJECTIVE_MISSING = "ObjectiveMissing"  # no trial that succeeded reports every objective
NO_RESULT = "NoTrialSucceeded"  # no trial has a result
CODE_UNCHANGED = "CodeUnchanged"  # all trials ran the same code
