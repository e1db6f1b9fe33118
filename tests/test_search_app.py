"""The page to search with: what it shows, what it refuses, and how it looks in a browser."""

import html
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from drhard.answers import Answer, Hit, Ranking
from drhard.errors import InputError
from drhard.known_queries import KnownQuery

import pytest
from browser import Browser, browsing, find_browser

pytest.importorskip("starlette", reason="starlette is not installed; requirements-dev.txt has it")
from drhard.search_app import listen, make_app, serve

from starlette.testclient import TestClient

HOME = "http://127.0.0.1:8000"
EVIL = "<script>document.title = 'broken'</script>\"'><img src=x onerror=alert(1)>&lt;"
LONG = "Ein sehr langer Satz, der nie endet. " * 60
LONG_WORD = "Donaudampfschifffahrtsgesellschaft" * 12


class Stub:
    """Stands in for the search: it finds the same few passages for every query."""

    def __init__(self, models: int = 1):
        self.names = ["trained_models/star", "adore_train/models/epoch-5"][:models]

    def ask(self, query: str) -> Answer:
        if query == "damaged":
            raise InputError(f"collection.tsv, row 3: {EVIL}")
        texts = [EVIL, LONG, "مرحبا بالعالم", LONG_WORD, "A short one.", None, *["A river in Europe."] * 4]
        grades, others = [None, 2, None, 0], [1, 5, None, 2, 9]
        hits = [
            Hit(
                rank,
                f"{rank * 1234567}",
                20 / rank,
                text,
                *(of[rank - 1] if rank <= len(of) else None for of in (grades, others)),
            )
            for rank, text in enumerate(texts, start=1)
        ]
        known = KnownQuery("dev", "1048585", query, {1: 2, 3: 0}) if query != "unknown" else None
        rankings = [Ranking(name, 0.0123, hits) for name in self.names]
        return Answer(query, known, ["2469134"] if known else [], rankings, 100)


def client(models: int = 1) -> TestClient:
    return TestClient(make_app(Stub(models)), base_url=HOME)


def test_the_page_shows_what_was_found() -> None:
    empty = client().get("/")
    assert empty.status_code == 200
    assert "autofocus" in empty.text and "<ol>" not in empty.text
    page = client().get("/", params={"query": "the rhine"})
    assert page.status_code == 200
    assert page.text.count("</li>") == 10
    assert 'value="the rhine"' in page.text
    assert "the rhine: dev query 1048585, 1 passage judged relevant." in page.text
    assert page.text.count("relevant (grade 2)") == 1 and page.text.count("not relevant (grade 0)") == 1
    body = page.text.partition("</style>")[2]
    assert "moved" not in body and "<h2" not in body  # there is one model
    assert "judged relevant" not in client().get("/", params={"query": "unknown"}).text


def test_two_models_stand_side_by_side() -> None:
    page = client(2).get("/", params={"query": "the rhine"}).text
    assert page.count("<section") == 2 and page.count("</li>") == 20
    assert '<span class="moved down">▼ now 5</span>' in page
    assert '<span class="moved up">▲ was 5</span>' in page
    assert '<span class="moved">now below 100</span>' in page


@pytest.mark.parametrize("query", [EVIL, "damaged"], ids=["query and text", "complaint"])
def test_texts_and_queries_are_escaped(query: str) -> None:
    page = client(2).get("/", params={"query": query})
    assert page.status_code == (400 if query == "damaged" else 200)
    assert "<script" not in page.text and "<img" not in page.text
    assert EVIL in html.unescape(page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
    [nonce] = re.findall(r"<style nonce=\"([^\"]+)\">", page.text)
    assert f"style-src 'nonce-{nonce}'" in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:,)", page.text)


def test_json_is_the_answer() -> None:
    answer = client(2).get("/search.json", params={"query": "the rhine"})
    assert answer.json() == json.loads(json.dumps(Stub(2).ask("the rhine").as_json()))
    assert client().get("/search.json", params={"query": " "}).status_code == 400
    assert client().get("/search.json").json() == {"error": "give a query: /search.json?query=TEXT"}
    damaged = client().get("/search.json", params={"query": "damaged"})
    assert (damaged.status_code, damaged.json()) == (400, {"error": f"collection.tsv, row 3: {EVIL}"})


@pytest.mark.parametrize("path", ["/", "/?query=lake", "/search.json?query=lake", "/nowhere"])
@pytest.mark.parametrize(
    "headers, foreign",
    [
        ({}, False),
        ({"host": "localhost:8000"}, False),
        ({"host": "LOCALHOST"}, False),
        ({"origin": HOME}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"host": "evil.example:8000"}, True),  # that has the address 127.0.0.1
        ({"host": "127.0.0.1.evil.example"}, True),
        ({"host": "127.0.0.1@evil.example"}, True),
        ({"host": "[::1"}, True),
        ({"host": ""}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "http://127.0.0.1:9999"}, True),  # another server of this machine
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True),
    ],
)
def test_requests_of_other_sites_are_refused(path: str, headers: dict[str, str], foreign: bool) -> None:
    answer = client().get(path, headers=headers)
    assert answer.status_code == (403 if foreign else 404 if path == "/nowhere" else 200)
    assert ("another site" in answer.text) == foreign
    assert client().post(path, headers=headers).status_code in ((403,) if foreign else (404, 405))


def test_a_port_that_is_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--http {port}: Address already in use; choose another port"):
            listen(port)


@pytest.fixture(scope="module", params=[1, 2], ids=["one model", "two models"])
def address(request: pytest.FixtureRequest) -> str:
    """A page that is served, by a thread that ends with this process."""
    listener = listen(0)
    threading.Thread(target=serve, args=(Stub(request.param), listener), daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_it_is_served_to_this_machine_alone(address: str) -> None:
    with urlopen(f"{address}search.json?query=lake") as answer:
        assert json.load(answer)["query"] == "lake"
        assert answer.headers["server"] is None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("there is no Chromium to look at the page with")
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_works_in_a_browser(browser: Browser, address: str, tmp_path: Path, width: int, dark: bool) -> None:
    browser.size(width, dark)
    browser.open(address)
    browser.wait("document.activeElement.id == 'query'")
    browser.write("the rhine")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('li').length >= 10 && document.readyState == 'complete'")
    assert browser.value("document.title") == "the rhine – Search passages"  # no text has run as a script
    assert browser.value("new URL(location).searchParams.get('query')") == "the rhine"
    assert browser.value("document.documentElement.scrollWidth") <= width  # nothing is cut off
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    sections = browser.value("[...document.querySelectorAll('section')].map(one => one.getBoundingClientRect().x)")
    assert len(set(sections)) == (len(sections) if width > 800 else 1)  # side by side, or one below the other
    dim = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 128)")
    assert dim == dark
    focused = [browser.value("document.activeElement.tagName")]
    for _ in range(3):
        browser.press("Tab")
        focused.append(browser.value("document.activeElement.tagName"))
    assert focused == ["BODY", "INPUT", "BUTTON", "SUMMARY"]
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    browser.wait("document.querySelector('details').open")
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
