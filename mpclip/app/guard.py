"""Requests that the app refuses before Gradio sees them.

Gradio fetches an address for a visitor in two ways: as the file of a page, and as the file of an input. So anyone who can reach
the app could make this machine call others. And it puts no bound on a request other than an upload.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from mpclip.app.uploads import MAX_BYTES

MAX_BODY = MAX_BYTES + 2**20  # of a request: an upload with its frame
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # "https://...", "data:..."; paths begin otherwise

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 where a file is an address, 413 where a body is too large, and passes everything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if names_address(scope["path"]):
            await _refuse(send, 403, "Files are not fetched from other machines.")
            return
        body = bytearray()
        more = has_body = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                await _refuse(send, 413, f"The request has more than {MAX_BODY / 2**20:.0f} MB.")
                return
        if holds_address(bytes(body)):
            await _refuse(send, 403, "Files are not fetched from other machines.")
            return
        sent = [{"type": "http.request", "body": bytes(body), "more_body": False}] if has_body else []
        await self.app(scope, lambda: _next(sent, receive), send)


def names_address(path: str) -> bool:
    """Whether the path of a request asks for the file at an address: .../file=https://..."""
    _, found, rest = path.partition("/file=") if "/file=" in path else path.partition("/file/")
    return bool(found) and bool(ADDRESS.match(unquote(rest)))


def holds_address(body: bytes) -> bool:
    """Whether a JSON text has a file whose path is an address. Other bodies, such as uploads, have none."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str) and ADDRESS.match(value["path"]):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


async def _next(sent: list, receive: Receive) -> MutableMapping[str, Any]:
    return sent.pop() if sent else await receive()


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
