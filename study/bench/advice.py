"""Which settings to begin with for so many patients and hospitals and a wanted epsilon: what `secagg-study advise` says.

Rule: an answer follows from public inputs alone: the numbers of study/recommendations.toml, which were measured on public
patients, and the four numbers of the question. No scan, no ledger and no hospital's own count is read.

What a step's noise does to a model depends on its strength in the mean over all patients, and hardly on who added it. With
noise_multiplier z, n equal hospitals and N patients in every step it is, in clip norms:

    local   z * sqrt(n) / N              each hospital adds z to its own sum
    shared  z * sqrt(n / (n - c)) / N    together they add z against c colluders, whose shares come on top

The learning rate follows from the strength. Outside the strengths that were measured there is no answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hospital_node.accounting import Mechanism, noise_multiplier_for
from hospital_node.cap import UNIFORM_SHARE, plain, stated
from hospital_node.releases import Release
from hospital_node.shared_accounting import Shares
from proto.frozen import Frozen, parsed, read_toml
from proto.plan import Hospital, PlanError
from secagg.errors import LocalError
from study import presets
from study.bench.cells import Readings
from study.bench.grid import load_template, with_changes
from study.bench.readings import readings_of
from study.bench.task import StudyError

FILE = Path(__file__).parents[1] / "recommendations.toml"
DELTA_SHARE = 10  # delta is one over so many times the patients, where the question names none
LOST_OF = 16  # hospitals, of which three may be lost where the question does not say
NEAR = 1.25  # a score is of these settings where its noise is within this factor

NoiseMode = Literal["local", "shared"]
Reading = Literal["charged", "outsider"]


class Rate(Frozen):
    """What the server multiplies a mean update by, at one strength of noise."""

    strength: float = Field(gt=0)
    learning_rate: float = Field(gt=0)


class Mode(Frozen):
    """One noise mode: rates by growing strength, and fields of the plan that belong to it."""

    rates: tuple[Rate, ...] = Field(min_length=2)
    plan: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        strengths = [one.strength for one in self.rates]
        if sorted(set(strengths)) != strengths:
            raise ValueError("rates stand in the order of their strengths, each once")
        return self


class Score(Frozen):
    """What one setting of the public study reached."""

    noise_mode: NoiseMode
    hospitals: int = Field(ge=3)
    epsilon: float = Field(gt=0)  # spent, as charged
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(gt=0)
    may_collude: int = Field(default=1, ge=1)  # of shared noise, whose multiplier holds against so many
    dice: float = Field(ge=0, le=1)
    half: float | None = None  # of the 95 % interval over seeds; None: one seed
    seeds: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.may_collude >= self.hospitals:
            raise ValueError(f"{self.may_collude} colluders of {self.hospitals} hospitals: all but one at most")
        return self


class Recommendations(Frozen):
    """The whole file. `plan` and `Mode.plan` hold fields by dotted name, as [set] of a study file does."""

    study: str
    template: str
    cohort: str
    patients: int = Field(ge=1)
    plan: dict[str, Any]
    modes: dict[NoiseMode, Mode]
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. None: the usual choice (`delta`, `may_drop`)."""

    patients: int  # declared, of all hospitals together
    hospitals: int
    epsilon: float
    noise_mode: NoiseMode = "local"
    reading: Reading = "charged"  # whose reading of shared noise `epsilon` is
    delta: float | None = None
    may_drop: int | None = None
    may_collude: int = 1


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer."""

    question: Question  # complete
    noise_multiplier: float
    strength: float
    learning_rate: float
    charged: float  # epsilon at the question's delta, as a ledger reads it
    readings: Readings
    template: dict[str, Any]  # a whole template of a plan, as study/plans holds them
    near: tuple[Score, ...]  # of the study: the rows with the nearest noise below and above
    source: Recommendations

    @property
    def delta(self) -> float:
        """At which `charged` is read."""
        assert self.question.delta is not None
        return self.question.delta


def load(path: Path = FILE) -> Recommendations:
    """The recommendations. Raises StudyError where the file is wrong."""
    return parsed(Recommendations, read_toml(path, "the recommendations", StudyError), str(path), StudyError)


def advise(asked: Question, known: Recommendations) -> Advice:
    """Settings for these patients and hospitals. Raises StudyError where nothing was measured, or no plan can be made of it."""
    question = _completed(asked)
    mode = known.modes.get(question.noise_mode)
    if mode is None:
        raise StudyError(f"nothing is recommended for {question.noise_mode} noise")
    fields = load_template(known.template, FILE.parent, "the recommendations")
    changes = {**known.plan, **mode.plan, **_shared_fields(question), "privacy.delta": question.delta}
    whole = with_changes("the recommendations", fields.fields, changes)
    training = _mechanism(question, whole)
    strength = strength_of(question, training.noise_multiplier)
    rate = _rate(mode, strength, question)
    found = {"privacy.noise_multiplier": training.noise_multiplier, "aggregation.learning_rate": rate}
    whole = with_changes("the recommendations", whole, found)
    _refuse_impossible(question, whole)
    delta = question.delta or 0.0
    return Advice(
        question,
        training.noise_multiplier,
        strength,
        rate,
        stated([training], delta),
        readings_of([[Release(training)]], delta),
        {**whole, **fields.recipe},
        _nearest(known, question, strength),
        known,
    )


def strength_of(question: Question, noise_multiplier: float) -> float:
    """Deviation of the noise in one step's mean, in clip norms."""
    n = question.hospitals
    hospitals = n if question.noise_mode == "local" else n / (n - question.may_collude)
    return noise_multiplier * math.sqrt(hospitals) / question.patients


def interpolated(rates: Sequence[Rate], strength: float) -> float | None:
    """The rate at this strength, on logarithmic scales between the two points beside it; None outside of all."""
    for low, high in itertools.pairwise(rates):
        if low.strength <= strength <= high.strength:
            share = math.log(strength / low.strength) / math.log(high.strength / low.strength)
            return low.learning_rate * math.pow(high.learning_rate / low.learning_rate, share)
    return None


def scores_near(advice: Advice) -> Iterator[tuple[Score, float]]:
    """The study's rows beside this noise, with the strength of theirs."""
    for score in advice.near:
        yield score, _strength_of_score(advice.source, score)


def _completed(asked: Question) -> Question:
    """With the usual choices written out. Raises StudyError for numbers that make no federation."""
    if asked.hospitals < 3 or asked.patients < asked.hospitals:
        raise StudyError(
            f"{asked.patients} patients at {asked.hospitals} hospitals: there are three hospitals or more, each with a patient"
        )
    if not (math.isfinite(asked.epsilon) and asked.epsilon > 0):
        raise StudyError(f"epsilon {asked.epsilon:g} is no budget: name a finite one above 0")
    if asked.noise_mode == "local" and asked.reading == "outsider":
        raise StudyError("a hospital's own noise has one reading, against everybody: --reading outsider is of shared noise")
    if not 1 <= asked.may_collude < asked.hospitals:
        raise StudyError(f"{asked.may_collude} colluders of {asked.hospitals} hospitals: between 1 and all but one")
    delta = 1 / (DELTA_SHARE * asked.patients) if asked.delta is None else asked.delta
    smallest = asked.patients // asked.hospitals
    if not 0 < delta < 1 / smallest:
        raise StudyError(f"delta {delta:g} must be below 1/{smallest}, one over the patients of the smallest hospital")
    lost = max(1, 3 * asked.hospitals // LOST_OF) if asked.may_drop is None else asked.may_drop
    return Question(
        asked.patients, asked.hospitals, asked.epsilon, asked.noise_mode, asked.reading, delta, lost, asked.may_collude
    )


def _shared_fields(question: Question) -> dict[str, Any]:
    named = {"privacy.noise_mode": question.noise_mode, "privacy.no_guarantee": False}
    if question.noise_mode == "local":
        return named
    colluders = {"privacy.may_collude": question.may_collude, "masking.max_colluders": question.may_collude}
    return {**named, "privacy.may_drop": question.may_drop, **colluders}  # masks have to bear those whom the noise bears


def _mechanism(question: Question, whole: Mapping[str, Any]) -> Mechanism:
    """All training of the plan at one hospital, with the least noise that keeps to the question's epsilon."""
    privacy, delta = whole["privacy"], question.delta or 0.0
    rate, steps = 1 / privacy["inverse_sampling_rate"], whole["rounds"] * whole["training"]["local_steps"]
    shares = None
    if question.noise_mode == "shared":
        shares = Shares(privacy["norm_steps"], question.hospitals, privacy["may_drop"], privacy["may_collude"])
    try:
        noise = noise_multiplier_for(
            question.epsilon, UNIFORM_SHARE * delta, rate, steps, (), shares, outsider=question.reading == "outsider"
        )
    except LocalError as error:
        raise StudyError(str(error)) from error
    except ValueError as error:
        raise StudyError(f"{error}: ask for a larger epsilon") from error
    return Mechanism(noise, rate, steps, shares)


def _rate(mode: Mode, strength: float, question: Question) -> float:
    rate = interpolated(mode.rates, strength)
    if rate is not None:
        return float(f"{rate:.3g}")
    lowest, highest = mode.rates[0].strength, mode.rates[-1].strength
    way = "a larger epsilon" if strength > highest else "a smaller epsilon"
    more = " or more patients" if strength > highest else ""
    raise StudyError(
        f"epsilon {question.epsilon:g} at delta {plain(question.delta or 0.0)} for {question.patients} patients at "
        f"{question.hospitals} hospitals means noise of {strength:.3g} clip norms in a step's mean; with {question.noise_mode} "
        f"noise {lowest:g} to {highest:g} were measured, and nothing is advised beyond: ask for {way}{more}"
    )


def _refuse_impossible(question: Question, whole: Mapping[str, Any]) -> None:
    """Raise StudyError where no plan with these hospitals, as equal as can be, passes the plan's own checks."""
    each, rest = divmod(question.patients, question.hospitals)
    sizes = [each + (at < rest) for at in range(question.hospitals)]
    admitted = [Hospital(uri=f"secagg://advised/hospital/h{at}", declared_patients=size) for at, size in enumerate(sizes)]
    try:
        presets.complete(dict(whole), study="advised", hospitals=admitted, evaluators=(), start_digest=None, rounds=None)
    except PlanError as error:
        raise StudyError(str(error)) from error


def _nearest(known: Recommendations, question: Question, strength: float) -> tuple[Score, ...]:
    """The rows of this noise mode with the most noise not above, and the least not below; one where it is these settings."""

    def distance(score: Score) -> float:
        return math.log(_strength_of_score(known, score) / strength)

    rows = sorted((one for one in known.scores if one.noise_mode == question.noise_mode), key=distance)
    same = [one for one in rows if abs(distance(one)) <= math.log(NEAR)]
    if same:
        return (min(same, key=lambda one: (one.hospitals != question.hospitals, abs(distance(one)))),)
    below, above = [one for one in rows if distance(one) < 0], [one for one in rows if distance(one) > 0]
    return (*below[-1:], *above[:1])


def _strength_of_score(known: Recommendations, score: Score) -> float:
    """Of the study's own patients and colluders, whatever the question's are."""
    of_study = Question(known.patients, score.hospitals, score.epsilon, score.noise_mode, may_collude=score.may_collude)
    return strength_of(of_study, score.noise_multiplier)
