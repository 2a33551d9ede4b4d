"""``examples.parquet`` of a capture: one row for each example, in the order of the stored rows."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from models.inputs import Layout
from probes.activations.examples import Readable


def examples_table(data: Readable, layouts: Mapping[str, Sequence[Layout]]) -> pd.DataFrame:
    """The examples with their labels and the positions of their parts in the unpadded prompt.

    Args:
        data: The examples, those to fit on first.
        layouts: The positions by condition.

    Returns:
        ``id``, ``group``, ``split``, ``fitted``, ``question``, ``answer``, ``caption`` (the first one), ``focus``,
        ``boxes`` (JSON: name to left, top, right, bottom); under the condition ``image`` ``image_start``,
        ``image_stop`` (of the first picture) and ``prompt_stop``; under ``caption`` ``caption_start``,
        ``caption_stop`` and ``caption_prompt_stop``; and ``label_NAME`` for every label.
    """
    rows = []
    for index in range(len(data.examples)):
        example = data.examples[index]
        row = {
            "id": example.id, "group": example.group, "split": example.split, "fitted": index < data.n_fitted,
            "question": example.question, "answer": example.answer,
            "caption": example.captions[0] if example.captions else None, "focus": example.focus,
            "boxes": json.dumps({name: list(box) for name, box in example.boxes.items()}),
        }  # fmt: skip
        if "image" in layouts:
            layout = layouts["image"][index]
            first = layout.images[0] if layout.images else None
            row |= {
                "image_start": None if first is None else first.start,
                "image_stop": None if first is None else first.stop,
                "prompt_stop": layout.prompt_stop,
            }
        if "caption" in layouts:
            layout = layouts["caption"][index]
            span = layout.context
            row |= {
                "caption_start": None if span is None else span.start,
                "caption_stop": None if span is None else span.stop,
                "caption_prompt_stop": layout.prompt_stop,
            }
        rows.append(row | {f"label_{name}": value for name, value in example.labels.items()})
    table = pd.DataFrame(rows)
    spans = [name for name in table.columns if name.endswith(("_start", "_stop")) and not name.startswith("label_")]
    table = table.astype(dict.fromkeys(spans, "Int64"))
    for name in table.columns:
        if name.startswith("label_") and table[name].isna().any():  # keeps whole numbers and truth values as they are
            table[name] = table[name].convert_dtypes()
    return table
