"""Figures as inline SVG that follow the page: text stays text, colours are the page's, nothing links out."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

# Okabe and Ito's colours, which stay apart for all common kinds of colour blindness, and lighter ones for a dark page.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a8458a", "#b07d00", "#2f8fc9", "#5a5f66", "#7a4b1f")
DARK = ("#56b4e9", "#ff9a52", "#3fd0a4", "#e79bc8", "#f0c040", "#9fd3f5", "#b6bcc4", "#d0a27a")
INK, FAINT, LINE = "#1c2430", "#5b6675", "#d5dbe3"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))

# Stand-ins that Matplotlib draws with and the page replaces; no figure has these colours for any other reason.
_INK, _FAINT, _LINE = "#010203", "#010204", "#010205"
_SERIES = tuple(f"#0102{16 + i:02x}" for i in range(len(LIGHT)))
_VARIABLES = {_INK: "ink", _FAINT: "faint", _LINE: "line", **{colour: f"c{i}" for i, colour in enumerate(_SERIES)}}
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
    out, unstated = io.StringIO(), {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        # Text stays text, and the reader's fonts show it: that Matplotlib's own lacks a script matters to no one.
        warnings.filterwarnings("ignore", r"Glyph \d+ \(.*\) missing from font", UserWarning)
        drawing.savefig(out, format="svg", metadata=unstated)
    return Figure(name, _clean(out.getvalue(), name, alt), alt, caption)


def standalone(drawn: Figure) -> str:
    """The figure as a file of its own: light colours on white."""
    colours = {"ink": INK, "faint": FAINT, "line": LINE, **{f"c{i}": colour for i, colour in enumerate(LIGHT)}}
    root = ElementTree.fromstring(drawn.svg)
    for element in root.iter():
        for key, value in element.items():
            if key != "aria-label":  # it holds names
                element.set(key, re.sub(r"var\(--(\w+)\)", lambda m: colours[m.group(1)], value))
    root.attrib = {"xmlns": "http://www.w3.org/2000/svg", "font-family": "sans-serif", **root.attrib}
    root.insert(0, ElementTree.Element("rect", width="100%", height="100%", fill="#fff"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def legible(text: str) -> str:
    """The text with U+FFFD in place of what XML cannot hold, such as control characters."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _clean(svg: str, name: str, alt: str) -> str:
    """The SVG as the page takes it. Attributes alone are rewritten: what stands between tags may be any name."""
    root = ElementTree.fromstring(legible(svg[svg.index("<svg") :]))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # inline, a style would hold for the whole page
                parent.remove(child)
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {id for value in values for id in re.findall(r"(?:^|url\()#([\w-]+)", value)}
    box = root.attrib["viewBox"]
    for element in root.iter():
        element.tag, element.attrib = _local(element.tag), _attributes(element.attrib, name, used)
        element.text, element.tail = (
            part if part is None or part.strip() else "\n" for part in (element.text, element.tail)
        )
    widest = float(box.split()[2]) * 1.25
    size = f"max-width:{widest:.0f}px;min-width:{widest * 0.72:.0f}px"
    root.attrib = {"class": "plot", "role": "img", "aria-label": legible(alt), "viewBox": box, "style": size}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _attributes(given: dict[str, str], name: str, used: set[str]) -> dict[str, str]:
    """An element's attributes in the page: its colours and font; ids that are used, and unlike other figures'."""
    found = {_local(key): value for key, value in given.items() if key != "id" or value in used}
    for key, value in found.items():
        if key in ("id", "href"):
            found[key] = f"{name}-{value}" if key == "id" else f"#{name}-{value[1:]}"
            continue
        value = value.replace("url(#", f"url(#{name}-")
        for stand_in, variable in _VARIABLES.items():
            value = value.replace(stand_in, f"var(--{variable})")
        value = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
        found[key] = re.sub(r"\s*font-family: [^;]*;?", "", value)
    return found


def _local(name: str) -> str:
    return name.rpartition("}")[2]
