"""Which form `Accept` asks for: the most specific range decides, then its quality, then JSON before HTML before PDF."""

import base64
import hashlib

import pytest

from api.problems import Refusal
from api.representations import HTML, JSON, PDF, Representation, answer, wanted

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, JSON), ("", JSON), ("*/*", JSON), ("application/json", JSON), ("application/*", JSON), ("text/*", HTML), (BROWSER, HTML), ("TEXT/HTML", HTML),
        ("application/pdf", PDF), ("application/pdf, text/html", HTML), ("text/html;q=0.4, application/pdf;q=0.5", PDF), ("application/*;q=0.5, application/json;q=0", PDF),
        ("*/*;q=0.1, application/pdf", PDF), ("application/json;profile=x;q=0.2, text/html;q=0.1", JSON), ("image/png, */*;q=0.01", JSON),
    ],
)  # fmt: skip
def test_the_preferred_form_is_served(accept: str | None, form: str) -> None:
    assert wanted(accept) == form


@pytest.mark.parametrize(
    "accept", ["image/png", "text/plain", "application/json;q=0", "*/*;q=0", "text/html;q=x", "nonsense", "text/html;q=nan", "," * 5000]
)
def test_what_allows_no_form_is_refused_with_those_there_are(accept: str) -> None:
    with pytest.raises(Refusal) as refused:
        wanted(accept)
    assert (refused.value.status_code, refused.value.code) == (406, "not-acceptable")
    assert "application/pdf" in refused.value.detail


def test_each_form_has_its_own_tag_and_digest_and_a_page_may_load_nothing() -> None:
    page = answer(Representation(HTML, b"<p>", "a.html"), if_none_match=None, revision=2)
    digest = hashlib.sha256(b"<p>").digest()
    assert page.headers["etag"] == f'"sha256:{digest.hex()}"'
    assert page.headers["content-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert (page.headers["vary"], page.headers["cache-control"]) == ("Accept", "private, immutable")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "script-src" not in page.headers["content-security-policy"]
    newest = answer(Representation(JSON, b"{}", "a.json"), if_none_match='"other"', revision=None)
    assert (newest.status_code, "cache-control" in newest.headers, "content-security-policy" in newest.headers) == (200, False, False)
    assert answer(Representation(JSON, b"{}", "a.json"), if_none_match=newest.headers["etag"], revision=None).status_code == 304
