"""How a cluster runs the pods of a job."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .base import ApiModel, Cel, cel_exactly_one, exactly_one, plain_text
from .code import SecretReference
from .meta import LabelKey, LabelValue, ObjectName

GPU = "nvidia.com/gpu"
MAX_NODES = 256  # a Job's name, `-` and the last index make a hostname of at most 63 characters


# A quantity as Kubernetes counts: 2, "500m", 16Gi. The API server takes integers and texts, and so do we.
Quantity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True, "minimum": 0},
    ),
    BeforeValidator(plain_text),
]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Quantities = Annotated[dict[LabelKey, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """What the container asks for, by resource: cpu, memory, ephemeral-storage or a device plugin's name."""

    requests: Quantities | None = Field(default=None, description="What the scheduler sets aside; none: the limits.")
    limits: Quantities | None = Field(default=None, description="What it may use at most.")


class ResourceClaim(ApiModel):
    """A device by dynamic resource allocation; exactly one of the two names."""

    name: DnsLabel = Field(description="Within the pod.")
    resource_claim_name: ObjectName | None = Field(default=None, description="A ResourceClaim that exists.")
    resource_claim_template_name: ObjectName | None = Field(
        default=None, description="A ResourceClaimTemplate; every pod gets a claim of its own."
    )

    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one("resourceClaimName", "resourceClaimTemplateName"),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "resource_claim_name", "resource_claim_template_name")
        return self


class Toleration(ApiModel):
    """A taint of nodes that the pod tolerates."""

    key: LabelKey | None = Field(default=None, description="Of the taint; none, with operator Exists: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Equal compares the value.")
    value: LabelValue | None = Field(default=None, description="Of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="None: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="With NoExecute: how long the pod stays."
    )


class PodTemplateMetadata(ApiModel):
    """Labels and annotations of the pod; those of modelpress itself cannot be replaced."""

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = Field(
        default=None, description="Added to the pod's."
    )
    annotations: Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = Field(
        default=None, description="Added to the pod's."
    )


class PodTemplate(ApiModel):
    """What else the pod should have, in Kubernetes' own words."""

    metadata: PodTemplateMetadata | None = None
    spec: dict[str, Any] | None = Field(
        default=None,
        max_length=64,
        description="A PodSpec, merged as `kubectl patch --type=strategic` does; the container to change is called "
        "`runner`. It can neither replace what runs nor lower the security below PodSecurity `restricted`.",
    )


class Runner(ApiModel):
    """How a cluster runs the pods. A local run uses the machine as it is, but for numbers of processes and GPUs."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")] | None = (
        Field(
            default=None,
            description="Holds modelpress[runner], and the code where `code` names none. None: the operator's default.",
        )
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="None: Kubernetes' own rule."
    )
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=16)] | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description=f"{GPU} of each pod; devices of others go into resources.limits or resourceClaims."
    )
    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = Field(
        default=1,
        description="Pods that train one model together, one process or more in each; a local run starts all of their "
        "processes on the one machine.",
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Processes that train together in each pod, as a rule one for each of its GPUs."
    )
    launcher: Literal["torchrun", "deepspeed"] = Field(
        default="torchrun", description="What starts the processes and gives each its rank."
    )
    resources: Resources | None = None
    max_memory: Quantity | None = Field(
        default=None,
        description="An attempt that is killed for memory is made again once with twice `resources.limits.memory`, at "
        "most this; it does not count against backoffLimit. None: it counts, and nothing is raised.",
    )
    resource_claims: Annotated[list[ResourceClaim], Field(max_length=16)] | None = None
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = Field(
        default=None, description="Labels of the nodes that will do."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    priority_class_name: ObjectName | None = Field(default=None, description="Of the pod.")
    runtime_class_name: ObjectName | None = Field(default=None, description="Of the pod.")
    service_account_name: ObjectName | None = Field(
        default=None,
        description="For workload identity; its token for the API server is not mounted. None: the operator's default.",
    )
    queue_name: DnsLabel | None = Field(
        default=None, description="A LocalQueue of Kueue. Jobs then begin suspended, and Kueue starts them."
    )
    pod_template: PodTemplate | None = None

    @property
    def processes(self) -> int:
        """How many processes train one model together."""
        return self.nodes * self.processes_per_node
