"""What people ask of a running node or coordinator on their own machine: a closed table of requests, and one answer.

A request is one JSON object and carries who asks and why; it is carried out, or refused in one sentence, by the process that is
asked, with its own rules. Nothing here opens anything: the socket is proto/control_socket.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator

from proto.frozen import Frozen, explain, parsed

HEX_32_BYTES = r"^[0-9a-f]{64}$"
LONGEST_NAME = 200
LONGEST_REASON = 2_000
LONGEST_ISSUER = 500
LONGEST_SUBJECT = 255  # OpenID Connect Core, section 2
MAX_REQUEST_BYTES = 64 * 1024  # a thousand times a usual one

Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_NAME)]
Why = Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_REASON)]


class ControlError(ValueError):
    """A request that could not be made or understood; one sentence."""


class Proved(Frozen):
    """Who a sign-in provider says that a person is: `subject` at `issuer`, here in the role `role`.

    The app has checked it and claims it; the process that is asked records it as the app's word, beside the user it came from.
    """

    issuer: str = Field(min_length=1, max_length=LONGEST_ISSUER)
    subject: str = Field(min_length=1, max_length=LONGEST_SUBJECT)
    role: Literal["officer", "operator"]

    @field_validator("issuer", "subject")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("has an unprintable letter")
        return text

    def same_person(self, other: Proved) -> bool:
        """Whether both are one account at one provider."""
        return (self.issuer, self.subject) == (other.issuer, other.subject)

    def fields(self, prefix: str = "") -> dict[str, str]:
        """As an audit record keeps it."""
        shown = {"signed in at": self.issuer, "subject": self.subject, "role": self.role}
        return {prefix + name: text for name, text in shown.items()}


class Decision(Frozen):
    """What every request says: who takes the decision, and why. With `proved` the name comes from a sign-in."""

    by: Name
    reason: Why
    proved: Proved | None = None

    @field_validator("by", "reason")
    @classmethod
    def _readable(cls, text: str) -> str:
        if not text:
            raise ValueError("is empty: a decision is recorded with a name and a reason")
        if not text.isprintable():
            raise ValueError("has a line break or another unprintable letter")
        return text


class Approve(Decision):
    """Agree to exactly this plan under a cap; without an epsilon the cap of the node's configuration."""

    action: Literal["approve"] = "approve"
    plan: str = Field(pattern=HEX_32_BYTES)  # digest of what the person has read
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    delta: float | None = Field(default=None, gt=0, lt=1)
    confirmed_by: Name = ""  # the second person, where the cap rises
    accept_no_guarantee: bool = False
    data_is_public: bool = False

    @model_validator(mode="after")
    def _no_typed_second_name(self) -> Approve:
        if self.proved is not None and self.confirmed_by:
            raise ValueError("a second person confirms in a sign-in of their own: a typed name is not accepted")
        return self


class Confirm(Decision):
    """The second person's yes to an approval that raises the cap, in a sign-in of their own."""

    action: Literal["confirm"] = "confirm"
    proposal: str = Field(pattern=HEX_32_BYTES)  # digest of the first person's record in the audit log


class Decline(Decision):
    """Say no to this plan, or take an approval of it back."""

    action: Literal["decline"] = "decline"
    plan: str = Field(pattern=HEX_32_BYTES)


class Pause(Decision):
    """At a node: train and release nothing. At a coordinator: open no further round."""

    action: Literal["pause"] = "pause"


class Resume(Decision):
    """Go on after a pause."""

    action: Literal["resume"] = "resume"


class WriteReport(Decision):
    """At a node: write the next privacy report, sign it and keep it. It decides nothing, and is recorded as a decision is."""

    action: Literal["write-report"] = "write-report"


class Leave(Decision):
    """At a node: end the round under way, say goodbye and stop."""

    action: Literal["leave"] = "leave"


class Abort(Decision):
    """At a coordinator: end this round without a sum."""

    action: Literal["abort"] = "abort"
    round: int = Field(ge=1)


NodeRequest: TypeAlias = Approve | Confirm | Decline | Pause | Resume | WriteReport | Leave
CoordinatorRequest: TypeAlias = Pause | Resume | Abort
Request: TypeAlias = NodeRequest | CoordinatorRequest

Asked = TypeVar("Asked", bound=Frozen)

_AT_NODE: TypeAdapter[NodeRequest] = TypeAdapter(Annotated[NodeRequest, Field(discriminator="action")])
_AT_COORDINATOR: TypeAdapter[CoordinatorRequest] = TypeAdapter(Annotated[CoordinatorRequest, Field(discriminator="action")])


class Answer(Frozen):
    """Whether it was done, and a sentence for the person who asked."""

    done: bool
    sentence: str


def node_request(data: bytes) -> NodeRequest:
    """A request to a node. Raises ControlError."""
    try:
        return _AT_NODE.validate_json(data)
    except ValidationError as error:
        raise ControlError(explain(error, "the request")) from error


def coordinator_request(data: bytes) -> CoordinatorRequest:
    """A request to a coordinator. Raises ControlError."""
    try:
        return _AT_COORDINATOR.validate_json(data)
    except ValidationError as error:
        raise ControlError(explain(error, "the request")) from error


def decision(kind: type[Asked], **fields: object) -> Asked:
    """A request made here. Raises ControlError."""
    return parsed(kind, fields, "this decision", ControlError)
