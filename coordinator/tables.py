"""Tables of the coordinator's store, for SQLite and PostgreSQL alike.

Facts only: what happened, when, and how many bytes. Epsilon, means and charts are computed from them elsewhere. Times
are seconds since 1970 (UTC); names of parties are certificate URIs; digests are hexadecimal. Whoever changes a table here
raises SCHEMA_VERSION and adds a step to migrations.py.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint

SCHEMA_VERSION = 4

metadata = MetaData()

documents = Table(  # plan, layout, resolved configuration, what the run waits for
    "documents",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

counters = Table(  # schema, revision (bumped by every transaction), epoch (bumped by every start)
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("cohort", JSON, nullable=False),
    Column("survivors", JSON, nullable=False),
    Column("dropped", JSON, nullable=False),
    Column("model_digest", String(64)),
    Column("reason", Text, nullable=False),
)

sessions = Table(  # one row for each masking session, written before its first order is sent
    "sessions",
    metadata,
    Column("session", String(32), primary_key=True),  # the key makes a second use fail
    Column("round", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # open, masking, opened, aborted
    Column("roster", JSON, nullable=False),
    Column("survivors", JSON, nullable=False),
    Column("sum_digest", String(64)),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

session_outlines = Table(  # of the open session: what the engine decided (coordinator/journal.py); deleted when it ends
    "session_outlines",
    metadata,
    Column("session", String(32), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

session_messages = Table(  # of the open session: every message that was taken, in order; deleted when it ends
    "session_messages",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("session", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("party", String(512), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("session", "kind", "party"),
)

phase_times = Table(
    "phase_times",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("seconds", Float, nullable=False),
)

traffic = Table(
    "traffic",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("party", String(512), primary_key=True),
    Column("direction", String(4), primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
)

scores = Table(
    "scores",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("evaluator", String(512), primary_key=True),
    Column("label", String(128), primary_key=True),
    Column("position", Integer, nullable=False),  # order of the labels as measured
    Column("per_case", JSON, nullable=False),
)

validations = Table(  # means over the hospitals' validation patients, as opened with noise on them
    "validations",
    metadata,
    Column("round", Integer, primary_key=True),  # in which the sums rode
    Column("label", String(128), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("model_round", Integer, nullable=False),  # round of the model that was measured; 0: the start
    Column("hospitals", Integer, nullable=False),  # in the sum
    Column("mean", Float),  # NULL: the noisy count is too near to 0 to divide by it
    Column("standard_error", Float),  # of the noise alone
    Column("patients", Float, nullable=False),  # noisy count
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("round", Integer, nullable=False),
    Column("party", String(512), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("text", Text, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("uri", String(512), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("last_seen_at", Float),
    Column("phase", String(16), nullable=False),
    Column("code", String(64), nullable=False),
)

models = Table(  # round 0 is the public start
    "models",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)

means = Table(  # what a round opened, for replay; the values are models/<digest>.mean.f32 of the state folder
    "means",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
)

round_log = Table(  # the transparency log of rounds (proto/roundlog.py); rows are only ever added
    "round_log",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("plan", String(64), nullable=False),
    Column("round", Integer, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("session", String(32), nullable=False),  # empty where the round had none
    Column("base", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("sum_digest", String(64), nullable=False),  # empty where nothing was opened
    Column("survivors", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("head", String(64), nullable=False),
)
