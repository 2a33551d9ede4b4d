"""Captions of COCO or Flickr30k, scored by CIDEr-D against people's captions of the same pictures.

Not one of LLaVA-1.5's twelve benchmarks. The prompt is lmms-eval's. Weights of phrases come from the references of
the pictures that are asked, so figures of different sets of pictures are not comparable.

Source: Chen et al. 2015, "Microsoft COCO Captions", arXiv 1504.00325; Young et al. 2014, Flickr30k; Karpathy & Fei-Fei
    2015, arXiv 1412.2306, for the usual splits.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_bytes, read_json
from tasks.benchmarks.layout.scores import Item, Metric, Scores, answered, unlabelled
from tasks.errors import UserError, one_line
from tasks.readers.parse import decode_text
from tasks.rules.cider import HIGHEST, cider_scores

FILES = FileNames(
    questions=("captions_*.json", "dataset_*.json", "*.token"),
    images=("val2014", "val2017", "flickr30k-images", "images"),
)
PROMPT = "Provide a one-sentence caption for the provided image."


def prompt(row: Row) -> str:
    """The words of the model's prompt, the same for every picture."""
    return PROMPT


def read(source: Source) -> list[Question]:
    """A question for each picture; a label is the tuple of its captions.

    The file is COCO's ``captions_*.json``, Karpathy's ``dataset_*.json`` (of which the split ``test`` counts),
    Flickr30k's ``*.token``, or Parquet of lmms-lab.
    """
    rows = source.rows() if source.is_parquet else list(_rows(source.questions[0]))
    found = []
    for row in rows:
        name = row.id("id", "img_id", "question_id", "filename")
        texts = next((row.values[key] for key in ("captions", "caption", "answer") if row.values.get(key)), None)
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"row must have a list of captions, got none in {row.where}. Check the layout.")
        found.append(Question(name, PROMPT, source.picture(row), label=tuple(texts), row=row.plain()))
    if not found:
        raise UserError(f"questions must have at least one picture, got none in {str(source.questions[0])!r}.")
    return found


def parse(text: str) -> str:
    """The caption itself."""
    return text


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """100 x mean CIDEr-D.

    Example:
        >>> asked = [Question(0, "?", label=("Two dogs run.",)), Question(1, "?", label=("A cat sleeps here.",))]
        >>> round(score(asked, ["Two dogs run.", "A cat."]).main, 1)
        526.9
    """
    if empty := unlabelled(questions, "scored with captions, which the file does not have"):
        return empty
    values = cider_scores(answered(questions, answers), [question.label for question in questions])
    items = tuple(Item("all", float(v), HIGHEST, q.group) for q, v in zip(questions, values, strict=True))
    notes = (f"weights of phrases are those of the captions of these {len(questions)} pictures",)
    metrics = (Metric("CIDEr", "all", 100 * float(values.mean()), len(values)),)
    return Scores(items, {"all": 100.0 * HIGHEST}, metrics, notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The captions in COCO's layout of results."""
    rows = [{"image_id": q.id, "caption": text} for q, text in zip(questions, answers, strict=True) if text is not None]
    return {"captions.json": json.dumps(rows).encode()}


def _rows(path: Path) -> Iterator[Row]:
    """Rows with ``id``, ``image`` and ``captions`` from a file of one of the three layouts."""
    if path.suffix == ".token":
        yield from _token_rows(path)
        return
    try:
        given: Any = read_json(path)
        yield from (_karpathy_rows if "annotations" not in given else _coco_rows)(given, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"questions must have COCO's or Karpathy's layout, got {type(error).__name__} {one_line(error)} in "
            f"{path.name!r}. Check the file."
        ) from error


def _coco_rows(given: Any, path: Path) -> Iterator[Row]:
    texts: dict[Any, list[str]] = {}
    for one in given["annotations"]:
        texts.setdefault(one["image_id"], []).append(one["caption"])
    for image in given["images"]:
        values = {"id": image["id"], "image": image["file_name"], "captions": texts.get(image["id"], [])}
        yield Row(values, f"image {image['id']} of {path.name}")


def _karpathy_rows(given: Any, path: Path) -> Iterator[Row]:
    for number, image in enumerate(given["images"]):
        if image["split"] == "test":
            name = image.get("cocoid", image.get("imgid", number))
            values = {"id": name, "image": image["filename"], "captions": [one["raw"] for one in image["sentences"]]}
            yield Row(values, f"image {name} of {path.name}")


def _token_rows(path: Path) -> Iterator[Row]:
    """Lines ``NAME.jpg#0<tab>caption``."""
    try:
        lines = decode_text(read_bytes(path)).splitlines()
    except ValueError as error:
        raise UserError(f"questions must be text, got {path.name!r}: {one_line(error)}.") from error
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        name, tab, text = line.partition("\t")
        image, mark, count = name.rpartition("#")
        if not (tab and mark and count.isdigit()):
            raise UserError(f"line must be NAME.jpg#0, a tab and a caption, got line {number} of {path.name}.")
        texts.setdefault(image, []).append(text)
    for image, own in texts.items():
        yield Row({"id": Path(image).stem, "image": image, "captions": own}, f"{image} of {path.name}")
