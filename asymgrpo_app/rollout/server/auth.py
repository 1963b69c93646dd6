"""Token authentication on every route of a sampler server."""

import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from asymgrpo_app.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN_VARIABLE = "ASYMGRPO_TOKEN"
INFO_VARIABLE = "ASYMGRPO_SERVER_INFO"
INFO_PATH = "/asymgrpo/info"


class TokenMiddleware:
    """ASGI middleware around a whole server: requests without the token get 401, whatever the route.

    vLLM's own `--api-key` covers only some routes; those that load weights or call into the workers stay open.

    The token is read from `$ASYMGRPO_TOKEN`. `GET /asymgrpo/info` returns `$ASYMGRPO_SERVER_INFO`, the server's start
    settings, so that a run can refuse a server whose settings would give other numbers.

    Raises:
        RuntimeError: There is no token.
    """

    def __init__(self, app: "ASGIApp") -> None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise RuntimeError(f"{TOKEN_VARIABLE} is not set: the server would be open to everyone.")
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._info = os.environ.get(INFO_VARIABLE, "{}").encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass authorized requests on to the app."""
        from starlette.responses import JSONResponse, Response  # installed where vLLM is, and with it this server
        from starlette.websockets import WebSocketClose

        app = self._app
        if scope["type"] != "lifespan" and not self._authorized(scope):
            app = JSONResponse({"error": "a token is required"}, 401, {"WWW-Authenticate": "Bearer"})
            if scope["type"] == "websocket":
                app = WebSocketClose(1008)
        elif scope["type"] == "http" and scope["path"] == INFO_PATH:
            app = Response(self._info, media_type="application/json")
        await app(scope, receive, send)

    def _authorized(self, scope: "Scope") -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(given[0], self._expected)


def read_token(token_file: str | None, key: str) -> str:
    """The token: the content of the file, or `$ASYMGRPO_TOKEN`.

    Args:
        token_file: Path, or None.
        key: The option that names the file, for the message.

    Raises:
        UserError: There is none, it is too short to be a secret, or the file cannot be read.
    """
    source, token = f"the environment variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
    if token_file:
        source = f"{key} {token_file}"
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source} cannot be read ({type(error).__name__}).") from error
    if not re.fullmatch("[!-~]{16,}", token):
        raise UserError(
            f"A sampler server needs a token of at least 16 printable ASCII characters without spaces, and {source} "
            f"holds none: set the variable or {key}."
        )
    return token
