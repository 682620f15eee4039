"""The report as one HTML page that needs nothing beside it: tables, figures and the contact sheet."""

import base64
from html import escape
from math import isfinite

from datasets_shards.fidelity import texts
from datasets_shards.fidelity.curves import (
    BASELINE_CURVE,
    PROGRESSIVE_8_BIT_CURVE,
    PROGRESSIVE_CURVE,
    Curve,
    largest_step,
)
from datasets_shards.fidelity.figures import KEY_QUALITIES
from datasets_shards.fidelity.report import Point, points_of
from datasets_shards.page import Picture, document, figure, scrolling, terms


def render_page(
    points: list[Point],
    figures: list[Picture],
    limit: Picture | None,
    contact: Picture,
    facts: dict[str, dict[str, str]],
    keys: list[str],
    csv: str,
) -> str:
    """The whole page.

    Args:
        points: every curve at every quality.
        figures: a figure per measure, and the rate-distortion curves.
        limit: what 8-bit tables change; None where no measured quality has a step above 255.
        contact: the contact sheet.
        facts: for people, under headings: the source, versions, settings.
        keys: the sample keys of the crops.
        csv: the CSV file, for the link that saves it.
    """
    curves = list(dict.fromkeys(point.curve for point in points))
    head = f"Fidelity of {len(keys)} face crops"
    drawn = "".join(map(figure, figures))
    parts = [
        f"<h1>{head}</h1>",
        f"<p>{escape(texts.LEAD)}</p>",
        _summary(points, curves),
        f"<section><h2>By quality, and by rate</h2><p>{escape(texts.QUALITY)}</p>{drawn}</section>",
        _limit(points, limit),
        f"<section><h2>One face at every quality</h2>{figure(contact)}</section>",
        _curves(curves),
        _emulated(curves),
        _measures(points),
        *(f"<section><h2>{escape(title)}</h2>{terms(items)}</section>" for title, items in facts.items()),
        _all_numbers(points, csv),
        f"<section><h2>Crops</h2><details><summary>{len(keys)} sample keys</summary><p>{escape(', '.join(keys))}</p>"
        "</details></section>",
    ]
    return document(head, "\n".join(parts))


def _summary(points: list[Point], curves: list[Curve]) -> str:
    """Mean PSNR, SSIM and bits per pixel at the key qualities, one row per curve."""
    there = sorted({point.quality for point in points}, reverse=True)
    qualities = [quality for quality in there if quality in KEY_QUALITIES] or there[:4]
    groups = "".join(f'<th scope="colgroup" colspan="3" class="first">quality {quality}</th>' for quality in qualities)
    names = '<th scope="col" class="first">PSNR, dB</th><th scope="col">SSIM</th><th scope="col">bpp</th>'
    rows = []
    for curve in curves:
        mine = {point.quality: point for point in points_of(points, curve)}
        cells = "".join(_three(mine.get(quality)) for quality in qualities)
        rows.append(f'<tr><th scope="row">{escape(curve.label)}</th>{cells}</tr>')
    table = (
        "<table><caption>Means over the crops; a dash where a curve is the same as the one above it.</caption>"
        f'<thead><tr><th rowspan="2" scope="col">Curve</th>{groups}</tr><tr>{names * len(qualities)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return f"<section><h2>At a glance</h2>{scrolling('At a glance', table)}</section>"


def _three(point: Point | None) -> str:
    if point is None:
        return '<td class="first">–</td><td>–</td><td>–</td>'
    values = {name: point.measures[name].mean for name in ("psnr", "ssim", "bpp")}
    return f'<td class="first">{_decibel(values["psnr"])}</td><td>{values["ssim"]:.4f}</td><td>{values["bpp"]:.3f}</td>'


def _limit(points: list[Point], picture: Picture | None) -> str:
    title = "What baseline's 8-bit tables change"
    if picture is None:
        return f"<section><h2>{title}</h2><p>{texts.LIMIT}</p><p>{texts.NO_LIMIT}</p></section>"
    trio = (BASELINE_CURVE, PROGRESSIVE_8_BIT_CURVE, PROGRESSIVE_CURVE)
    by_curve = [{point.quality: point for point in points_of(points, curve)} for curve in trio]
    rows = []
    for quality in sorted(by_curve[1], reverse=True):
        cells = []
        for mine in by_curve:
            means = {name: summary.mean for name, summary in mine[quality].measures.items()}
            cells.append(f'<td class="first">{means["bytes"]:,.0f}</td><td>{_decibel(means["psnr"])}</td>')
            cells.append(f"<td>{means['ssim']:.4f}</td>")
        rows.append(f'<tr><th scope="row">{quality}</th><td>{largest_step(quality)}</td>{"".join(cells)}</tr>')
    labels = (*(curve.label for curve in trio[:2]), "MozJPEG progressive, 16-bit tables")
    groups = "".join(f'<th scope="colgroup" colspan="3" class="first">{escape(label)}</th>' for label in labels)
    names = '<th scope="col" class="first">bytes</th><th scope="col">PSNR, dB</th><th scope="col">SSIM</th>' * len(trio)
    table = (
        "<table><caption>Means over the crops, where a step is above the limit.</caption>"
        f'<thead><tr><th rowspan="2" scope="col">Quality</th><th rowspan="2" scope="col">largest step</th>{groups}</tr>'
        f"<tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return f"<section><h2>{title}</h2><p>{texts.LIMIT}</p>{figure(picture)}{scrolling(title, table)}</section>"


def _curves(curves: list[Curve]) -> str:
    return f"<section><h2>The curves</h2>{terms({curve.label: curve.about for curve in curves})}</section>"


def _emulated(curves: list[Curve]) -> str:
    said = []
    if any(curve.coder == "mozjpeg" and curve.scales for curve in curves):
        said.append(texts.SCALING)
    if rules := {curve.rule for curve in curves if curve.coder == "smartscale"}:
        tables = [texts.SMARTSCALE_TABLES[rule] for rule in sorted(rules)]
        said += [texts.SMARTSCALE_WHY, *tables, texts.SMARTSCALE_HOW]
    if not said:
        return ""
    return f"<section><h2>What is scaled, and what is emulated</h2><p>{'</p><p>'.join(map(escape, said))}</p></section>"


def _measures(points: list[Point]) -> str:
    items = {
        "PSNR": f"{texts.PSNR} {texts.exact_crops(sum(point.identical for point in points))}",
        "SSIM": texts.SSIM,
        "Size": texts.SIZE,
        "Over the crops": texts.SUMMARY,
    }
    return f"<section><h2>How it is measured</h2>{terms(items)}</section>"


def _all_numbers(points: list[Point], csv: str) -> str:
    rows = []
    for point in points:
        psnr, ssim, size, bpp = (point.measures[name] for name in ("psnr", "ssim", "bytes", "bpp"))
        cells = [
            *(_decibel(value) for value in (psnr.mean, psnr.low, psnr.high)),
            *(f"{value:.4f}" for value in (ssim.mean, ssim.low, ssim.high)),
            *(f"{value:,.0f}" for value in (size.mean, size.low, size.high)),
            *(f"{value:.3f}" for value in (bpp.mean, bpp.low, bpp.high)),
        ]
        row = "".join(
            f'<td class="first">{cell}</td>' if i % 3 == 0 else f"<td>{cell}</td>" for i, cell in enumerate(cells)
        )
        rows.append(f'<tr><th scope="row">{escape(point.curve.label)}</th><td>{point.quality}</td>{row}</tr>')
    names = ("PSNR, dB", "SSIM", "bytes", "bits per pixel")
    groups = "".join(f'<th scope="colgroup" colspan="3" class="first">{name}</th>' for name in names)
    kinds = '<th scope="col" class="first">mean</th><th scope="col">5 %</th><th scope="col">95 %</th>' * len(names)
    link = base64.b64encode(csv.encode()).decode()
    table = (
        f'<table><thead><tr><th rowspan="2" scope="col">Curve</th><th rowspan="2" scope="col">quality</th>{groups}</tr>'
        f"<tr>{kinds}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return (
        f'<section><h2>All numbers</h2><p><a download="fidelity.csv" href="data:text/csv;base64,{link}">Save as CSV</a>'
        f"</p><details><summary>{len(points)} rows</summary>{scrolling('All numbers', table)}</details></section>"
    )


def _decibel(value: float) -> str:
    return f"{value:.2f}" if isfinite(value) else "∞"
