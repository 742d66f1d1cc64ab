"""The page around a report: style sheet and small pieces of HTML. What is text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

CSS = """
:root { color-scheme: light;
  --ink: #111827; --soft: #4b5563; --line: #e5e7eb; --accent: #0072b2; --wash: #f3f8fc; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
.eyebrow { color: var(--soft); font-size: 14px; margin: 0 0 6px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0 0 10px; letter-spacing: -0.01em;
  text-wrap: balance; max-width: 40ch; }
.lead { font-size: 17px; color: var(--soft); margin: 0; max-width: 84ch; }
.tag { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: 13px;
  background: #fff4d6; color: #7a4d00; margin-left: 8px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px;
  margin: 24px 0 0; padding: 0; list-style: none; }
.facts li { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.facts b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; line-height: 1.3;
  white-space: nowrap; }
.facts span { color: var(--soft); font-size: 13.5px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 26px 18px; margin: 18px 0; overflow-x: auto; }
section.pair { flex: 1 1 440px; margin: 0; min-width: 0; }
.row { display: flex; flex-wrap: wrap; gap: 18px; margin: 18px 0; }
h2 { font-size: 19px; margin: 0 0 2px; }
p.note { color: var(--soft); font-size: 14px; margin: 2px 0 14px; max-width: 110ch; }
section svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { padding: 8px 10px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px;
  border-bottom: 1px solid #cbd5e1; }
thead tr.groups th { border: 0; padding-bottom: 0; text-align: center; color: var(--ink); }
tbody td { border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
tbody tr:last-child td { border-bottom: 0; }
tr.main td { background: var(--wash); }
tr.main td:first-child { font-weight: 650; }
td.best { font-weight: 700; color: var(--accent); }
td small { color: var(--soft); font-weight: 400; margin-left: 8px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 99px; margin-right: 9px; }
details { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 14px 26px;
  margin: 18px 0; }
summary { cursor: pointer; font-weight: 600; }
details h3 { font-size: 15px; margin: 18px 0 6px; }
.pairs { columns: 2 380px; column-gap: 40px; font-size: 14px; }
.pairs div { display: flex; justify-content: space-between; gap: 16px; padding: 3px 0;
  border-bottom: 1px solid var(--line); break-inside: avoid; }
.pairs span:first-child { color: var(--soft); white-space: nowrap; }
.pairs span:last-child { overflow-wrap: anywhere; text-align: right;
  font-variant-numeric: tabular-nums; }
footer { color: var(--soft); font-size: 13.5px; margin-top: 28px; }
@media (max-width: 640px) { section svg { min-width: 560px; }
  section.pair svg { min-width: 0; } }
@media print { body { background: #fff; } section, details { break-inside: avoid; } }
"""


def page(title: str, body_parts: Iterable[str]) -> str:
    """A complete HTML document that loads nothing from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body_parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(eyebrow: str, headline: str, lead_text: str, tag_text: str = "") -> str:
    """The head of the page; ``tag_text`` is a mark beside the line above the headline."""
    tag_html = f'<span class="tag">{escape(tag_text)}</span>' if tag_text else ""
    return (
        f'<header><p class="eyebrow">{escape(eyebrow)}{tag_html}</p><h1>{escape(headline)}</h1>'
        f'<p class="lead">{escape(lead_text)}</p></header>'
    )


def facts(labelled_values: Mapping[str, str]) -> str:
    """Cards, each with a large value over its small label."""
    cards_html = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>"
        for label, value in labelled_values.items()
    )
    return f'<ul class="facts">{cards_html}</ul>' if cards_html else ""


def section(title: str, note: str, content_html: str, is_pair: bool = False) -> str:
    """A titled card around ``content_html``, which is HTML already; nothing when that is empty."""
    if not content_html:
        return ""
    class_attribute = ' class="pair"' if is_pair else ""
    return (
        f'<section{class_attribute}><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f"{content_html}</section>"
    )


def side_by_side(*sections: str) -> str:
    """Sections in a row, those without content left out."""
    filled_sections = [section_html for section_html in sections if section_html]
    return f'<div class="row">{"".join(filled_sections)}</div>' if filled_sections else ""


def dot(colour: str) -> str:
    """A coloured dot before the name of a method."""
    return f'<span class="dot" style="background:{escape(colour)}"></span>'


def folded(title: str, value_groups: Mapping[str, Mapping[str, object]]) -> str:
    """A foldable block of named groups of key and value."""
    group_blocks = [
        f"<h3>{escape(group_name)}</h3>{_pairs(group_values)}"
        for group_name, group_values in value_groups.items()
        if group_values
    ]
    if not group_blocks:
        return ""
    return f"<details><summary>{escape(title)}</summary>{''.join(group_blocks)}</details>"


def _pairs(nested_values: Mapping[str, object]) -> str:
    rows_html = "".join(
        f"<div><span>{escape(dotted_key)}</span><span>{escape(_text(value))}</span></div>"
        for dotted_key, value in flat(nested_values).items()
    )
    return f'<div class="pairs">{rows_html}</div>'


def flat(nested_values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested objects as dotted keys."""
    flat_values: dict[str, object] = {}
    for key, value in nested_values.items():
        if isinstance(value, Mapping):
            flat_values |= flat(value, f"{prefix}{key}.")
        else:
            flat_values[prefix + str(key)] = value
    return flat_values


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "–"
    return str(value) or "–"
