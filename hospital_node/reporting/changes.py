"""What is different from the report before, in sentences that name both figures. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hospital_node.cap import plain, rounded_up
from hospital_node.reporting.model import Body, Changes, PrivacyReport


def changes_since(previous: PrivacyReport | None, sha256: str | None, now: Body) -> Changes:
    """The differences that an officer asks about; one line says so where there are none."""
    if previous is None:
        return Changes(since=None, lines=("This is the first report that this node has kept.",))
    lines = tuple(_lines(previous, now))
    return Changes(
        since=previous.report_id, since_sha256=sha256, lines=lines or ("Nothing that this report states has changed.",)
    )


def _lines(before: PrivacyReport, now: Body) -> Iterator[str]:
    if before.as_of.ledger_entries > now.as_of.ledger_entries:
        yield (
            f"The ledger has {now.as_of.ledger_entries} entries, and had {before.as_of.ledger_entries}: "
            "one of the two reports is of another ledger."
        )
    more = now.composition.releases - before.composition.releases
    if more:
        yield f"{more} further release{'s' if more != 1 else ''} charged, {now.composition.releases} in all."
    was, became = _epsilon(before), _epsilon(now)
    if was != became:
        yield f"Epsilon was {was} and is {became}, at delta {plain(now.guarantee.delta)}."
    if before.state.name != now.state.name:
        yield f"The state was '{before.state.name}' and is '{now.state.name}'."
    if (before.budget.epsilon, before.budget.delta) != (now.budget.epsilon, now.budget.delta):
        yield f"The cap was {_cap(before)} and is {_cap(now)}."
    if before.subject.study != now.subject.study:
        yield f"The study was '{before.subject.study}' and is '{now.subject.study}'."
    elif before.subject.plan_digest != now.subject.plan_digest:
        yield "The plan of the study is another one than it was."
    yield from _sets("uncovered by epsilon", before.unprotected_quantities, now.unprotected_quantities)
    states = {one.text: one.state for one in before.assumptions}
    for one in now.assumptions:
        if states.get(one.text, one.state) != one.state:
            yield f"An assumption is now '{one.state}': {one.text}"
    if before.signer.key_sha256 != now.signer.key_sha256:
        yield "The node signs with another key than it did."
    if before.software.version != now.software.version:
        yield f"The software was {before.software.version} and is {now.software.version}."


def _sets(what: str, before: tuple[str, ...], now: tuple[str, ...]) -> Iterator[str]:
    for item in now:
        if item not in before:
            yield f"New among what is {what}: {item}."
    for item in before:
        if item not in now:
            yield f"No longer among what is {what}: {item}."


def _epsilon(report: Body) -> str:
    value = report.guarantee.epsilon
    return "without a bound" if value is None else rounded_up(value)


def _cap(report: Body) -> str:
    cap = report.budget
    return "none" if cap.epsilon is None else f"epsilon {cap.epsilon:g} at delta {plain(cap.delta)}"
