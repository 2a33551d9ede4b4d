"""Ask any OpenAI-compatible server many things: several at a time, with retries, a cache, and a limit of costs.

client = ChatClient("http://localhost:8000/v1", log=Path("requests.jsonl"))
for reply in client.ask_all([("first", ChatRequest("some-model", (Message("user", "Hello"),)))]):
    print(reply.tag, reply.text)
"""

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tasks.chat_server.connection import ChatServerError, Completion, Connection, FaultError, RejectedError
from tasks.chat_server.log import RequestLog
from tasks.chat_server.prices import Budget, Price
from tasks.chat_server.request import ChatRequest, Reply
from tasks.errors import UserError

KEY_ENV = "OPENAI_API_KEY"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds between attempts, doubled each time, as in OpenAI's own client
_LONGEST_TIMEOUT = 86_400  # seconds, a day
_LONGEST_ASKED = 600.0  # seconds of a Retry-After that are waited; a server that asks for more is not usable now
_AHEAD = 16  # requests for each thread that are read before the first is answered, so that a slow one stops no other
_IN_A_ROW = 5  # requests without an answer, after which the server counts as not usable


class ChatClient:
    """A client of one server.

    An answered request is written to the log before it is returned, and is never sent again as long as the log exists.
    Requests that run when the process is killed are sent again.

    Args:
        url: The base address, such as ``http://localhost:8000/v1``. Addresses of this machine bypass proxies.
        key_env: The environment variable that holds the key; if it is not set, none is sent.
        log: The file of the log and cache; None keeps replies in memory.
        concurrency: Requests at a time.
        timeout: Seconds of one attempt.
        attempts: Attempts of one request. There is one as long as no connection has ever been made.
        price: Dollars per million tokens; None counts no costs.
        max_cost: Dollars that all requests in the log may cost together. No request is sent that could exceed them.
        prefix: What the names of options start with in errors, such as ``judge-`` for ``--judge-url``.

    Raises:
        UserError: If an argument is out of range, or ``max_cost`` has no price.

    Example:
        >>> with ChatClient("http://localhost:8000/v1", concurrency=2) as client:
        ...     client.cost
        0.0
    """

    def __init__(
        self,
        url: str,
        *,
        key_env: str = KEY_ENV,
        log: Path | None = None,
        concurrency: int = 4,
        timeout: int | float = 600.0,
        attempts: int = 6,
        price: Price | None = None,
        max_cost: int | float | None = None,
        prefix: str = "",
    ) -> None:
        for name, value in (("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise UserError(f"{prefix}{name} must be >= 1, got {value}.")
        if not timeout > 0:
            raise UserError(f"{prefix}timeout must be > 0 seconds, got {timeout}.")
        if timeout > _LONGEST_TIMEOUT:
            raise UserError(f"{prefix}timeout must be at most {_LONGEST_TIMEOUT:,} seconds, got {timeout}.")
        if max_cost is not None and price is None:
            raise UserError(f"{prefix}max-cost must come with the price of the model, got none. Give --{prefix}prices.")
        if max_cost is not None and not max_cost > 0:
            raise UserError(f"{prefix}max-cost must be > 0 dollars, got {max_cost}.")
        self._price = price or Price()
        self._log = RequestLog(log)
        self._budget = Budget(max_cost, self._log.cost, prefix)
        self._concurrency, self._attempts, self._prefix = concurrency, attempts, prefix
        self._stop = threading.Event()
        self._connection = Connection(url, key_env, timeout=float(timeout), most=concurrency, prefix=prefix)

    def __enter__(self) -> "ChatClient":
        """The client; its connections close at the end of the context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @property
    def cost(self) -> float:
        """Dollars of all requests in the log."""
        return self._log.cost

    def ask(self, request: ChatRequest, tag: str = "") -> Reply:
        """The reply to one request, from the log or from the server.

        Raises:
            ChatServerError: If the server cannot be used.
            CostLimitError: If the request could exceed ``max_cost``.
        """
        known = self._log.answered(request.key)
        if known is not None:
            return replace(known, tag=tag, cached=True)
        reply = self._ask(request, tag)
        self._log.add(reply)
        return reply

    def ask_all(
        self, requests: Iterable[tuple[str, ChatRequest]], *, stop_when_rejected: bool = True
    ) -> Iterator[Reply]:
        """The replies to pairs of tag and request, in their order. Equal requests are sent once.

        Args:
            requests: Read as replies come in.
            stop_when_rejected: Whether rejected requests count among five in a row without an answer, which end it.

        Raises:
            ChatServerError: If the server cannot be used, or five requests in a row have no answer.
            CostLimitError: If the next request could exceed ``max_cost``. Requests that run are waited for and logged.
        """
        waiting: deque[tuple[str, Future[Reply]]] = deque()
        running: dict[str, Future[Reply]] = {}
        unanswered = 0
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="chat") as threads:
            try:
                source = iter(requests)
                while True:
                    while len(waiting) < _AHEAD * self._concurrency and (pair := next(source, None)) is not None:
                        tag, request = pair
                        future = running.get(request.key)
                        if future is None:
                            future = running[request.key] = threads.submit(self.ask, request, tag)
                        waiting.append((tag, future))
                    if not waiting:
                        return
                    tag, future = waiting.popleft()
                    reply = future.result()
                    if not any(future is other for _, other in waiting):
                        running.pop(reply.key, None)
                    if reply.is_answered:
                        unanswered = 0
                    elif stop_when_rejected or reply.status != "rejected":
                        unanswered += 1
                        if unanswered == _IN_A_ROW or not (waiting or self._log.n_answered):
                            raise ChatServerError(reply.error)
                    yield replace(reply, tag=tag)
            finally:
                self._stop.set()  # ends the waits between attempts
                for _, future in waiting:
                    future.cancel()
                threads.shutdown()
                self._stop.clear()

    def _ask(self, request: ChatRequest, tag: str) -> Reply:
        """The reply after all attempts."""
        started, cost, said = time.monotonic(), 0.0, ""
        most = self._price.most(request)
        for attempt in range(1, self._attempts + 1):
            try:
                with self._budget.set_aside(most):
                    try:
                        done = self._connection.ask(request)
                    except FaultError as fault:
                        if fault.may_cost:
                            self._budget.add(most)
                            cost += most
                        raise
                    price = self._cost(done, most)
                    self._budget.add(price)
                    cost += price
            except RejectedError as error:
                return self._reply(request, tag, "rejected", started, attempt, cost, str(error))
            except FaultError as fault:
                said = f"server must answer, got {fault} after {attempt} attempt{'s' if attempt > 1 else ''}."
                last = attempt == self._attempts or (fault.wait or 0.0) > _LONGEST_ASKED
                if fault.unreachable and (last or not self._connection.is_reached):
                    raise ChatServerError(
                        f"{self._prefix}url must be the address of a running server, got no connection ({fault}). "
                        f"Start the server, or check --{self._prefix}url."
                    ) from fault
                if last or self._stop.wait(_pause(attempt, fault.wait, request.key)):
                    break
            else:
                reply = self._reply(request, tag, "answered", started, attempt, cost, "")
                return replace(
                    reply,
                    text=done.text,
                    finish=done.finish,
                    prompt_tokens=done.prompt_tokens,
                    completion_tokens=done.completion_tokens,
                )
        return self._reply(request, tag, "failed", started, attempt, cost, said)

    def _cost(self, done: Completion, most: float) -> float:
        """Dollars of a reply; the upper bound if the server counts no tokens."""
        if done.prompt_tokens is None or done.completion_tokens is None:
            return most
        return self._price.cost(done.prompt_tokens, done.completion_tokens)

    @staticmethod
    def _reply(
        request: ChatRequest, tag: str, status: str, started: float, attempts: int, cost: float, error: str
    ) -> Reply:
        seconds = round(time.monotonic() - started, 3)
        return Reply(request.key, tag, status, seconds=seconds, attempts=attempts, cost=cost, error=error)  # type: ignore[arg-type]


def _pause(attempt: int, asked: float | None, key: str) -> float:
    """Seconds before the next attempt: as the server asks, else doubled each time, less up to a quarter by the key."""
    if asked is not None:
        return asked
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (attempt - 1))
    return longest * (1 - 0.25 * random.Random(f"{key}{attempt}").random())
