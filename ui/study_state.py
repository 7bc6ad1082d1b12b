"""How much of a study is done, in words. Apart from findings.py so that the first page needs no statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from study.results import CellRow
from ui.figures import Headline
from ui.words import counted


def study_state(rows: Sequence[CellRow]) -> Headline:
    """How much of the study is done."""
    states = [row.state for row in rows]
    done, failed, running = states.count("done"), states.count("failed"), states.count("running")
    title = f"{done} of {counted(len(states), 'run')} done"
    if failed:
        return Headline("watch", f"{title}, {failed} failed", f"{_reasons(rows)} The same command tries them again.")
    if running:
        return Headline("plain", f"{title}, {running} running", "Only finished runs are in the charts.")
    if done < len(states):
        return Headline("plain", title, "The study was stopped; the same command goes on with what is left.")
    return Headline("good", title, "All charts and tables hold every run.")


def _reasons(rows: Iterable[CellRow]) -> str:
    reasons = list(dict.fromkeys(row.reason for row in rows if row.state == "failed"))
    text = "; ".join(reasons[:2]) + ("; …" if len(reasons) > 2 else "")
    return f"{text.rstrip('.')}."
