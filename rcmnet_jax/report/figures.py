"""Figures as inline SVG that follow the page: text stays text, colours are the page's, nothing links out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

# Okabe and Ito's colours, which stay apart for all common kinds of colour blindness, and lighter ones for a dark page.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a8458a", "#b07d00", "#2f8fc9", "#5a5f66", "#7a4b1f")
DARK = ("#56b4e9", "#ff9a52", "#3fd0a4", "#e79bc8", "#f0c040", "#9fd3f5", "#b6bcc4", "#d0a27a")
INK, FAINT, LINE = "#1c2430", "#5b6675", "#d5dbe3"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))

# Stand-ins that Matplotlib draws with and the page replaces; no figure has these colours for any other reason.
_INK, _FAINT, _LINE = "#010203", "#010204", "#010205"
_SERIES = tuple(f"#0102{16 + i:02x}" for i in range(len(LIGHT)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rcmnet_jax",
    "text.parse_math": False,  # a class name may hold a dollar sign
    "axes.formatter.use_mathtext": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "axes.labelcolor": _FAINT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Figure:
    """One figure: its name (a file's stem), inline SVG, a text for those who cannot see it, and a caption."""

    name: str
    svg: str
    alt: str
    caption: str


def series(i: int) -> str:
    """Colour of the i-th series, the page's to choose."""
    return _SERIES[i % len(_SERIES)]


def dash(i: int) -> Any:
    """Line style of the i-th series: colour is never the only mark."""
    return DASHES[i % len(DASHES)]


def faint() -> str:
    """Colour of guides and labels."""
    return _FAINT


def ink() -> str:
    """Colour of text."""
    return _INK


@contextmanager
def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A Matplotlib figure (inches) and its axes (rows, columns), in the report's style, without a display."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with mpl.rc_context(_STYLE):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawing)
        yield drawing, drawing.subplots(rows, columns, squeeze=False)


def figure(drawing: Any, name: str, alt: str, caption: str) -> Figure:
    """The drawing as a `Figure`; to be called inside `canvas`."""
    out = io.StringIO()
    drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Figure(name, _clean(out.getvalue(), name, alt), alt, caption)


def standalone(drawn: Figure) -> str:
    """The figure as a file of its own: light colours on white."""
    colours = {"ink": INK, "faint": FAINT, "line": LINE, **{f"c{i}": colour for i, colour in enumerate(LIGHT)}}
    svg = re.sub(r"var\(--(\w+)\)", lambda m: colours[m.group(1)], drawn.svg)
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
    first = svg.index(">") + 1
    page = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:first]}{page}{svg[first:]}\n'


def _clean(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in ((_INK, "ink"), (_FAINT, "faint"), (_LINE, "line")):
        svg = svg.replace(stand_in, f"var(--{variable})")
    for i, stand_in in enumerate(_SERIES):
        svg = svg.replace(stand_in, f"var(--c{i})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # inline, it would hold for the whole page
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"\s*font-family: [^;\"]*;?", "", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    widest = float(box.group(1).split()[2]) * 1.25
    head = f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="{box.group(1)}"'
    svg = re.sub(
        r"<svg[^>]*>",
        lambda _: f'{head} style="max-width:{widest:.0f}px;min-width:{widest * 0.72:.0f}px">',
        svg,
        count=1,
    )
    return re.sub(r"\n\s*", "\n", svg).strip()
