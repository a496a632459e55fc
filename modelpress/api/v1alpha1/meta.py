"""Object metadata and conditions, in the shapes of Kubernetes."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .base import ApiModel, Text, Time

JobName = Annotated[str, Field(min_length=1, max_length=52, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
SweepName = Annotated[str, Field(min_length=1, max_length=46, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$")]
LabelKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$",
    ),
]


class OwnerReference(ApiModel):
    """Says whose object this is."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(ApiModel):
    """The metadata that modelpress reads; what only the API server uses passes through untouched."""

    namespace: Namespace = "default"
    labels: dict[LabelKey, LabelValue] | None = None
    annotations: dict[str, str] | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: list[OwnerReference] | None = None
    finalizers: list[str] | None = None
    managed_fields: list[Any] | None = None
    generate_name: str | None = None
    self_link: str | None = None

    def controller_uid(self) -> str | None:
        """The uid of the controlling owner, if there is one."""
        return next((ref.uid for ref in self.owner_references or () if ref.controller), None)


class JobMeta(ObjectMeta):
    """Metadata of a CompressionJob. Services and Indexed Jobs named after it need a DNS-1035 label."""

    name: JobName


class SweepMeta(ObjectMeta):
    """Metadata of a CompressionSweep; its trials' names add 6 characters."""

    name: SweepName


class Condition(ApiModel):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=316)] = Field(description="See the table of conditions.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")] = Field(
        description="See the table of reasons."
    )
    message: Annotated[str, Field(max_length=2048)] = Field(default="", description="A sentence for people.")
    last_transition_time: Time = Field(description="When status last changed.")
    observed_generation: int | None = Field(default=None, description="metadata.generation that it was judged for.")


class Stop(ApiModel):
    """A sweep's order to a trial to end early; set once."""

    reason: Text = Field(description="Why, in a sentence.")
    time: Time = Field(description="When it was ordered.")
