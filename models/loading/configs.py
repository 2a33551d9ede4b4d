"""Models that need no download: names of the embedded ones, and configs of LLaVA-1.5's sizes and of a tiny model."""

from typing import Any, Literal, get_args

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tasks.errors import UserError

# d_model, width of the MLP, layers, heads. Source: Liu et al. 2024, arXiv 2310.03744 (Vicuna 1.5).
_PUBLISHED = {"llava-1.5-7b": (4096, 11008, 32, 32), "llava-1.5-13b": (5120, 13824, 40, 40)}
SIZES = (*_PUBLISHED, "tiny")
EmbeddedName = Literal["smol", "smol-stage1"]
EMBEDDED: tuple[EmbeddedName, ...] = get_args(EmbeddedName)


def config_of(size: str) -> LlavaConfig:
    """The config of one of ``SIZES``.

    The published sizes have CLIP ViT-L/14 at 336 pixels, a two-layer projector, and Vicuna 7B or 13B. ``tiny`` has 4
    layers, d_model 48, 6 heads in 2 groups, 3 vision blocks and 4 x 4 patches of 7 pixels.

    Raises:
        UserError: If ``size`` is not one of them.

    Example:
        >>> config_of("tiny").text_config.num_hidden_layers
        4
        >>> config_of("llava-1.5-7b").image_seq_length
        576
    """
    if size not in SIZES:
        raise UserError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
    if size == "tiny":
        vision, text = _widths(32, 64, 3, 4), _widths(48, 96, 4, 6)
        return LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=28, patch_size=7, projection_dim=32, **vision),
            text_config=LlamaConfig(  # with the ids that ``offline_processor`` assigns
                vocab_size=640, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
                pad_token_id=2, **text,
            ),
            image_token_index=600,
            image_seq_length=16,
        )  # fmt: skip
    vision, text = _widths(1024, 4096, 24, 16), _widths(*_PUBLISHED[size])
    return LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, projection_dim=768, **vision),
        text_config=LlamaConfig(
            vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, pad_token_id=32001, **text
        ),
        image_token_index=32000,
        image_seq_length=576,
    )


def _widths(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
