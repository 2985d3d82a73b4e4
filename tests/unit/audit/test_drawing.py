"""Each kind of figure as SVG: the same bytes each time, nothing in it but what was given."""

import base64
import re
import struct
import zlib
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError

from services.audit.figures import power_of_ten, svg_of

AXIS: dict[str, Any] = {"label": "loss (nats)", "scale": "linear", "low": None, "high": None}
TITLED = {"title": "A title", "caption": "A caption.", "note": ""}


def png(width: int = 2, height: int = 2) -> str:
    """Return a grey PNG of that size, made by hand."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\x00" + b"\x80" * width for _ in range(height)))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")).decode()


def counts(role: str, *values: int) -> dict[str, Any]:
    return {"name": role, "role": role, "counts": list(values)}


KINDS: dict[str, dict[str, Any]] = {
    "histogram": {
        **TITLED, "kind": "histogram", "x": {**AXIS, "scale": "log"}, "y": AXIS, "edges": ["0.0001", "0.01", "1"],
        "panels": [{"title": "forgotten", "n": 20, "series": [counts("original", 5, 15), counts("unlearned", 8, 12)]}] * 2,
    },
    "curve": {
        **TITLED, "kind": "curve", "x": {**AXIS, "scale": "log", "low": "0.001", "high": "1"}, "y": {**AXIS, "scale": "log", "low": "0.001", "high": "1"},
        "series": [{"name": "unlearned", "role": "unlearned", "x": ["0.001", "1"], "y": ["0.002", "1"], "low": ["0.001", "1"], "high": ["0.003", "1"]}],
        "diagonal": True, "marks": [{"axis": "x", "at": "0.01", "label": "at 1 %"}, {"axis": "y", "at": "0.5", "label": "the bar"}],
    },
    "bars": {
        **TITLED, "kind": "bars", "y": {**AXIS, "low": "0"}, "categories": ["a", "a long name"],
        "series": [{"name": "unlearned", "role": "unlearned", "values": ["0.25", "0.75"]}, {"name": "retrained", "role": "retrained", "values": ["0.5", "0.5"]}],
    },
    "scatter": {
        **TITLED, "kind": "scatter", "x": AXIS, "y": AXIS,
        "points": [{"name": "original", "role": "original", "x": "1", "y": "0.9"}, {"name": "retrained", "role": "retrained", "x": "0", "y": "0.9"}],
        "bands": [{"axis": "x", "low": "-0.05", "high": "0.05", "label": "allowed"}, {"axis": "y", "low": "0.8", "high": None, "label": "allowed"}],
    },
    "images": {**TITLED, "kind": "images", "sheets": [{"title": "before", "role": "original", "png": png()}, {"title": "after", "role": "unlearned", "png": png()}]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_drawn_as_well_formed_svg_the_same_each_time_without_a_date(kind: str) -> None:
    first, second = svg_of(KINDS[kind], prefix="a-"), svg_of(KINDS[kind], prefix="a-")
    assert first == second
    root = ET.fromstring(first)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("role"), root.get("aria-label")) == ("img", "A title")
    assert "metadata" not in first
    assert "<!--" not in first
    assert "20" + "26-" not in first


def test_ids_of_two_pictures_on_one_page_never_meet_and_every_reference_is_to_its_own() -> None:
    first, second = (svg_of(KINDS["histogram"], prefix=prefix) for prefix in ("a-", "b-"))

    def ids(svg: str) -> set[str]:
        return set(re.findall(r'\bid="([^"]+)"', svg))

    assert ids(first).isdisjoint(ids(second))
    referred = set(re.findall(r'href="#([^"]+)"', first)) | set(re.findall(r"url\(#([^)]+)\)", first))
    assert referred <= ids(first)


LETTER_HEIGHT = 8.0
HOSTILE = '</svg><script>alert(1)</script> $\\frac{1}{0}$ --> "&amp;'


def test_text_that_is_markup_or_a_formula_elsewhere_is_only_text_here() -> None:
    svg = svg_of({**KINDS["scatter"], "title": HOSTILE, "points": [{"name": HOSTILE, "role": "original", "x": "1", "y": "1"}]})
    root = ET.fromstring(svg)
    assert root.get("aria-label") == HOSTILE
    assert [part for part in root.iter() if part.tag.endswith("script")] == []


def test_bars_stand_as_high_as_their_numbers() -> None:
    svg = svg_of(KINDS["bars"])
    heights = {}
    for number, path in re.findall(r'<g id="patch_(\d+)">\s*<path d="([^"]+)"', svg):
        points = [tuple(map(float, point.split())) for point in re.findall(r"[ML] ([-\d.]+ [-\d.]+)", path)]
        heights[int(number)] = max(y for _, y in points) - min(y for _, y in points)
    drawn = [heights[number] for number in sorted(heights)][2:6]  # after the background of figure and axes
    assert drawn[1] / drawn[0] == pytest.approx(3.0, abs=0.01)
    assert drawn[2] / drawn[3] == pytest.approx(1.0, abs=0.01)


def test_the_names_under_bars_leave_the_legend_free() -> None:
    svg = svg_of({**KINDS["bars"], "categories": ["a", "forgotten, likelihood in 4 bits"]})
    names = re.findall(r"translate\([-\d.]+ ([-\d.]+)\) rotate\(", svg[svg.index('<g id="xtick_1">') : svg.index('<g id="matplotlib.axis_2">')])
    legend = re.findall(r"translate\([-\d.]+ ([-\d.]+)\) scale", svg[svg.index('<g id="legend_1">') :])

    assert (len(names), len(legend)) == (2, 2)
    assert max(map(float, names)) < min(map(float, legend)) - LETTER_HEIGHT  # a slanted name is lowest where it begins


def test_a_contact_sheet_larger_than_its_bound_is_refused() -> None:
    with pytest.raises(ValidationError):
        svg_of({**KINDS["images"], "sheets": [{"title": "big", "role": "original", "png": png(1025, 1)}]})


@pytest.mark.parametrize(("value", "label"), [(0.01, "0.01"), (1.0, "1"), (1000.0, "1000"), (0.001, "10⁻³"), (1e-12, "10⁻¹²"), (1e5, "10⁵")])
def test_a_logarithmic_axis_is_labelled_without_formulas(value: float, label: str) -> None:
    assert power_of_ten(value) == label
