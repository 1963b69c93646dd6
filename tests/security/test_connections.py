"""Half-open requests to a sampler server, on uvicorn as vLLM starts it but without vLLM."""

import asyncio
import socket
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn")

from asymgrpo_app.rollout.server import connections  # noqa: E402 (needs uvicorn)

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope, receive, send):
    """Takes as long as its path says."""
    await asyncio.sleep(float(scope["path"][1:] or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(connections, "_HEADERS_S", 0.4)
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 5)
    monkeypatch.setitem(connections.HTTP_PROTOCOLS, "auto", "")
    connections.bound_connections()
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", timeout_keep_alive=2, h11_max_incomplete_event_size=4096
    )
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def open_seconds(connection, drip=b"", limit=3.0):
    """How long a connection stays open while a byte after the other is sent, and what came before its end."""
    began, got = time.monotonic(), b""
    connection.settimeout(0.05)
    while time.monotonic() - began < limit:
        try:
            if drip:
                connection.sendall(drip)
            if not (chunk := connection.recv(4096)):
                break
            got += chunk
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began, got


def answered(connection):
    got = b""
    while chunk := connection.recv(4096):
        got += chunk
        if got.endswith(b"ok"):
            return True
    return False


def connected(port, first=b""):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(first)
    return connection


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x"),
        (b"POST / HTTP/1.1\r\nHost: a\r\n", b"Y: z\r\n"),
    ],
)
def test_a_request_that_does_not_arrive_is_given_up(port, first, drip):
    with connected(port, first) as connection:
        seconds, got = open_seconds(connection, drip)
    assert 0.3 < seconds < 1.5
    assert got == b""


def test_after_a_good_request_the_next_one_has_the_same_time(port):
    with connected(port, REQUEST) as connection:
        assert answered(connection)
        time.sleep(0.6)  # idle: longer than a request may take
        connection.sendall(REQUEST)
        assert answered(connection)
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        seconds, _ = open_seconds(connection, b"x")
    assert 0.3 < seconds < 1.5


def test_the_rest_of_a_body_that_nobody_reads_ends_the_connection(port):
    with connected(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n") as connection:
        seconds, got = open_seconds(connection, b"x")
    assert got.endswith(b"ok")
    assert seconds < 1.5


def test_an_answer_may_take_longer_than_a_request(port):
    with connected(port, REQUEST.replace(b"/ ", b"/1.2 ", 1)) as connection:
        connection.settimeout(5)
        assert answered(connection)


def test_endless_headers_end_the_connection(port):
    with connected(port, b"GET / HTTP/1.1\r\nX: " + b"x" * 8192) as connection:
        seconds, got = open_seconds(connection)
    assert seconds < 0.3
    assert got == b"" or b" 400 " in got.partition(b"\r\n")[0]


def test_no_more_connections_than_the_limit_are_held(port):
    held = [connected(port) for _ in range(5)]
    with connected(port) as surplus:
        assert open_seconds(surplus)[0] < 0.3
    for connection in held:
        connection.close()
    time.sleep(0.1)
    with connected(port, REQUEST) as connection:
        assert answered(connection)
