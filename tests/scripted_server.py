"""A chat server on a loopback port that plays what a test scripts, in this process."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Play:
    """One answer of the server, whole or not."""

    text: str = "fine"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # sent instead of a chat completion
    cut: int | None = None  # bytes after which the connection closes
    slow: float = 0.0  # seconds before the answer
    drip: float = 0.0  # seconds between bytes
    usage: Mapping[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    finish: str = "stop"

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": self.finish}
        return json.dumps({"choices": [choice]} | ({"usage": self.usage} if self.usage else {})).encode()


@dataclass
class Server:
    """The address of the server, and what it was asked."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0


Body = dict[str, Any]
Script = Callable[[Body, int], Play]  # the request and its number, from 0


@contextlib.contextmanager
def scripted_server(script: Script) -> Iterator[Server]:
    """A server that answers request n with ``script(body, n)``."""
    lock, now = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_POST(self) -> None:
            nonlocal now
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.times.append(time.monotonic())
                now += 1
                server.most_at_once = max(server.most_at_once, now)
            play = script(body, number)
            time.sleep(play.slow)
            data = play.body()
            with lock:
                now -= 1
            with contextlib.suppress(OSError):
                self.send_response(play.status)
                for name, value in play.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if play.drip:
                    for n in range(len(data)):
                        self.wfile.write(data[n : n + 1])
                        time.sleep(play.drip)
                self.wfile.write(data[: play.cut] if not play.drip else b"")
                if play.cut is not None:
                    self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
