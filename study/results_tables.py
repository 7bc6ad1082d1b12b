"""Tables of a study's results: facts only; means, intervals and figures are computed from them by study/bench/report.py.

Times are seconds since 1970 (UTC), durations seconds, sizes bytes. NULL epsilon: no guarantee. Cells stay when a study file
no longer lists them (`position` NULL), so that work is never lost to an edit.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKey, Integer, MetaData, String, Table, Text

SCHEMA_VERSION = 1

metadata = MetaData()

counters = Table(  # schema, revision (bumped by every transaction)
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

studies = Table(
    "studies",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("task", String(256), nullable=False),
    Column("metric", String(64), nullable=False),  # what the scores are: Dice, accuracy
    Column("honesty", Text, nullable=False),  # whose data were used, and what that means for the budget
    Column("source", Text, nullable=False),  # the study file as written
)

cells = Table(
    "cells",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("study", String(64), ForeignKey("studies.name"), nullable=False),
    Column("position", Integer),  # in the study file; NULL: no longer listed
    Column("method", String(16), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("data_kind", String(16), nullable=False),
    Column("settings", JSON, nullable=False),  # what the study file varied
    Column("content", Text, nullable=False),  # the whole cell, as JSON
    Column("state", String(16), nullable=False),  # planned, running, done, failed
    Column("reason", Text, nullable=False),  # why, where failed
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("wall_s", Float),
    Column("cpu_s", Float),
    Column("epsilon", Float),
    Column("delta", Float),
    Column("noise_multiplier", Float),
    Column("upload_bytes", BigInteger),
    Column("download_bytes", BigInteger),
    Column("vector_length", BigInteger),
    Column("plan_digest", String(64)),
    Column("hospitals", JSON),  # name -> patients
    Column("clipped", BigInteger),
    Column("software", String(64)),  # version that ran it
)

readings = Table(  # files of earlier versions have none
    "readings",
    metadata,
    Column("cell", String(32), ForeignKey("cells.id"), primary_key=True),
    Column("at_default", Float),  # epsilon at the product's default delta
    Column("outsider", Float),  # of shared noise, against whoever knows no share
    Column("outsider_at_default", Float),
)

rounds = Table(
    "rounds",
    metadata,
    Column("cell", String(32), ForeignKey("cells.id"), primary_key=True),
    Column("round", Integer, primary_key=True),  # 0: the start
    Column("survivors", Integer, nullable=False),
    Column("epsilon", Float),
    Column("upload_bytes", BigInteger, nullable=False),
    Column("download_bytes", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
)

scores = Table(
    "scores",
    metadata,
    Column("cell", String(32), ForeignKey("cells.id"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("label", String(128), primary_key=True),
    Column("position", Integer, nullable=False),  # order of the labels as measured
    Column("per_case", JSON, nullable=False),  # one value a test case
)
