"""Connections of a sampler server: their number, and the time that a request may take to arrive, have limits.

Neither uvicorn nor vLLM has an option for that: a client without a token could hold any number of connections open.
"""

import asyncio

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_HEADERS_S = 10.0
_MOST_CONNECTIONS = 4096


class BoundedConnection(H11Protocol):
    """HTTP connection that is closed if a request's headers, or the rest of a refused one, take more than 10 s.

    The body of a request with the token has its own time (`gate`), an idle connection uvicorn's 5 s. One connection
    more than 4,096 is closed at once.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEADERS_S, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def bound_connections() -> None:
    """Have uvicorn, and with it vLLM, make such connections."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
