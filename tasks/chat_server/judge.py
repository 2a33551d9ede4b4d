"""A judge of answers at a chat server, as ``tasks.benchmarks`` asks one."""

from collections.abc import Callable, Sequence

from tasks.chat_server.client import ChatClient
from tasks.chat_server.connection import ChatServerError, RejectedError
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
        self._rejected: dict[str, str] = {}  # prompts that the server rejects for good, and what it says

    def request(self, prompt: str) -> ChatRequest:
        """What is sent for a prompt."""
        system = (Message("system", self._system),) if self._system else ()
        messages = (*system, Message("user", prompt))
        return ChatRequest(self.model, messages, self._max_tokens, self._temperature, self._seed)

    def ask(self, prompt: str) -> str:
        """The reply to a prompt, from the log if it was asked before.

        Raises:
            RejectedError: If the server does not accept this prompt, for example because it is too long.
            ChatServerError: If there is no reply.
            CostLimitError: If the request could exceed the limit of costs.
        """
        if prompt not in self._rejected:
            text = self._text(prompt, self._client.ask(self.request(prompt)))
            if text is not None:
                return text
        raise RejectedError(self._rejected[prompt])

    def ask_all(self, prompts: Sequence[str], *, on_reply: Callable[[], object] = lambda: None) -> list[str | None]:
        """The replies to many prompts, several at a time; None for a prompt that the server does not accept.

        ``ask`` then returns each reply, or raises ``RejectedError``, without asking again. ``on_reply`` is called after
        each reply.

        Raises:
            ChatServerError: If the server accepts no prompt, or does not reply to one of them.
            CostLimitError: If the next request could exceed the limit of costs.
        """
        requests = ((str(n), self.request(prompt)) for n, prompt in enumerate(prompts))
        found = []
        for reply in self._client.ask_all(requests, stop_when_rejected=False):
            found.append(reply)
            on_reply()
        texts = [self._text(prompt, reply) for prompt, reply in zip(prompts, found, strict=True)]
        if found and not any(reply.is_answered for reply in found):
            raise ChatServerError(found[0].error)
        return texts

    def _text(self, prompt: str, reply: Reply) -> str | None:
        """The text of a reply; None if the server rejects the prompt."""
        if reply.status == "rejected":
            self._rejected[prompt] = reply.error
            return None
        if not reply.is_answered:
            raise ChatServerError(f"{reply.error} Start the same command again; other replies are kept.")
        return reply.text
