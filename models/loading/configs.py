"""Configs of the models that need no download of weights: LLaVA-1.5's two published sizes, and a tiny one for examples.

``config_of("tiny")`` is what ``load("random:tiny")`` fills with seeded random weights.
"""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tasks.errors import UserError

# d_model, width of the MLP, layers, heads. Source: Liu et al. 2024, arXiv 2310.03744 (Vicuna 1.5).
_PUBLISHED = {"llava-1.5-7b": (4096, 11008, 32, 32), "llava-1.5-13b": (5120, 13824, 40, 40)}
SIZES = (*_PUBLISHED, "tiny")


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
    if size == "tiny":
        return _tiny()
    if size not in _PUBLISHED:
        raise UserError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
    width, inner, layers, heads = _PUBLISHED[size]
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=32001,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576)


def _tiny() -> LlavaConfig:
    vision = CLIPVisionConfig(
        image_size=28,
        patch_size=7,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=640,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,  # the ids that ``offline_processor`` assigns
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=600, image_seq_length=16)
