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


def answer_text(answer: Answer, served_model: Served) -> str:
    """Recommendations as a list, with what was skipped and where the scores come from."""
    score_source, origin = answer.source, served_model.origin
    if score_source == MODEL:
        score_source = f"{origin.algorithm}, round {origin.round} of run {origin.run}"
    lines = [f"user {answer.user}, client {answer.client} ({score_source})"]
    if answer.skipped:
        lines.append(f"skipped, not in the catalogue: {', '.join(answer.skipped)}")
    if not answer.recommendations:
        lines.append("nothing left to recommend: every item that can be ranked is in the history")
    id_width = max((len(item.item) for item in answer.recommendations), default=0)
    lines += [
        f"{item.rank:>3}  {item.item:<{id_width}}  {item.score:>8.3f}  {item.title}".rstrip()
        for item in answer.recommendations
    ]
    return "\n".join(lines)


def findings_text(findings: Sequence[Finding]) -> str:
    """One line for each finding of ``pfsr doctor``, its fix below it."""
    subject_width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        level_mark = EXAMINATION_MARKS[finding.level]
        lines.append(f"{level_mark:<8} {finding.subject:<{subject_width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<8} {'':<{subject_width}}  get it: {finding.fix}")
    num_missing = sum(finding.level == "missing" for finding in findings)
    lines.append(
        f"{num_missing} needed things are missing" if num_missing else "all that is needed is here"
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


def cleaning_text(facts_before: Facts, facts_after: Facts) -> str:
    """Two lines a market, as it was and as it is, and what the columns mean."""
    column_titles = ("users", "items", "interactions", "groups", "variant targets", "tied last")
    market_width = max(map(len, facts_before))
    lines = [f"{'':<{market_width + 8}}" + "".join(f"{title:>17}" for title in column_titles)]
    for market_name in facts_before:
        for when, facts in (("before", facts_before), ("after", facts_after)):
            line_label = f"{market_name if when == 'before' else '':<{market_width}}  {when:<6}"
            lines.append(
                line_label + _cells(facts[market_name])
                if market_name in facts
                else f"{line_label} left out"
            )
    return "\n".join([*lines, FACTS_LEGEND])


FACTS_LEGEND = (
    "groups: of items that are variants of each other. variant targets: users whose test item is a "
    "variant of\nanother one in their history. tied last: users whose last two interactions have "
    "one time; the file's order decides."
)


def _cells(market_facts: Mapping[str, Any]) -> str:
    count_names = ("users", "items", "interactions", "joined_groups")
    share_names = ("variant_targets", "tied_last_pair")
    counts = [f"{market_facts[name]:,}" for name in count_names]
    shares = [_share(market_facts[name]) for name in share_names]
    return "".join(f"{cell:>17}" for cell in (*counts, *shares))


def _share(user_share: float | None) -> str:
    """In per cent; a dash where no user has a test item."""
    return "–" if user_share is None else f"{user_share:.1%}"
