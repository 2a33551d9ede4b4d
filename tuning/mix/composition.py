"""What is in a mix: samples, turns, words, formats, pictures, and what parts have in common."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from tasks.instructions.duplicates import digest
from tasks.prompts import IMAGE
from tuning.mix.config import FORMATS, PUBLISHED
from tuning.mix.part import pictures_of


class PartCounts:
    """The counts of one part. A picture and a question about it take eight bytes each."""

    def __init__(self) -> None:
        self.samples = self.text_only = self.turns = self.question_words = self.answer_words = self.skipped = 0
        self.formats: Counter[str] = Counter()
        self._pictures, self._questions = array("Q"), array("Q")

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count a sample in LLaVA's layout."""
        pictures = pictures_of(sample)
        self.samples += 1
        self.text_only += not pictures
        self._pictures.extend(digest(picture) for picture in pictures)
        for turn in sample["conversations"]:
            text = turn["value"].replace(IMAGE, " ") if pictures else turn["value"]
            if turn["from"] == "gpt":
                self.turns += 1
                self.answer_words += len(text.split())
                continue
            self.question_words += len(text.split())
            self.formats.update(name for name, prompt in FORMATS.items() if prompt and prompt.lower() in text.lower())
            self._questions.append(digest("\n".join([*pictures, " ".join(_without_formats(text).split())])))

    @property
    def pictures(self) -> npt.NDArray[np.uint64]:
        """One number for each different picture, sorted."""
        return np.unique(np.array(self._pictures, dtype=np.uint64))

    @property
    def questions(self) -> npt.NDArray[np.uint64]:
        """One number for each question about its picture, sorted; equal ones stand side by side."""
        return np.sort(np.array(self._questions, dtype=np.uint64))


def _without_formats(text: str) -> str:
    for prompt in FORMATS.values():
        text = text.replace(prompt, "") if prompt else text
    return text


def tabulate(counts: Mapping[str, PartCounts], formats: Mapping[str, str]) -> pd.DataFrame:
    """One row for each part, and one for all; ``docs/results.md`` describes the columns.

    ``formats`` has the format of each part as it was asked for.
    """
    pictures = {name: part.pictures for name, part in counts.items()}
    questions = {name: part.questions for name, part in counts.items()}
    different = {name: np.unique(found) for name, found in questions.items()}
    rows = [
        {
            "part": name,
            "format": formats[name],
            "samples": part.samples,
            "published_thousands": PUBLISHED[name].thousands if name in PUBLISHED else None,
            **_counts([part]),
            "pictures": len(pictures[name]),
            "pictures_in_other_parts": _shared(name, pictures),
            "repeated_questions": len(questions[name]) - len(different[name]),
            "questions_in_other_parts": _shared(name, different),
        }
        for name, part in counts.items()
    ]
    all_pictures = np.unique(np.concatenate(list(pictures.values())))
    all_questions = np.concatenate(list(questions.values()))
    n_samples = sum(part.samples for part in counts.values())
    total = {
        "part": "all",
        "format": "",
        "samples": n_samples,
        "published_thousands": None,
        **_counts(list(counts.values())),
        "pictures": len(all_pictures),
        "pictures_in_other_parts": _in_several(pictures),
        "repeated_questions": len(all_questions) - len(np.unique(all_questions)),
        "questions_in_other_parts": _in_several(different),
    }
    table = pd.DataFrame([*rows, total])
    table["published_thousands"] = table["published_thousands"].astype("Int64")
    table.insert(3, "share", table["samples"] / max(1, n_samples))
    return table


def _counts(parts: Sequence[PartCounts]) -> dict[str, int]:
    names = ("skipped", "text_only", "turns", "question_words", "answer_words")
    counts = {name: sum(getattr(part, name) for part in parts) for name in names}
    formats = {f"turns_{name}": sum(part.formats[name] for part in parts) for name, prompt in FORMATS.items() if prompt}
    return counts | formats


def _shared(name: str, found: Mapping[str, npt.NDArray[np.uint64]]) -> int:
    """How many of a part's different values another part has too."""
    others = [values for other, values in found.items() if other != name]
    return int(np.isin(found[name], np.concatenate(others)).sum()) if others else 0


def _in_several(found: Mapping[str, npt.NDArray[np.uint64]]) -> int:
    """How many values two or more parts have."""
    _, times = np.unique(np.concatenate(list(found.values())), return_counts=True)
    return int((times > 1).sum())


def render_summary(results: pd.DataFrame) -> Table:
    """The composition for people."""
    table = Table(
        caption=(
            "share: of all samples; published: thousands in LLaVA-1.5's mix; shared: pictures, and questions about the "
            "same picture, that another part has too; repeated: questions that the part itself repeats"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("part")
    table.add_column("format")
    headers = (
        "samples", "share", "published", "text only", "turns", "words asked", "answered", "pictures", "shared",
        "repeated", "shared questions",
    )  # fmt: skip
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in results.to_dict("records"):
        published = "-" if pd.isna(row["published_thousands"]) else f"{int(row['published_thousands'])}K"
        counts = [
            f"{int(row[name]):,}"
            for name in (
                "text_only", "turns", "question_words", "answer_words", "pictures", "pictures_in_other_parts",
                "repeated_questions", "questions_in_other_parts",
            )
        ]  # fmt: skip
        table.add_row(
            escape(row["part"]), row["format"], f"{int(row['samples']):,}", f"{row['share']:.1%}", published, *counts
        )
    return table
