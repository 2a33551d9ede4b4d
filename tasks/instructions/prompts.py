"""The messages that ask for a sample: system message, examples, and the picture as text.

The texts are in the folder ``prompts`` in LLaVA's layout: for each kind a folder with ``system_message.txt`` and pairs
of examples ``NNN_caps.txt`` and ``NNN_conv.txt``. A folder of the user's with the same layout replaces them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.chat_server.request import Message
from tasks.errors import UserError, one_line
from tasks.files import read_file
from tasks.instructions.described import Described
from tasks.instructions.kinds import KINDS, Kind
from tasks.instructions.reply import UnusableReplyError, as_json, parse_text, schema_of
from tasks.readers.parse import decode_text

ReplyFormat = Literal["json", "text"]
FOLDERS: dict[Kind, str] = {
    "conversation": "conversation",
    "detail": "detail_description",
    "reasoning": "complex_reasoning",
}
OWN = Path(__file__).parent / "prompts"
WITH_BOXES: tuple[Kind, ...] = ("detail", "reasoning")  # as in LLaVA
# Which format is asked for: appended to the system message.
_FORMATS: dict[tuple[ReplyFormat, bool], str] = {
    ("json", True): 'Reply with a JSON object only: {"turns": [{"question": "...", "answer": "..."}, ...]}.',
    ("json", False): 'Reply with a JSON object only: {"description": "..."}.',
    ("text", True): (
        "Reply with blocks only, each of a line 'Question:' or 'Answer:' and the text below it, in turn, with a line "
        "'===' between two blocks."
    ),
    ("text", False): "Reply with the description only.",
}


class Shot(NamedTuple):
    """An example: the text of a picture, and the reply."""

    context: str
    reply: str


@dataclass(frozen=True)
class KindPrompt:
    """What asks for one kind of sample.

    Args:
        kind: The kind.
        system: The system message.
        shots: Examples, as ``NNN_conv.txt`` has their replies.
    """

    kind: Kind
    system: str
    shots: tuple[Shot, ...]

    def messages(self, picture: Described, reply_format: ReplyFormat) -> tuple[Message, ...]:
        """The messages about a picture."""
        with_questions = self.kind != "detail"
        found = [Message("system", f"{self.system}\n\n{_FORMATS[reply_format, with_questions]}")]
        for shot in self.shots:
            reply = as_json(shot.reply, self.kind) if reply_format == "json" else shot.reply
            found += [Message("user", shot.context), Message("assistant", reply)]
        return (*found, Message("user", picture.text(boxes=self.kind in WITH_BOXES)))

    def schema(self, reply_format: ReplyFormat) -> Mapping[str, Any] | None:
        """The JSON schema of a reply; None for text."""
        return schema_of(self.kind) if reply_format == "json" else None


def load_prompts(folder: Path | None = None, kinds: tuple[Kind, ...] = KINDS) -> dict[Kind, KindPrompt]:
    """The prompts of a folder; the package's own if it is None.

    Raises:
        UserError: If a file is missing, an example has no partner, or a reply is not in the text format.

    Example:
        >>> prompts = load_prompts()
        >>> [len(prompts[kind].shots) for kind in KINDS]
        [2, 1, 1]
    """
    return {kind: _load(kind, (folder or OWN) / FOLDERS[kind]) for kind in kinds}


def _load(kind: Kind, folder: Path) -> KindPrompt:
    system = _read(folder / "system_message.txt")
    shots = []
    for path in sorted(folder.glob("*_caps.txt")):
        shot = Shot(_read(path), _read(path.with_name(path.name.replace("_caps.txt", "_conv.txt"))))
        try:
            parse_text(shot.reply, kind)
        except UnusableReplyError as error:
            raise UserError(
                f"examples must be in the text format, got {path.name!r} in {folder.name!r}: {error}"
            ) from error
        shots.append(shot)
    return KindPrompt(kind, system, tuple(shots))


def _read(path: Path) -> str:
    try:
        text = decode_text(read_file(path)).strip()
    except (OSError, ValueError) as error:
        raise UserError(f"prompts must have the file {path.parent.name}/{path.name}, got {one_line(error)}.") from error
    if not text:
        raise UserError(f"prompts must not be empty, got {path.parent.name}/{path.name} without text.")
    return text
