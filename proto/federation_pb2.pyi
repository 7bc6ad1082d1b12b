from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RenewRequest(_message.Message):
    __slots__ = ("request", "succession")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SUCCESSION_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    succession: bytes
    def __init__(self, request: _Optional[bytes] = ..., succession: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class IdentifyRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class IdentifyReply(_message.Message):
    __slots__ = ("protocol_version", "software_version", "identity", "key_sha256", "refusal", "time_s")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    software_version: str
    identity: str
    key_sha256: bytes
    refusal: str
    time_s: float
    def __init__(self, protocol_version: _Optional[int] = ..., software_version: _Optional[str] = ..., identity: _Optional[str] = ..., key_sha256: _Optional[bytes] = ..., refusal: _Optional[str] = ..., time_s: _Optional[float] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "software_version")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    software_version: str
    def __init__(self, protocol_version: _Optional[int] = ..., software_version: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("protocol_version", "software_version", "identity", "plan", "rounds_done", "log", "polls_say")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    POLLS_SAY_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    software_version: str
    identity: str
    plan: bytes
    rounds_done: int
    log: LogState
    polls_say: bool
    def __init__(self, protocol_version: _Optional[int] = ..., software_version: _Optional[str] = ..., identity: _Optional[str] = ..., plan: _Optional[bytes] = ..., rounds_done: _Optional[int] = ..., log: _Optional[_Union[LogState, _Mapping]] = ..., polls_say: _Optional[bool] = ...) -> None: ...

class LogState(_message.Message):
    __slots__ = ("entries", "head")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    entries: int
    head: bytes
    def __init__(self, entries: _Optional[int] = ..., head: _Optional[bytes] = ...) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class LogPage(_message.Message):
    __slots__ = ("entries", "state")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    state: LogState
    def __init__(self, entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., state: _Optional[_Union[LogState, _Mapping]] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("index", "plan_digest", "round", "state", "session", "base_digest", "model_digest", "sum_digest", "survivors", "previous", "head")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUM_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    index: int
    plan_digest: bytes
    round: int
    state: str
    session: bytes
    base_digest: bytes
    model_digest: bytes
    sum_digest: bytes
    survivors: _containers.RepeatedScalarFieldContainer[str]
    previous: bytes
    head: bytes
    def __init__(self, index: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., state: _Optional[str] = ..., session: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ..., sum_digest: _Optional[bytes] = ..., survivors: _Optional[_Iterable[str]] = ..., previous: _Optional[bytes] = ..., head: _Optional[bytes] = ...) -> None: ...

class PollRequest(_message.Message):
    __slots__ = ("done", "answer", "report")
    DONE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    done: int
    answer: PhaseAnswer
    report: NodeReport
    def __init__(self, done: _Optional[int] = ..., answer: _Optional[_Union[PhaseAnswer, _Mapping]] = ..., report: _Optional[_Union[NodeReport, _Mapping]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("id", "wait", "train", "open", "share", "mask", "confirm", "reveal", "result", "evaluate", "finished")
    ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    id: int
    wait: Wait
    train: Train
    open: Open
    share: Share
    mask: Mask
    confirm: Confirm
    reveal: Reveal
    result: RoundResult
    evaluate: Evaluate
    finished: Finished
    def __init__(self, id: _Optional[int] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., train: _Optional[_Union[Train, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., share: _Optional[_Union[Share, _Mapping]] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., confirm: _Optional[_Union[Confirm, _Mapping]] = ..., reveal: _Optional[_Union[Reveal, _Mapping]] = ..., result: _Optional[_Union[RoundResult, _Mapping]] = ..., evaluate: _Optional[_Union[Evaluate, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Train(_message.Message):
    __slots__ = ("round", "base_digest", "base_bytes", "anew", "log")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANEW_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    round: int
    base_digest: bytes
    base_bytes: int
    anew: bool
    log: LogState
    def __init__(self, round: _Optional[int] = ..., base_digest: _Optional[bytes] = ..., base_bytes: _Optional[int] = ..., anew: _Optional[bool] = ..., log: _Optional[_Union[LogState, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "round", "members", "log_head")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LOG_HEAD_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    round: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    log_head: bytes
    def __init__(self, session: _Optional[bytes] = ..., round: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., log_head: _Optional[bytes] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("uri", "public_key", "weight", "base_digest", "successions")
    URI_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUCCESSIONS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    public_key: bytes
    weight: int
    base_digest: bytes
    successions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, uri: _Optional[str] = ..., public_key: _Optional[bytes] = ..., weight: _Optional[int] = ..., base_digest: _Optional[bytes] = ..., successions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("session", "adverts")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ADVERTS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    adverts: _containers.RepeatedCompositeFieldContainer[Advert]
    def __init__(self, session: _Optional[bytes] = ..., adverts: _Optional[_Iterable[_Union[Advert, _Mapping]]] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("session", "sets", "received_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SETS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sets: _containers.RepeatedCompositeFieldContainer[ShareSet]
    received_bytes: int
    def __init__(self, session: _Optional[bytes] = ..., sets: _Optional[_Iterable[_Union[ShareSet, _Mapping]]] = ..., received_bytes: _Optional[int] = ...) -> None: ...

class Confirm(_message.Message):
    __slots__ = ("session", "survivors", "seals")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    SEALS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    survivors: _containers.RepeatedScalarFieldContainer[str]
    seals: _containers.RepeatedCompositeFieldContainer[Seal]
    def __init__(self, session: _Optional[bytes] = ..., survivors: _Optional[_Iterable[str]] = ..., seals: _Optional[_Iterable[_Union[Seal, _Mapping]]] = ...) -> None: ...

class Reveal(_message.Message):
    __slots__ = ("session", "confirmations")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATIONS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    confirmations: _containers.RepeatedCompositeFieldContainer[Confirmation]
    def __init__(self, session: _Optional[bytes] = ..., confirmations: _Optional[_Iterable[_Union[Confirmation, _Mapping]]] = ...) -> None: ...

class RoundResult(_message.Message):
    __slots__ = ("round", "session", "survivors", "sum_digest", "model_digest", "opened", "reason", "entry", "log")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    SUM_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    round: int
    session: bytes
    survivors: _containers.RepeatedScalarFieldContainer[str]
    sum_digest: bytes
    model_digest: bytes
    opened: bool
    reason: str
    entry: LogEntry
    log: LogState
    def __init__(self, round: _Optional[int] = ..., session: _Optional[bytes] = ..., survivors: _Optional[_Iterable[str]] = ..., sum_digest: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ..., opened: _Optional[bool] = ..., reason: _Optional[str] = ..., entry: _Optional[_Union[LogEntry, _Mapping]] = ..., log: _Optional[_Union[LogState, _Mapping]] = ...) -> None: ...

class Evaluate(_message.Message):
    __slots__ = ("round", "model_digest", "model_bytes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    round: int
    model_digest: bytes
    model_bytes: int
    def __init__(self, round: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., model_bytes: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Advert(_message.Message):
    __slots__ = ("party", "seal_key", "mask_key", "seed_commitment", "signature", "neighbours", "noise_commitments")
    PARTY_FIELD_NUMBER: _ClassVar[int]
    SEAL_KEY_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    NOISE_COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    party: str
    seal_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes
    neighbours: _containers.RepeatedScalarFieldContainer[int]
    noise_commitments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, party: _Optional[str] = ..., seal_key: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., seed_commitment: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., neighbours: _Optional[_Iterable[int]] = ..., noise_commitments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShareSet(_message.Message):
    __slots__ = ("party", "boxes", "digests", "signature", "summary")
    PARTY_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    party: str
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    digests: _containers.RepeatedCompositeFieldContainer[BoxDigest]
    signature: bytes
    summary: bytes
    def __init__(self, party: _Optional[str] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., digests: _Optional[_Iterable[_Union[BoxDigest, _Mapping]]] = ..., signature: _Optional[bytes] = ..., summary: _Optional[bytes] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("receiver", "sealed")
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    receiver: str
    sealed: bytes
    def __init__(self, receiver: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class BoxDigest(_message.Message):
    __slots__ = ("receiver", "digest")
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    receiver: str
    digest: bytes
    def __init__(self, receiver: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Seal(_message.Message):
    __slots__ = ("party", "digest", "signature")
    PARTY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    party: str
    digest: bytes
    signature: bytes
    def __init__(self, party: _Optional[str] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("party", "signature")
    PARTY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    party: str
    signature: bytes
    def __init__(self, party: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RevealedShares(_message.Message):
    __slots__ = ("shares",)
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[RevealedShare]
    def __init__(self, shares: _Optional[_Iterable[_Union[RevealedShare, _Mapping]]] = ...) -> None: ...

class RevealedShare(_message.Message):
    __slots__ = ("peer", "self_mask_seed", "mask_key", "noise")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SELF_MASK_SEED_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    self_mask_seed: bytes
    mask_key: bytes
    noise: bytes
    def __init__(self, peer: _Optional[str] = ..., self_mask_seed: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., noise: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "detail", "culprit")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    CULPRIT_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    culprit: str
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., culprit: _Optional[str] = ...) -> None: ...

class PhaseAnswer(_message.Message):
    __slots__ = ("session", "advert", "shares", "confirmation", "revealed", "refusal")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ADVERT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    REVEALED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    advert: Advert
    shares: ShareSet
    confirmation: Confirmation
    revealed: RevealedShares
    refusal: Refusal
    def __init__(self, session: _Optional[bytes] = ..., advert: _Optional[_Union[Advert, _Mapping]] = ..., shares: _Optional[_Union[ShareSet, _Mapping]] = ..., confirmation: _Optional[_Union[Confirmation, _Mapping]] = ..., revealed: _Optional[_Union[RevealedShares, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("header", "words", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    words: bytes
    trailer: UploadTrailer
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., words: _Optional[bytes] = ..., trailer: _Optional[_Union[UploadTrailer, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("session", "total_bytes", "receipt", "offset_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    total_bytes: int
    receipt: bytes
    offset_bytes: int
    def __init__(self, session: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., receipt: _Optional[bytes] = ..., offset_bytes: _Optional[int] = ...) -> None: ...

class UploadTrailer(_message.Message):
    __slots__ = ("digest", "signature")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    signature: bytes
    def __init__(self, digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("round", "state", "base_digest", "code")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[NodeReport.State]
        TRAINING: _ClassVar[NodeReport.State]
        READY: _ClassVar[NodeReport.State]
        DECLINED: _ClassVar[NodeReport.State]
        FAILED: _ClassVar[NodeReport.State]
        LEFT: _ClassVar[NodeReport.State]
        MEASURING: _ClassVar[NodeReport.State]
    STATE_UNSPECIFIED: NodeReport.State
    TRAINING: NodeReport.State
    READY: NodeReport.State
    DECLINED: NodeReport.State
    FAILED: NodeReport.State
    LEFT: NodeReport.State
    MEASURING: NodeReport.State
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    round: int
    state: NodeReport.State
    base_digest: bytes
    code: str
    def __init__(self, round: _Optional[int] = ..., state: _Optional[_Union[NodeReport.State, str]] = ..., base_digest: _Optional[bytes] = ..., code: _Optional[str] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("round", "model_digest", "scores")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    round: int
    model_digest: bytes
    scores: _containers.RepeatedCompositeFieldContainer[LabelScore]
    def __init__(self, round: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., scores: _Optional[_Iterable[_Union[LabelScore, _Mapping]]] = ...) -> None: ...

class LabelScore(_message.Message):
    __slots__ = ("label", "per_case")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PER_CASE_FIELD_NUMBER: _ClassVar[int]
    label: str
    per_case: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, label: _Optional[str] = ..., per_case: _Optional[_Iterable[float]] = ...) -> None: ...
