"""Shared fixtures: seeded random LLaVAs of two sizes, read-only, and examples to run them on."""

import ast
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test reaches the network

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tests.shapes import check_shapes

check_shapes()

from models.llava import Llava
from models.loading.load import load
from tasks.example import Box, Example, Picture

# Marker -> what the source of a test holds that carries it, or that of a function or fixture of its file that it names.
MARKERS = {
    "process": r"\bsubprocess\.(?:run|Popen|check_\w+)|\bPopen\(|\bmp\.spawn|get_context\(",
    "smol": r"""\b(?:load|load_plain|compose|from_pretrained)\(["']smol""",
    "browser": r'"Browser"',
}


@cache
def marked(path: Path) -> dict[str, set[str]]:
    """The markers of every function in a test file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = {
        n.name: "\n".join(lines[n.lineno - 1 : n.end_lineno])
        for n in ast.parse(text).body
        if isinstance(n, ast.FunctionDef)
    }
    markers = {name: {m for m, found in MARKERS.items() if re.search(found, code)} for name, code in functions.items()}
    words = {name: set(re.findall(r"\w+", code)) & functions.keys() for name, code in functions.items()}
    while any(not markers[used] <= markers[name] for name, named in words.items() for used in named):
        for name, named in words.items():
            markers[name] |= {marker for used in named for marker in markers[used]}
    return markers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make quick` leaves out."""
    for item in items:
        if "notebooks" in item.path.parts:
            item.add_marker("notebook")
        for marker in marked(item.path).get(getattr(item, "originalname", item.name), ()):
            item.add_marker(marker)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """No test leaves figures open: matplotlib warns of more than twenty."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


WORDS = ("cat", "dog", "umbrella", "taxi", "apple")


def tiny_config(*, grouped: bool = True) -> LlavaConfig:
    """A LLaVA of a few layers: with grouped queries (4 x 4 patches) or without (3 x 3 patches, other widths)."""
    vision = CLIPVisionConfig(
        image_size=28 if grouped else 24,
        patch_size=7 if grouped else 8,
        hidden_size=32 if grouped else 24,
        intermediate_size=64,
        num_hidden_layers=3 if grouped else 2,
        num_attention_heads=4 if grouped else 3,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=640,
        hidden_size=48 if grouped else 32,
        intermediate_size=96,
        num_hidden_layers=3 if grouped else 4,
        num_attention_heads=6 if grouped else 4,
        num_key_value_heads=2 if grouped else 4,
        max_position_embeddings=512,
        pad_token_id=None,
    )
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=600, image_seq_length=16 if grouped else 9
    )


@pytest.fixture(scope="session")
def llava() -> Llava:
    """Grouped queries, sdpa attention."""
    return load(tiny_config(grouped=True), seed=0)


@pytest.fixture(scope="session")
def llava_plain() -> Llava:
    """No grouped queries, another depth, width and grid."""
    return load(tiny_config(grouped=False), seed=1)


@pytest.fixture(scope="session")
def checkpoint(llava: Llava, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny grouped-query LLaVA as a plain Hugging Face folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)
    return folder


def noise_picture(seed: int, width: int = 40, height: int = 30) -> Picture:
    """A picture of seeded noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(f"noise-{seed}-{width}x{height}", lambda: Image.fromarray(pixels))


def make_examples(n: int, *, n_pictures: Sequence[int] = (1,), n_questions: int = 1) -> list[Example]:
    """``n`` examples with questions of different lengths; every ``n_questions`` in a row share their pictures."""
    examples = []
    for i in range(n):
        shown = i // n_questions
        pictures = tuple(noise_picture(10 * shown + p, 40 + shown) for p in range(n_pictures[shown % len(n_pictures)]))
        examples.append(
            Example(
                id=f"e{i}",
                pictures=pictures,
                question="Is it a " + " or a ".join(WORDS[: 1 + i % len(WORDS)]) + "?",
                answer=WORDS[i % len(WORDS)],
                group=f"g{shown}",
                labels={"kind": WORDS[shown % len(WORDS)]},
                boxes={"object0": Box(2, 2, 20, 20), "object1": Box(10, 5, 38, 28)} if pictures else {},
                focus=("object0", "object1")[i % 2] if pictures else None,
            )
        )
    return examples
