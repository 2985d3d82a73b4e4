"""Drawing: from a figure's data to SVG, the same bytes each time. No global state of matplotlib is touched but inside `settings`.

Text is drawn as outlines, so that the picture does not depend on the fonts of whoever looks at it.
"""

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from services.audit.figure_forms import Axis, Bars, Curve, FigureForm, Histogram, Images, Scatter, form_of

WIDTH, HEIGHT, WIDE = 5.6, 3.0, 7.2
SLANT, LETTER, LEGEND = 40, 0.032, 0.5
"""Long names under bars: their angle, how far a letter of one reaches down, in inches, and the room for the legend below them."""
COLOURS = {"original": "#6b7280", "unlearned": "#1d4ed8", "retrained": "#c2570c", "other": "#4d7c0f"}
STYLES = {"original": (0, (1, 1)), "unlearned": "solid", "retrained": (0, (5, 2)), "other": (0, (3, 1, 1, 1))}
MARKERS = {"original": "s", "unlearned": "o", "retrained": "D", "other": "^"}
HATCHES = {"original": "..", "unlearned": "", "retrained": "//", "other": "xx"}
SHADE = "#16a34a"
RAISED = str.maketrans(
    "-0123456789",
    "\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ZERO}\N{SUPERSCRIPT ONE}\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}"
    "\N{SUPERSCRIPT FOUR}\N{SUPERSCRIPT FIVE}\N{SUPERSCRIPT SIX}\N{SUPERSCRIPT SEVEN}\N{SUPERSCRIPT EIGHT}\N{SUPERSCRIPT NINE}",
)
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lethe",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "axes.titlesize": 8.5,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "savefig.facecolor": "white",
}
UNWANTED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)


def svg_of(document: Mapping[str, Any], *, prefix: str = "") -> str:
    """Return the SVG element of a figure's data, without a date and without metadata. `prefix` begins every id, so that many fit on one page.

    Raises:
        ValidationError: the document is no figure.
    """
    form = form_of(dict(document))
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        picture = DRAWN_BY[type(form)](form)
        buffer = io.StringIO()
        FigureCanvasSVG(picture).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _on_a_page(buffer.getvalue(), prefix=prefix, label=form.title)


def _on_a_page(svg: str, *, prefix: str, label: str) -> str:
    """Return the bare element with ids of its own, named for those who do not see it."""
    bare = UNWANTED.sub("", svg).strip()
    bare = re.sub(r'\bid="', f'id="{prefix}', bare)
    bare = re.sub(r'href="#', f'href="#{prefix}', bare)
    bare = re.sub(r"url\(#", f"url(#{prefix}", bare)
    return bare.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _panels(count: int, *, height: float = HEIGHT, under: float = 0.72) -> tuple[Figure, list[Axes]]:
    """Return a picture with `count` plots beside each other, with `under` inches below them for labels and legend.

    Margins are fixed: matplotlib's own layout measures every text twice, and takes half of the time.
    """
    width = WIDTH if count == 1 else WIDE
    picture = Figure(figsize=(width, height))
    picture.subplots_adjust(left=0.68 / width, right=1 - 0.12 / width, bottom=under / height, top=1 - 0.26 / height, wspace=0.16)
    return picture, [picture.add_subplot(1, count, number + 1) for number in range(count)]


def _axes(place: Axes, x: Axis | None, y: Axis | None) -> None:
    """Give the plot its labels, scales and ends."""
    if x is not None:
        place.set_xlabel(x.label)
        place.set_xscale(x.scale)
        place.set_xlim(left=_end(x.low), right=_end(x.high))
    if y is not None:
        place.set_ylabel(y.label)
        place.set_yscale(y.scale)
        place.set_ylim(bottom=_end(y.low), top=_end(y.high))
    for axis, ruler in ((x, place.xaxis), (y, place.yaxis)):
        if axis is not None and axis.scale == "log":  # matplotlib's own labels are formulas, and no text is read as one here
            ruler.set_major_locator(LogLocator(numticks=6))
            ruler.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
            ruler.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """Return a label for a logarithmic axis: 0.01 to 1000 in full, else as a power of ten."""
    exponent = round(np.log10(value))
    return f"{value:g}" if -2 <= exponent <= 3 else "10" + str(exponent).translate(RAISED)


def _end(value: str | None) -> float | None:
    return None if value is None else float(value)


def _floats(column: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(value) for value in column], dtype=np.float64)


def _legend(picture: Figure, place: Axes) -> None:
    """Put one legend under all plots, so that it covers nothing."""
    named = {label: handle for handle, label in zip(*place.get_legend_handles_labels(), strict=True)}
    handles, labels = list(named.values()), list(named)
    if handles:
        picture.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), borderaxespad=0.1)


def _histogram(form: Histogram) -> Figure:
    picture, places = _panels(len(form.panels))
    edges = _floats(form.edges)
    for place, panel in zip(places, form.panels, strict=True):
        for one in panel.series:
            share = np.array(one.counts, dtype=np.float64) / panel.n
            colour = COLOURS[one.role]
            place.stairs(share, edges, color=colour, linewidth=1.3, linestyle=STYLES[one.role], label=one.name)
            if one.role == "unlearned":
                place.stairs(share, edges, fill=True, color=colour, alpha=0.12, linewidth=0)
        _axes(place, form.x, form.y if place is places[0] else None)
        place.set_xlim(edges[0], edges[-1])
        place.set_ylim(bottom=0)
        place.set_title(f"{panel.title} ({panel.n})")
    _legend(picture, places[0])
    return picture


def _curve(form: Curve) -> Figure:
    picture, (place,) = _panels(1, height=3.4)
    for one in form.series:
        x, colour = _floats(one.x), COLOURS[one.role]
        if one.low and one.high:
            place.fill_between(x, _floats(one.low), _floats(one.high), color=colour, alpha=0.13, linewidth=0)
        place.plot(x, _floats(one.y), color=colour, linestyle=STYLES[one.role], linewidth=1.5, label=one.name)
    _axes(place, form.x, form.y)
    if form.diagonal:
        low = max(place.get_xlim()[0], place.get_ylim()[0], 1e-9)
        place.plot([low, 1.0], [low, 1.0], color="#9ca3af", linewidth=0.8, linestyle="dashed", zorder=0)
    for mark in form.marks:
        at = float(mark.at)
        if mark.axis == "x":
            place.axvline(at, color="#111827", linewidth=0.8, linestyle="dashed")
            place.text(at, 0.97, f" {mark.label}", transform=place.get_xaxis_transform(), fontsize=7.5, ha="left", va="top")
        else:
            place.axhline(at, color="#111827", linewidth=0.8, linestyle="dashed")
            place.text(0.01, at, mark.label, transform=place.get_yaxis_transform(), fontsize=7.5, ha="left", va="bottom")
    _legend(picture, place)
    return picture


def _bars(form: Bars) -> Figure:
    longest = max(map(len, form.categories))
    slanted = longest > 4
    under = max(1.1, LEGEND + LETTER * longest) if slanted else 0.6
    picture, (place,) = _panels(1, height=HEIGHT + max(0.0, under - 1.1), under=under)
    middle = np.arange(len(form.categories), dtype=np.float64)
    width = 0.8 / len(form.series)
    for number, one in enumerate(form.series):
        at = middle + (number - (len(form.series) - 1) / 2) * width
        colour = COLOURS[one.role]
        place.bar(at, _floats(one.values), width, color=colour, alpha=0.75, edgecolor="white", hatch=HATCHES[one.role], linewidth=0.4, label=one.name)
    place.set_xticks(middle, list(form.categories), rotation=SLANT if slanted else 0, ha="right" if slanted else "center")
    _axes(place, None, form.y)
    _legend(picture, place)
    return picture


def _scatter(form: Scatter) -> Figure:
    picture, (place,) = _panels(1, height=3.4)
    for one in form.points:
        colour = COLOURS[one.role]
        inside = "none" if one.role == "retrained" else colour  # the aim is a ring, so that a model that meets it is seen
        size = 110 if one.role == "retrained" else 40
        place.scatter(
            float(one.x),
            float(one.y),
            s=size,
            marker=MARKERS[one.role],
            facecolors=inside,
            edgecolors=colour,
            label=one.name,
            zorder=3,
            clip_on=False,
        )
    place.margins(0.12)
    _axes(place, form.x, form.y)
    (left, right), (bottom, top) = place.get_xlim(), place.get_ylim()
    for band in form.bands:
        ends = (left, right) if band.axis == "x" else (bottom, top)
        low, high = (ends[number] if end is None else float(end) for number, end in enumerate((band.low, band.high)))
        shade = place.axvspan if band.axis == "x" else place.axhspan
        shade(low, high, color=SHADE, alpha=0.10, linewidth=0, label=band.label)
        left, right = (min(left, low), max(right, high)) if band.axis == "x" else (left, right)
        bottom, top = (min(bottom, low), max(top, high)) if band.axis == "y" else (bottom, top)
    place.set_xlim(left, right)
    place.set_ylim(bottom, top)
    _legend(picture, place)
    return picture


def _images(form: Images) -> Figure:
    picture, places = _panels(len(form.sheets), height=WIDE / max(2, len(form.sheets)) + 0.4, under=0.1)
    for place, sheet in zip(places, form.sheets, strict=True):
        pixels = imread(io.BytesIO(base64.b64decode(sheet.png)), format="png")
        place.imshow(pixels, interpolation="none", cmap="gray", vmin=0, vmax=1)
        place.set_axis_off()
        place.set_title(sheet.title, color=COLOURS[sheet.role])
    return picture


DRAWN_BY: dict[type[FigureForm], Callable[[Any], Figure]] = {
    Histogram: _histogram,
    Curve: _curve,
    Bars: _bars,
    Scatter: _scatter,
    Images: _images,
}
