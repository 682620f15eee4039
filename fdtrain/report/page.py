"""The report as one HTML page. Every text passes through `escape`, or through what `datasets_shards.page` does."""

from collections.abc import Mapping, Sequence
from html import escape

from datasets_shards.page import Picture, document, figure, image, page_size, scrolling, terms
from fdtrain.report.content import Cell, Estimate, Facts, Gain, Gallery, Heading, Missing, Part, Section, Table

STYLE = """
figure img { display: block; }
figure .scroll img { width: 100%; min-width: min(36rem, var(--width)); max-width: var(--width); }
.missing { border-left: 3px solid var(--warn); padding: 0.1rem 0 0.1rem 0.75rem; margin: 0.6rem 0; color: var(--soft); }
.missing strong { color: var(--warn); }
.table { margin: 1.25rem 0 1.75rem; }
tbody th[scope=rowgroup] { text-align: left; color: var(--soft); padding-top: 0.8rem; white-space: normal; }
th[scope=rowgroup] span { position: sticky; left: 0.65rem; display: inline-block; max-width: calc(100vw - 4rem); }
th[scope=row] { max-width: 15rem; white-space: normal; min-width: 7.5rem; }
td small { display: block; color: var(--soft); font-size: 0.82em; }
td.clear { font-weight: 700; }
td.clear small { font-weight: 400; }
td.none { color: var(--soft); }
td.none a { text-decoration: none; }
td.text { max-width: 22rem; white-space: normal; }
ol.notes { font-size: 0.85rem; color: var(--soft); padding-left: 1.6rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
.more { font-size: 0.85rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0.75rem; padding: 0;
  list-style: none; }
.gallery figure { margin: 0; }
.gallery img { width: 100%; }
.gallery figcaption { font-size: 0.8rem; overflow-wrap: anywhere; }
pre { font-size: 0.8rem; line-height: 1.4; background: var(--shade); padding: 0.75rem; margin: 0; width: max-content;
  min-width: 100%; }
.summary { color: var(--soft); }
"""


def render_page(title: str, summary: str, sections: Sequence[Section], closing: str) -> str:
    """The whole page.

    Args:
        title: Its heading.
        summary: A paragraph below it.
        sections: In order.
        closing: The last line.
    """
    contents = {section.place: section.title for section in sections} | {"missing": "What is missing"}
    body = [f"<h1>{escape(title)}</h1>", f'<p class="summary">{escape(summary)}</p>']
    body += map(_section, sections)
    body.append(_missing(sections))
    body.append(f'<footer class="more"><p>{escape(closing)}</p></footer>')
    return document(title, "\n".join(body), contents, STYLE)


def _section(section: Section) -> str:
    parts = "\n".join(_part(part, f"{section.place}-{i}") for i, part in enumerate(section.parts))
    heading = f'<h2 id="{section.place}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{section.place}">{heading}\n{parts}</section>'


def _missing(sections: Sequence[Section]) -> str:
    items = "".join(
        f'<li><a href="#{section.place}">{escape(section.title)}</a><ul>'
        + "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        + "</ul></li>"
        for section in sections
        if (reasons := list(section.missing()))
    )
    said = f"<ul>{items}</ul>" if items else "<p>Nothing: all that a report can show is in this one.</p>"
    return f'<section aria-labelledby="missing"><h2 id="missing">What is missing</h2>{said}</section>'


def _part(part: Part, place: str) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Heading):
        return f"<h3>{escape(part.text)}</h3>"
    if isinstance(part, Missing):
        return f'<p class="missing"><strong>Missing.</strong> {escape(part.reason)}.</p>'
    if isinstance(part, Picture):
        return _figure(part)
    if isinstance(part, Gallery):
        items = "".join(f"<li>{figure(picture)}</li>" for picture in part.pictures)
        return f'<h3>{escape(part.title)}</h3><ul class="gallery">{items}</ul>'
    if isinstance(part, Facts):
        return _facts(part)
    return _table(part, place)


def _figure(picture: Picture) -> str:
    """Charts keep a size at which they can be read, in a box that scrolls where the page is narrower."""
    width, _ = page_size(picture)
    box = scrolling(picture.title, image(picture))
    return f'<figure style="--width: {width}px">{box}<figcaption>{escape(picture.title)}</figcaption></figure>'


def _facts(facts: Facts) -> str:
    folded = ""
    if facts.folded:
        inner = scrolling(f"Configuration of {facts.title}", f"<pre>{escape(facts.folded)}</pre>")
        folded = f"<details><summary>config.yaml</summary>{inner}</details>"
    return f"<h3>{escape(facts.title)}</h3>{terms(facts.items)}{folded}"


def _table(table: Table, place: str) -> str:
    notes = {
        reason: number
        for number, reason in enumerate(
            dict.fromkeys(
                cell.reason
                for block in table.blocks
                for row in block.rows
                for cell in row.cells
                if isinstance(cell, Missing)
            ),
            1,
        )
    }
    rows_of = [row.cells for block in table.blocks for row in block.rows]
    words = [any(map(_is_word, column)) for column in zip(*rows_of, strict=True)] or [False] * (len(table.columns) - 1)
    head = "".join(
        f'<th scope="col"{" class=text" if is_word else ""}>{escape(name)}</th>'
        for name, is_word in zip(table.columns, [False, *words], strict=True)
    )
    bodies = []
    for block in table.blocks:
        title = (
            f'<tr><th scope="rowgroup" colspan="{len(table.columns)}"><span>{escape(block.title)}</span></th></tr>'
            if block.title
            else ""
        )
        rows = "".join(
            f'<tr><th scope="row">{escape(row.head)}</th>'
            f"{''.join(_cell(*pair, notes, place) for pair in zip(row.cells, words, strict=True))}</tr>"
            for row in block.rows
        )
        bodies.append(f"<tbody>{title}{rows}</tbody>")
    inner = f"<table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>{''.join(bodies)}</table>"
    listed = "".join(f'<li id="{place}-{number}">{escape(reason)}.</li>' for reason, number in notes.items())
    below = f'<ol class="notes">{listed}</ol>' if notes else ""
    return f'<div class="table">{scrolling(table.caption, inner)}{below}</div>'


def _cell(cell: Cell, is_word: bool, notes: Mapping[str, int], place: str) -> str:
    if isinstance(cell, Missing):
        number = notes[cell.reason]
        return (
            f'<td class="none">–<sup><a href="#{place}-{number}" title="{escape(cell.reason)}">{number}</a></sup></td>'
        )
    if isinstance(cell, Estimate):
        clear = ' class="clear"' if isinstance(cell, Gain) and cell.is_clear else ""
        value = _signed(f"{cell.value:+.4f}") if isinstance(cell, Gain) else f"{cell.value:.4f}"
        interval = f"<small>{_signed(cell.interval)}</small>" if cell.interval else ""
        return f"<td{clear}>{value}{interval}</td>"
    return f'<td class="text">{escape(cell)}</td>' if is_word else f"<td>{escape(cell)}</td>"


def _signed(text: str) -> str:
    """With the minus sign that is as wide as a plus."""
    return escape(text.replace("-", "\N{MINUS SIGN}"))


def _is_word(cell: Cell) -> bool:
    return isinstance(cell, str) and cell != "" and not cell.replace(".", "", 1).lstrip("-").isdigit()
