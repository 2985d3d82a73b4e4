"""Renderings: one page as HTML and as PDF/A, made from the statement and the data of its figures, the same bytes each time.

Neither adds anything to the statement; the JSON is authoritative, and both print its digest. The HTML runs no script.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import typst
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.audit.figures import svg_of
from services.audit.page import page_of

TEMPLATES = Path(__file__).parent / "templates"
PDF_STANDARDS = ["a-2a", "ua-1"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One form of a report with the SHA-256 (hex) of its bytes."""

    form: str
    body: bytes

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the bytes."""
        return hashlib.sha256(self.body).hexdigest()


def rendered(statement: Mapping[str, Any], *, digest: str, figures: Mapping[str, Mapping[str, Any]]) -> list[Rendered]:
    """Return HTML and PDF of a statement. `figures` is the data of its drawn figures by digest.

    Raises:
        ValidationError: a figure's data are of no known form. TypstError: the page could not be set.
    """
    page = page_of(statement, digest=digest, figures=figures)
    for model in page["found"]:
        for figure in model["figures"]:
            figure["svg"] = svg_of(figure.pop("data"), prefix=f"f{figure['key']}-")
    at = datetime.fromisoformat(statement["predicate"]["clock"]["completed"])
    return [Rendered("html", html_of(page)), Rendered("pdf", pdf_of(page, at=at))]


def html_of(page: Mapping[str, Any]) -> bytes:
    """Return the page as one HTML document, everything in it escaped but the pictures, which are ours."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(page=page).encode()


def pdf_of(page: Mapping[str, Any], *, at: datetime) -> bytes:
    """Return the page as PDF/A-2a and PDF/UA-1, dated `at`; the page goes in as data, never as markup."""
    return typst.compile(
        (TEMPLATES / "report.typ").read_bytes(),
        ignore_system_fonts=True,
        sys_inputs={"page": json.dumps(page, sort_keys=True)},
        pdf_standards=PDF_STANDARDS,  # pyright: ignore[reportArgumentType]  the stub spells each name out
        timestamp=at.replace(microsecond=0),
    )
