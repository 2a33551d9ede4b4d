"""Random models of a given size and pictures of noise, for timing without checkpoints or data."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tasks.dataset import LazyExamples
from tasks.example import Example, Picture


class Size(NamedTuple):
    """Width, inner width, layers and heads of a transformer."""

    d_model: int
    inner: int
    layers: int
    heads: int
    kv_heads: int | None = None


def llava_config(text: Size, vision: Size, *, side: int, patch: int = 14, **text_options: Any) -> LlavaConfig:
    """The config of a LLaVA with ``side`` x ``side`` patches a picture."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=patch * side, patch_size=patch, hidden_size=vision.d_model, intermediate_size=vision.inner,
            num_hidden_layers=vision.layers, num_attention_heads=vision.heads, projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=2048, hidden_size=text.d_model, intermediate_size=text.inner, num_hidden_layers=text.layers,
            num_attention_heads=text.heads, num_key_value_heads=text.kv_heads or text.heads,
            max_position_embeddings=2048, **text_options,
        ),
        image_token_index=2047,
        image_seq_length=side * side,
    )  # fmt: skip


def noise_examples(n: int, size: int, questions: int = 1) -> LazyExamples:
    """``n`` examples with pictures of seeded noise, made when opened; ``questions`` examples share a picture."""

    def make(index: int) -> Example:
        seed = index // questions

        def paint() -> Image.Image:
            return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))

        question = f"Is there anything red in part {index % questions} of the picture?"
        return Example(str(index), (Picture(f"noise-{seed}", paint),), question, "no", f"g{seed}")

    return LazyExamples(n, make)
