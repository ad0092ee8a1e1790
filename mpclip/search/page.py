"""Answers as one HTML file. Thumbnails and styles are in it: it fetches nothing and works offline."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mpclip.files import write_bytes
from mpclip.search.search import Answer, Hit, weights_in_words

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><p>{about}</p></header>
<main>
{sections}
</main>
</body>
</html>
"""

STYLE = """
:root { --page: #f6f6f4; --card: #ffffff; --ink: #1c1c1c; --faint: #6b6b6b; --line: #dededa;
  --bar: #2f6db5; --against: #c4561f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #151618; --card: #1f2124; --ink: #ececea; --faint: #9c9c98; --line: #34373b;
    --bar: #6fa8e8; --against: #e98a57; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
p { margin: .2rem 0 0; color: var(--faint); overflow-wrap: anywhere; }
section { margin-top: 2.5rem; }
.query { display: flex; gap: .9rem; align-items: center; }
.query img { height: 72px; border-radius: 8px; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 1rem; margin: 1rem 0 0; padding: 0;
  list-style: none; }
.hits > li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.hits figure { margin: 0; }
.hits img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--page);
  border-bottom: 1px solid var(--line); }
figcaption { padding: .6rem .75rem .75rem; font-size: .87rem; overflow-wrap: anywhere; }
.facts { display: flex; justify-content: space-between; align-items: center; font-variant-numeric: tabular-nums; }
.facts b { font-size: 1rem; }
.name { color: var(--faint); font-size: .78rem; margin-top: .35rem; }
svg { height: 26px; }
svg line { stroke: var(--line); }
.bar { fill: var(--bar); }
.against { fill: var(--against); }
"""


def write_page(answers: Sequence[Answer], path: str | Path, about: str = "") -> None:
    """Writes the pictures that queries found, with captions and scores, and with a bar for each aspect's part of the score.

    Args:
        answers: as from `query_index`.
        path: the file to write; its folder is made.
        about: a line on top.
    """
    title = _heading(answers[0]) + (f" and {len(answers) - 1} more" if len(answers) > 1 else "")
    page = PAGE.format(
        title=escape(title), about=escape(about), style=STYLE, sections="\n".join(_section(answer) for answer in answers)
    )
    write_bytes(path, page.encode("utf-8", errors="replace"))  # a file name need not be text: "?" for what is none


def _section(answer: Answer) -> str:
    conditions = [f"without “{text}”" for text in answer.exclude]
    if answer.weights is not None:
        conditions.append("aspects weighted " + weights_in_words(answer))
    if answer.pictures:
        conditions.insert(0, ("with " if answer.text is not None else "") + ", ".join(answer.pictures))
    pictures = "".join(f'<img src="{_data_uri(small)}" alt="">' for small in answer.thumbnails)
    scale = max((abs(value) for hit in answer.hits for value in hit.aspects), default=0)
    names = dict(enumerate(answer.aspect_names))
    hits = "\n".join(_hit(rank, hit, scale, names) for rank, hit in enumerate(answer.hits, start=1))
    legend = f"<p>Bars, from left to right: {escape(', '.join(names.values()))}</p>\n" if len(names) > 1 else ""
    return f"""<section>
<div class="query">{pictures}<div><h1>{escape(_heading(answer))}</h1><p>{escape(" · ".join(conditions))}</p></div></div>
{legend}<ol class="hits">
{hits}
</ol>
</section>"""


def _heading(answer: Answer) -> str:
    return "Pictures like this" if answer.text is None else answer.text or "(no words)"


def _hit(rank: int, hit: Hit, scale: float, names: dict[int, str]) -> str:
    shown = escape(hit.caption)
    # An index of files of embeddings has no thumbnails.
    alt = shown or escape(hit.picture)
    picture = f'<img src="{_data_uri(hit.thumbnail)}" alt="{alt}" loading="lazy">' if hit.thumbnail else ""
    return (
        f"<li><figure>{picture}"
        f'<figcaption><div class="facts"><b>{rank}</b>{_bars(hit.aspects, scale, names)}<span>{hit.score:.3f}</span></div>'
        f'{shown}<div class="name">{escape(" = ".join([hit.picture, *hit.also]))}</div></figcaption></figure></li>'
    )


def _bars(aspects: Sequence[float], scale: float, names: dict[int, str]) -> str:
    """A bar per aspect: upwards where it adds to the score, downwards where it lowers it."""
    parts = []
    for k, value in enumerate(aspects):
        height = 12 * abs(value) / scale if scale else 0
        top, kind = (13 - height, "bar") if value >= 0 else (13, "against")
        label = escape(f"{names.get(k, f'aspect {k + 1}')}: {value:+.3f}")
        parts.append(
            f'<rect class="{kind}" x="{8 * k}" y="{top:.1f}" width="6" height="{height:.1f}"><title>{label}</title></rect>'
        )
    width = 8 * len(aspects)
    line = f'<line x1="0" y1="13" x2="{width}" y2="13"/>'
    return f'<svg viewBox="0 0 {width} 26" width="{width}" role="img" aria-label="aspects">{line}{"".join(parts)}</svg>'


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
