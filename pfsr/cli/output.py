"""What the commands print, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pfsr.deploy.findings import Finding
from pfsr_core.data.cleaning import Facts
from pfsr_core.serving.recommend import MODEL, Answer
from pfsr_core.serving.served_model import Served

EXAMINATION_MARKS = {"ok": "ok", "note": "--", "missing": "MISSING"}
PROBE_MARKS = {"ok": "ok", "note": "--", "missing": "WRONG"}


def answer_text(answer: Answer, served: Served) -> str:
    """Recommendations as a list, with what was skipped and where the scores come from."""
    source = answer.source
    if source == MODEL:
        source = (
            f"{served.origin.algorithm}, round {served.origin.round} of run {served.origin.run}"
        )
    lines = [f"user {answer.user}, client {answer.client} ({source})"]
    if answer.skipped:
        lines.append(f"skipped, not in the catalogue: {', '.join(answer.skipped)}")
    if not answer.recommendations:
        lines.append("nothing left to recommend: every item that can be ranked is in the history")
    width = max((len(item.item) for item in answer.recommendations), default=0)
    lines += [
        f"{item.rank:>3}  {item.item:<{width}}  {item.score:>8.3f}  {item.title}".rstrip()
        for item in answer.recommendations
    ]
    return "\n".join(lines)


def findings_text(findings: Sequence[Finding]) -> str:
    """One line for each finding of ``pfsr doctor``, its fix below it."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(
            f"{EXAMINATION_MARKS[finding.level]:<8} {finding.subject:<{width}}  {finding.found}"
        )
        if finding.fix:
            lines.append(f"{'':<8} {'':<{width}}  get it: {finding.fix}")
    missing = sum(finding.level == "missing" for finding in findings)
    lines.append(
        f"{missing} needed things are missing" if missing else "all that is needed is here"
    )
    return "\n".join(lines)


def probe_text(findings: Sequence[Finding]) -> str:
    """One line for each step of the connection to the SuperLink, the fix below the failed one."""
    lines = []
    for finding in findings:
        lines.append(f"{PROBE_MARKS[finding.level]:<6} {finding.subject:<12} {finding.found}")
        if finding.fix:
            lines.append(f"{'':<20}fix: {finding.fix}")
    if findings[-1].level != "missing":
        lines.append("a node with these arguments gets through")
    return "\n".join(lines)


def cleaning_text(before: Facts, after: Facts) -> str:
    """Two lines a market, as it was and as it is, and what the columns mean."""
    names = ("users", "items", "interactions", "groups", "variant targets", "tied last")
    width = max(map(len, before))
    lines = [f"{'':<{width + 8}}" + "".join(f"{name:>17}" for name in names)]
    for market in before:
        for when, facts in (("before", before), ("after", after)):
            label = f"{market if when == 'before' else '':<{width}}  {when:<6}"
            lines.append(label + _cells(facts[market]) if market in facts else f"{label} left out")
    return "\n".join([*lines, FACTS_LEGEND])


FACTS_LEGEND = (
    "groups: of items that are variants of each other. variant targets: users whose test item is a "
    "variant of\nanother one in their history. tied last: users whose last two interactions have "
    "one time; the file's order decides."
)


def _cells(facts: Mapping[str, Any]) -> str:
    counts = [f"{facts[name]:,}" for name in ("users", "items", "interactions", "joined_groups")]
    shares = [_share(facts[name]) for name in ("variant_targets", "tied_last_pair")]
    return "".join(f"{cell:>17}" for cell in (*counts, *shares))


def _share(value: float | None) -> str:
    """In per cent; a dash where there is nobody to count."""
    return "–" if value is None else f"{value:.1%}"
