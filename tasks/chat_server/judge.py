"""A judge of answers at a chat server, as ``tasks.benchmarks`` asks one."""

from collections.abc import Callable, Iterable

from tasks.chat_server.client import ChatClient
from tasks.chat_server.connection import ChatServerError
from tasks.chat_server.request import ChatRequest, Message, Reply


class ServerJudge:
    """Anything with ``ask(prompt) -> str`` can judge; this one asks a server.

    Figures of two judges are not comparable: the name of the model belongs to every score.

    Args:
        client: The client; its log keeps what was asked.
        model: The name of the model at the server.
        system: The system message; none if empty.
        max_tokens: Largest number of tokens of a reply. LLaVA's script takes 1,024.
        temperature: LLaVA's script takes 0.2. At 0 a server repeats itself as far as it can.
        seed: Sent to the server.

    Example:
        >>> with ChatClient("http://localhost:8000/v1") as client:
        ...     judge = ServerJudge(client, "some-model", system="You grade answers.")
        ...     judge.request("Grade this.").messages[0].content
        'You grade answers.'
    """

    def __init__(
        self,
        client: ChatClient,
        model: str,
        *,
        system: str = "",
        max_tokens: int = 1024,
        temperature: int | float = 0.0,
        seed: int | None = 0,
    ) -> None:
        self.model = model
        self._client, self._system = client, system
        self._max_tokens, self._temperature, self._seed = max_tokens, temperature, seed

    def request(self, prompt: str) -> ChatRequest:
        """What is sent for a prompt."""
        system = (Message("system", self._system),) if self._system else ()
        messages = (*system, Message("user", prompt))
        return ChatRequest(self.model, messages, self._max_tokens, self._temperature, self._seed)

    def ask(self, prompt: str) -> str:
        """The reply to a prompt, from the log if it was asked before.

        Raises:
            ChatServerError: If there is no reply.
            CostLimitError: If the request could exceed the limit of costs.
        """
        return _text(self._client.ask(self.request(prompt)))

    def ask_all(self, prompts: Iterable[str], *, on_reply: Callable[[], object] = lambda: None) -> list[str]:
        """The replies to many prompts, several at a time. ``ask`` then returns each without asking again.

        ``on_reply`` is called after each reply.

        Raises:
            ChatServerError: If there is no reply to one of them.
            CostLimitError: If the next request could exceed the limit of costs.
        """
        replies = self._client.ask_all((str(n), self.request(prompt)) for n, prompt in enumerate(prompts))
        found = []
        for reply in replies:
            found.append(reply)
            on_reply()
        return [_text(reply) for reply in found]


def _text(reply: Reply) -> str:
    if not reply.is_answered:
        raise ChatServerError(f"{reply.error} Start the same command again; other replies are kept.")
    return reply.text
