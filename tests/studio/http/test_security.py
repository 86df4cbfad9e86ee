"""Foreign hosts and origins, and what a browser and Gradio may load."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from piti.core.errors import UserError
from piti.studio.http.security import Guard, SecurityHeaders, cleaned, hosts_of
from tests.studio.http.asgi import asked, echo


@pytest.mark.parametrize(
    ("host", "more", "name", "status"),
    [
        ("127.0.0.1", (), "localhost:7860", 200),
        ("127.0.0.1", (), "LOCALHOST", 200),
        ("127.0.0.1", (), "127.0.0.1:9000", 200),
        ("127.0.0.1", (), "[::1]:7860", 200),
        ("127.0.0.1", (), "evil.example", 421),
        ("127.0.0.1", (), "localhost.evil.example:7860", 421),
        ("127.0.0.1", (), "192.168.0.7:7860", 421),
        ("127.0.0.1", (), "evil@localhost", 421),
        ("127.0.0.1", (), "", 421),
        ("127.0.0.1", (), "[::1", 421),
        ("0.0.0.0", (), "[", 421),
        ("127.0.0.1", (), "[nonsense]:80", 421),
        ("127.0.0.1", ("Studio.example",), "studio.example", 200),
        ("127.0.0.1", ("studio.example:8443",), "studio.example:8443", 200),
        ("127.0.0.1", ("studio.example:8443",), "studio.example", 200),
        ("127.0.0.1", ("[2001:db8::1]",), "[2001:db8::1]:80", 200),
        ("127.0.0.1", ("2001:db8::1",), "[2001:db8::1]:80", 200),
        ("0.0.0.0", (), "192.168.0.7:7860", 200),
        ("0.0.0.0", (), "[fe80::1]:7860", 200),
        ("0.0.0.0", (), "evil.example", 421),
        ("192.168.0.7", (), "192.168.0.7:7860", 200),
        ("192.168.0.7", (), "192.168.0.8:7860", 421),
    ],
)
def test_a_studio_answers_to_its_names_alone(host: str, more: tuple[str, ...], name: str, status: int) -> None:
    for method in ("GET", "POST"):
        assert asked(Guard(echo, hosts_of(host, more)), method=method, host=name)[0] == status


@pytest.mark.parametrize("name", ["https://studio.example", "studio.example/studio", "*.example", "", "*", "[::1"])
def test_what_is_no_name_is_refused_at_the_start(name: str) -> None:
    """It was taken, and every request under the name that was meant refused."""
    with pytest.raises(UserError, match="is not a host"):
        hosts_of("127.0.0.1", [name])


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 200),
        ("POST", {"origin": "http://localhost:7860"}, 200),
        ("POST", {"origin": "https://studio.example"}, 200),
        ("POST", {"origin": "http://localhost:3000"}, 403),
        ("POST", {"origin": "http://evil.example"}, 403),
        ("GET", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://[::1"}, 403),
        ("GET", {"origin": "http://[nonsense]"}, 403),
        ("POST", {"origin": ""}, 403),
        ("POST", {"sec_fetch_site": "cross-site"}, 403),
        ("POST", {"sec_fetch_site": "same-site"}, 403),
        ("POST", {"sec_fetch_site": "same-origin"}, 200),
        ("GET", {"sec_fetch_site": "cross-site"}, 200),  # a link
        ("OPTIONS", {"origin": "http://evil.example"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(method: str, headers: dict[str, str], status: int) -> None:
    guard = Guard(echo, hosts_of("127.0.0.1", ["studio.example"]))
    assert asked(guard, method=method, **headers)[0] == status


def test_what_gradio_offers_beyond_the_page_is_closed_below_the_path_of_a_proxy() -> None:
    guard = Guard(echo, hosts_of("127.0.0.1"))
    for root, path, status in (
        ("", "/gradio_api/deep_link", 403),
        ("", "/gradio_api/file=/tmp/a.png", 200),
        ("/studio", "/studio/gradio_api/deep_link", 403),
        ("/studio", "/gradio_api/deep_link", 403),
        ("/studio", "/studio/gradio_api/file=/tmp/a.png", 200),
    ):
        assert asked(guard, method="GET", path=path, root_path=root)[0] == status, path


def test_every_answer_has_the_security_headers() -> None:
    headers = asked(SecurityHeaders(echo))[1]
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_gradios_own_template_is_cleaned() -> None:
    found = importlib.util.find_spec("gradio")
    assert found is not None
    assert found.origin is not None
    page = cleaned((Path(found.origin).parent / "templates/frontend/index.html").read_text("utf-8"))
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<gradio-app" in page
