"""HTML pages that need nothing beside them: what the reports of this project share.

No request leaves such a page: pictures are data: URIs, the style is in the page, there is no script, and a content
security policy says so to the browser. Everything that is given as text is escaped here.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

CSS_PIXELS_PER_INCH = 96
JPEG_START = b"\xff\xd8"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --soft: #56564f; --line: #dcdcd6; --rule: #8b8b84; --paper: #fff;
  --shade: #f6f6f2; --link: #0a5aa6; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e3; --soft: #aeaea6; --line: #3a3a37; --rule: #77776f;
  --paper: #191918; --shade: #242422; --link: #82bdf5; --warn: #f0b060; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; margin: 0;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1rem 4rem; min-width: 0; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 0.75rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 0.75rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 0.5rem; }
p, li, dd { max-width: 46rem; }
a { color: var(--link); }
nav { max-width: 72rem; margin: 0 auto; padding: 1rem 1rem 0; font-size: 0.9rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 0; padding: 0; }
nav a { text-decoration: none; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; line-height: 1.35; }
caption { text-align: left; padding: 0.4rem 0; color: var(--soft); position: sticky; left: 0;
  max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: 0.3rem 0.65rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th[scope=row], thead th:first-child, .text { text-align: left; }
th[scope=row] { font-weight: 500; }
thead th { border-bottom: 2px solid var(--rule); vertical-align: bottom; }
.first { border-left: 1px solid var(--line); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; border-radius: 3px; background: #fff; }
figcaption { color: var(--soft); font-size: 0.9rem; max-width: 46rem; margin-top: 0.4rem; }
dl { margin: 0.5rem 0; }
dt { font-weight: 600; margin-top: 0.5rem; }
dd { margin-left: 1.2rem; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 0.3rem 0; }
@media (min-width: 82rem) {
  body.contents { display: grid; grid-template-columns: 13rem minmax(0, 1fr); }
  body.contents nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto;
    padding: 2.4rem 0 2rem 1.5rem; width: 100%; }
  body.contents nav ol { flex-direction: column; gap: 0.4rem; }
  body.contents main { margin: 0; padding-left: 2.5rem; width: 100%; }
}
@media print {
  body, body.contents { display: block; font-size: 10pt; }
  nav { display: none; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Args:
        file: Its name, where it is written beside the page as well.
        content: The file's content, PNG or JPEG.
        title: What stands below it.
        alt: What it shows, for who can't see it.
        dots_per_inch: Of the file; 96 shows every pixel as one of the page.
    """

    file: str
    content: bytes
    title: str
    alt: str
    dots_per_inch: int = CSS_PIXELS_PER_INCH


def document(title: str, body: str, contents: Mapping[str, str] | None = None, style: str = "") -> str:
    """A whole page.

    Args:
        title: Text.
        body: HTML.
        contents: Where the list of contents leads: id -> text. Default: there is no such list.
        style: CSS beside what all pages share.
    """
    entries = "".join(
        f'<li><a href="#{escape(place)}">{escape(text)}</a></li>' for place, text in (contents or {}).items()
    )
    nav = f'<nav aria-label="Contents"><ol>{entries}</ol></nav>\n' if entries else ""
    start = '<body class="contents">' if entries else "<body>"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>\n'
        f"{start}\n{nav}<main>\n{body}\n</main></body>\n</html>\n"
    )


def page_size(picture: Picture) -> tuple[int, int]:
    """Width and height on the page, CSS pixels, that its resolution gives it."""
    from PIL import Image

    with Image.open(io.BytesIO(picture.content), formats=["PNG", "JPEG"]) as opened:
        width, height = opened.size
    scale = CSS_PIXELS_PER_INCH / picture.dots_per_inch
    return round(width * scale), round(height * scale)


def image(picture: Picture) -> str:
    """The picture itself."""
    kind = "jpeg" if picture.content.startswith(JPEG_START) else "png"
    width, height = page_size(picture)
    data = base64.b64encode(picture.content).decode()
    return f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{escape(picture.alt)}">'


def figure(picture: Picture) -> str:
    """The picture and its title."""
    return f"<figure>{image(picture)}<figcaption>{escape(picture.title)}</figcaption></figure>"


def terms(items: Mapping[str, str]) -> str:
    """Terms and what is to say of each."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in items.items()) + "</dl>"


def scrolling(label: str, inner: str) -> str:
    """A box of its own that what is too wide scrolls in, by the keyboard as well.

    Args:
        label: What is in it.
        inner: HTML.
    """
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inner}</div>'
