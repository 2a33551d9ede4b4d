"""The log of requests: one JSON object a line, only ever appended. It is also the cache of replies.

A line is on the disk before the reply is used. After a kill, every answered request in the log is answered from it;
half a last line is dropped. Each line has a checksum. A changed line is an error: it holds what its request cost.
"""

import os
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path

from tasks.chat_server.request import Reply
from tasks.checksums import checked_line, read_checked_line
from tasks.errors import UserError, user_errors
from tasks.files import not_regular

_START = b'{"time": '  # of every line
_FIELDS = {field.name for field in fields(Reply)} - {"cached"}


class RequestLog:
    """The log in a file, or in memory if ``path`` is None. One process at a time writes a file.

    Raises:
        UserError: If the file cannot be opened, holds something else than replies, or a line of it changed.

    Example:
        >>> log = RequestLog(Path("requests.jsonl"))
        >>> log.add(Reply("k", "a", "answered", "Yes."))
        >>> RequestLog(Path("requests.jsonl")).answered("k").text
        'Yes.'
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.cost = 0.0
        self._answered: dict[str, Reply] = {}
        self._lock = threading.Lock()
        if path is not None:
            with user_errors(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._read(path)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        if (kind := not_regular(path)) is not None:
            raise UserError(f"log must be a file, got {str(path)!r} ({kind}). Name another file.")
        end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not line.startswith(_START[: len(line)]):
                        raise _not_a_log(f"line {number} of {path.name}")
                    break  # half a line of a log
                end += len(line)
                self._keep(_parsed(line, f"line {number} of {path.name}"))
        if end < path.stat().st_size:
            os.truncate(path, end)

    def _keep(self, reply: Reply) -> None:
        self.cost += reply.cost
        if reply.is_answered:
            self._answered[reply.key] = reply

    @property
    def n_answered(self) -> int:
        """The number of answered requests."""
        return len(self._answered)

    def answered(self, key: str) -> Reply | None:
        """The answered request with this key; None if there is none."""
        with self._lock:
            return self._answered.get(key)

    def add(self, reply: Reply) -> None:
        """Append a reply and write it to the disk."""
        row = {"time": round(time.time(), 3), **{k: v for k, v in asdict(reply).items() if k in _FIELDS}}
        with self._lock, user_errors(OSError):
            if self.path is not None:
                with self.path.open("ab") as file:
                    file.write(checked_line(row))
                    file.flush()
                    os.fsync(file.fileno())
            self._keep(reply)


def _parsed(line: bytes, where: str) -> Reply:
    try:
        row = read_checked_line(line, known={"time", *_FIELDS})
        reply = Reply(**{name: value for name, value in row.items() if name in _FIELDS})
        texts = (reply.key, reply.tag, reply.status, reply.text, reply.finish, reply.error)
        if all(isinstance(text, str) for text in texts) and float(reply.cost) >= 0:
            return reply
    except (ValueError, TypeError, AttributeError):
        pass
    raise _not_a_log(where)


def _not_a_log(where: str) -> UserError:
    return UserError(
        f"log must hold one reply a line as it was written, got another {where}. Name another file, or remove the line "
        "to send its request again."
    )
