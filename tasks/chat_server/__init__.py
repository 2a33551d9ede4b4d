"""A client of OpenAI-compatible chat servers: retries, a cache that is the log, costs and their limit.

It does not depend on what is asked: ``ServerJudge`` and ``tasks.instructions`` make the requests.
"""

from tasks.chat_server.client import ChatClient
from tasks.chat_server.judge import ServerJudge
from tasks.chat_server.log import RequestLog
from tasks.chat_server.prices import Budget, Price, read_price
from tasks.chat_server.request import ChatRequest, Message, Reply

__all__ = [
    "Budget",
    "ChatClient",
    "ChatRequest",
    "Message",
    "Price",
    "Reply",
    "RequestLog",
    "ServerJudge",
    "read_price",
]
