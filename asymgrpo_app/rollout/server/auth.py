"""Token authentication on every route of a sampler server."""

import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from asymgrpo_app.errors import UserError

TOKEN_VARIABLE = "ASYMGRPO_TOKEN"
INFO_VARIABLE = "ASYMGRPO_SERVER_INFO"
INFO_PATH = "/asymgrpo/info"

_LEAST_CHARS = 16

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TokenMiddleware:
    """ASGI middleware around a whole server: requests without the token get 401, whatever the route.

    vLLM's own `--api-key` covers only some routes; those that load weights or call into the workers stay open.

    The token is read from `$ASYMGRPO_TOKEN`. `GET /asymgrpo/info` returns `$ASYMGRPO_SERVER_INFO`, the server's start
    settings, so that a run can refuse a server whose settings would give other numbers.

    Raises:
        RuntimeError: There is no token.
    """

    def __init__(self, app: App) -> None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise RuntimeError(f"{TOKEN_VARIABLE} is not set: the server would be open to everyone.")
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._info = os.environ.get(INFO_VARIABLE, "{}").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass authorized requests on to the app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._authorized(scope):
            await _respond(scope, send, 401, b'{"error": "a token is required"}')
        elif scope["type"] == "http" and scope["path"] == INFO_PATH:
            await _respond(scope, send, 200, self._info)
        else:
            await self._app(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(given[0], self._expected)


async def _respond(scope: Scope, send: Send, status: int, body: bytes) -> None:
    """Send a JSON response; a websocket handshake gets the same if the server supports it, and is closed otherwise."""
    prefix = scope["type"]
    if prefix == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        prefix = "websocket.http"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body})


def read_token(token_file: str | None, key: str) -> str:
    """The token: the content of the file, or `$ASYMGRPO_TOKEN`.

    Args:
        token_file: Path, or None.
        key: The option that names the file, for the message.

    Raises:
        UserError: There is none, it is too short to be a secret, or the file cannot be read.
    """
    try:
        token = (
            Path(token_file).read_text(encoding="utf-8").strip() if token_file else os.environ.get(TOKEN_VARIABLE, "")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} {token_file} cannot be read ({type(error).__name__}).") from error
    source = f"{key} {token_file}" if token_file else f"the environment variable {TOKEN_VARIABLE}"
    if not token:
        raise UserError(f"A sampler server needs a token: {source} holds none; set the variable or {key}.")
    if len(token) < _LEAST_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"The token in {source} must have at least {_LEAST_CHARS} printable ASCII characters and no space; "
            f"it has {len(token)}."
        )
    return token


def info_json(info: dict[str, Any]) -> str:
    """Response body of `GET /asymgrpo/info`."""
    return json.dumps(info, sort_keys=True)
