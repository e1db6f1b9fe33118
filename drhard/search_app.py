"""A page to search with, for the browsers of this machine.

The server listens on 127.0.0.1 alone. But any web site can make a browser of this machine send requests here, so they
are refused unless the page itself sent them or the user typed the address: see :func:`is_foreign`.
"""

import os
import secrets
import socket
from urllib.parse import urlsplit

from drhard.answers import Search, render_page
from drhard.errors import InputError

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
REFUSAL = "This request comes from another site. Type the address into the browser."
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Even if a text was not escaped, no script of it would run, and nothing would be fetched.
POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def make_app(search: Search) -> ASGIApp:
    """Return the application: ``/?query=TEXT`` is the page, ``/search.json?query=TEXT`` the answer as JSON."""

    def show_page(request: Request) -> Response:
        query, answer, complaint = request.query_params.get("query", ""), None, ""
        try:
            answer = search.ask(query) if query.strip() else None
        except InputError as error:
            complaint = str(error)
        nonce = secrets.token_urlsafe(16)
        page = render_page(search.names, query, answer, complaint, nonce)
        headers = HEADERS | {"Content-Security-Policy": POLICY.format(nonce=nonce)}
        return HTMLResponse(page, 400 if complaint else 200, headers)

    def answer_json(request: Request) -> Response:
        query = request.query_params.get("query", "")
        if not query.strip():
            return JSONResponse({"error": "give a query: /search.json?query=TEXT"}, 400, HEADERS)
        try:
            return JSONResponse(search.ask(query).as_json(), headers=HEADERS)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)

    return _OwnRequests(Starlette(routes=[Route("/", show_page), Route("/search.json", answer_json)]))


class _OwnRequests:
    """Refuses requests of other sites."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_foreign(Headers(scope=scope)):
            await PlainTextResponse(REFUSAL, 403, HEADERS)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_foreign(headers: Headers) -> bool:
    """Return whether another site sent a request with these headers.

    A site can give its own name the address 127.0.0.1 (DNS rebinding); then Host has that name. If it sends a request
    to this address, browsers say so in Origin or Sec-Fetch-Site.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return True
    if name not in HOSTS or origin not in (None, f"http://{host}"):
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def listen(port: int) -> socket.socket:
    """Listen at ``port`` of this machine; 0 for any free one. Raises InputError if it cannot be had."""
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise InputError(f"--http {port}: {os.strerror(error.errno or 0)}; choose another port") from None


def serve(search: Search, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    config = uvicorn.Config(
        make_app(search), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none"
    )
    uvicorn.Server(config).run(sockets=[listener])
