"""HTML for the report: elements whose text is escaped by construction, tables, figures, and the style sheet."""

import base64
import html
import re
from collections.abc import Sequence

from lume_tasks.errors import visible

_EMPTY = ("img", "meta", "wbr")  # elements without content and end tag


class Html(str):
    """Text that is markup already; any other string is escaped where it goes into an element."""


def tag(name: str, /, *children: str | None, **attributes: str | bool) -> Html:
    """One element; children that are None are skipped. ``class_`` stands for ``class``, True for an attribute alone."""
    shown = "".join(_attribute(key.strip("_"), value) for key, value in attributes.items() if value is not False)
    if name in _EMPTY:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    """Several pieces in a row; plain strings are escaped."""
    kept = (child for child in children if child is not None)
    return Html("".join(child if isinstance(child, Html) else html.escape(visible(child)) for child in kept))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls sideways by itself on a small screen; the first cell of each row names it."""
    heads = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = (
        tag("tr", tag("th", *_breakable(first), scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    )
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *lines)), class_="scroll")


def figures(pictures: Sequence[tuple[str, bytes]]) -> Html:
    """Pictures beside each other as far as there is room: (what it shows, PNG)."""
    images = (
        tag("img", alt=words, src=f"data:image/png;base64,{base64.b64encode(data).decode()}")
        for words, data in pictures
    )
    return tag("div", *images, class_="figures")


def section(title: str, *children: str | None) -> Html:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *children)


def page(title: str, *parts: str | None) -> str:
    """The whole document. Its policy forbids scripts and anything from elsewhere, whatever the text says."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(_CSS)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("h1", title), *parts), lang="en") + "\n"


def _breakable(name: str) -> list[str]:
    """A name in pieces between which a line may end."""
    return [part for piece in re.split(r"(?<=[/_])", name) for part in (piece, tag("wbr"))][:-1]


def _attribute(key: str, value: str | bool) -> str:
    name = key.replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(visible(str(value)))}"'


_CSS = """
:root { color-scheme: light; --line: #d0d4da; --soft: #f4f6f8; --mark: #ffe08a; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #16191d; max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.4rem; border-top: 2px solid #16191d; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.4rem; }
p { max-width: 46rem; margin: 0.4rem 0 0.8rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0.5rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { vertical-align: bottom; line-height: 1.25; max-width: 8rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; min-width: 11rem; max-width: 18rem;
  overflow-wrap: break-word; }
small { display: block; color: #555d68; font-size: 0.8em; font-weight: normal; white-space: nowrap; }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.figures img { width: 100%; max-width: 27rem; height: auto; break-inside: avoid; }
.warning { border: 2px solid #b3261e; padding: 0.6rem 0.9rem; margin: 0.8rem 0; }
.absent { color: #555d68; }
details { margin: 0.6rem 0; }
.parts { display: flex; flex-wrap: wrap; column-gap: 2.5rem; }
.parts > .leak, .parts > p { flex-basis: 100%; }
.parts > .scroll { max-width: 100%; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
.leak { border: 1px solid var(--line); margin: 0.7rem 0; break-inside: avoid; }
.prompt { padding: 0.4rem 0.7rem; background: var(--soft); }
.sides { display: grid; grid-template-columns: 1fr 1fr; }
.sides > div { padding: 0.4rem 0.7rem; min-width: 0; }
.sides > div + div { border-left: 1px solid var(--line); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { background: var(--mark); text-decoration: underline; }
dt { font-weight: 600; } dd { margin: 0; }
dl > div { break-inside: avoid; margin-bottom: 0.7rem; }
.columns { columns: 26rem; column-gap: 2rem; }
@media (max-width: 40rem) {
  body { padding: 0.7rem; }
  th, td { padding: 0.35rem 0.45rem; }
  th:first-child { min-width: 5.5rem; max-width: 8.5rem; }
  .sides { grid-template-columns: 1fr; }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line); }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10pt; padding: 0; max-width: none; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: 0.15rem 0.3rem; } tr { break-inside: avoid; }
  th:first-child { position: static; }
  .figures { grid-template-columns: 1fr 1fr; }
  summary { break-after: avoid; }
  mark { background: none; font-weight: 600; }
}
"""
