"""The forms that a figure's data can have. They are closed and bounded: what a runner wrote is checked against them before it is kept.

Numbers that are no counts are decimal strings, so that the digest of the canonical JSON is the same in every language. A histogram counts sixteen
records or more.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

LEAST_RECORDS = 16
PNG_BYTES = 300_000
PNG_SIDE = 1024
PNG_HEAD = b"\x89PNG\r\n\x1a\n"

Number = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?(e[+-][0-9]{2,3})?$", max_length=32)]
Words = Annotated[str, Field(max_length=200)]
Prose = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Role = Literal["original", "unlearned", "retrained", "other"]
Column = Annotated[tuple[Number, ...], Field(max_length=512)]


class Form(BaseModel):
    """A closed, frozen part of a figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Axis(Form):
    """What an axis shows, and where it begins and ends, if that is said."""

    label: Words
    scale: Literal["linear", "log"] = "linear"
    low: Number | None = None
    high: Number | None = None


class Titled(Form):
    """What every figure has: a title, a caption, and a note where something has to be said of the data."""

    title: Words
    caption: Prose
    note: Prose = ""


class Counted(Form):
    """The counts of one model."""

    name: Words
    role: Role
    counts: tuple[Count, ...] = Field(max_length=100)


class Panel(Form):
    """One set of `n` records, counted for each model."""

    title: Words
    n: int = Field(ge=LEAST_RECORDS)
    series: tuple[Counted, ...] = Field(min_length=1, max_length=6)

    @model_validator(mode="after")
    def each_counts_all(self) -> "Panel":
        """Refuse a column that does not count every record once."""
        if any(sum(one.counts) != self.n for one in self.series):
            raise ValueError("a column does not add up to the number of records")
        return self


class Histogram(Titled):
    """Counts over shared bins."""

    kind: Literal["histogram"]
    x: Axis
    y: Axis
    edges: Column
    panels: tuple[Panel, ...] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def bins_fit(self) -> "Histogram":
        """Refuse edges that do not rise, or that are not one more than the counts."""
        values = [float(edge) for edge in self.edges]
        if any(first >= second for first, second in pairwise(values)):
            raise ValueError("the edges do not rise")
        if any(len(one.counts) + 1 != len(values) for panel in self.panels for one in panel.series):
            raise ValueError("edges and counts do not fit")
        return self


class Line(Form):
    """One curve, with the spread around it where it has one."""

    name: Words
    role: Role
    x: Column
    y: Column
    low: Column = ()
    high: Column = ()

    @model_validator(mode="after")
    def as_long(self) -> "Line":
        """Refuse columns of different lengths."""
        if not {len(self.y), len(self.low) or len(self.x), len(self.high) or len(self.x)} == {len(self.x)}:
            raise ValueError("the columns of a curve differ in length")
        return self


class Mark(Form):
    """A straight line at one value of an axis."""

    axis: Literal["x", "y"]
    at: Number
    label: Words


class Curve(Titled):
    """Curves over one pair of axes."""

    kind: Literal["curve"]
    x: Axis
    y: Axis
    series: tuple[Line, ...] = Field(min_length=1, max_length=8)
    diagonal: bool = False
    marks: tuple[Mark, ...] = Field(default=(), max_length=4)


class Bar(Form):
    """The bars of one model."""

    name: Words
    role: Role
    values: Column


class Bars(Titled):
    """Groups of bars."""

    kind: Literal["bars"]
    y: Axis
    categories: tuple[Words, ...] = Field(min_length=1, max_length=64)
    series: tuple[Bar, ...] = Field(min_length=1, max_length=6)

    @model_validator(mode="after")
    def one_for_each(self) -> "Bars":
        """Refuse a series that has not one bar for each category."""
        if any(len(one.values) != len(self.categories) for one in self.series):
            raise ValueError("bars and categories do not fit")
        return self


class Point(Form):
    """One mark of a scatter plot."""

    name: Words
    role: Role
    x: Number
    y: Number


class Band(Form):
    """A shaded range of one axis; an end that is not said is open."""

    axis: Literal["x", "y"]
    low: Number | None
    high: Number | None
    label: Words


class Scatter(Titled):
    """Marks over one pair of axes."""

    kind: Literal["scatter"]
    x: Axis
    y: Axis
    points: tuple[Point, ...] = Field(min_length=1, max_length=64)
    bands: tuple[Band, ...] = Field(default=(), max_length=4)


def _png(text: str) -> str:
    """Refuse what is no small PNG. Only the head is read: 1024 pixels a side bound what a decoder would unpack."""
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("an image is not base64") from error
    if len(content) > PNG_BYTES or not content.startswith(PNG_HEAD) or content[12:16] != b"IHDR" or len(content) < 24:
        raise ValueError("an image is no PNG of at most 300 kB")
    if max(struct.unpack(">II", content[16:24])) > PNG_SIDE:
        raise ValueError("an image has more than 1024 pixels a side")
    return text


class Sheet(Form):
    """One image of many samples."""

    title: Words
    role: Role
    png: Annotated[str, Field(max_length=4 * PNG_BYTES // 3 + 4), AfterValidator(_png)]


class Images(Titled):
    """Contact sheets beside each other."""

    kind: Literal["images"]
    sheets: tuple[Sheet, ...] = Field(min_length=1, max_length=4)


FigureForm = Histogram | Curve | Bars | Scatter | Images
_FORM: TypeAdapter[FigureForm] = TypeAdapter(Annotated[FigureForm, Field(discriminator="kind")])


def form_of(document: Any) -> FigureForm:
    """Return the figure that a document describes. Raises pydantic's ValidationError."""
    return _FORM.validate_python(document)


def plain(form: FigureForm) -> dict[str, Any]:
    """Return the figure as the JSON that is kept and digested."""
    return form.model_dump(mode="json")


def data_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of a figure's data."""
    return hashlib.sha256(rfc8785.dumps(dict(document))).hexdigest()
