"""What a token plan costs: multiply-adds of prefill and of one decoding step, and bytes of keys and values.

Per layer, with n computed tokens and v visible ones: 2 n d q (query and output maps), 2 v d k (keys and values),
2 n v q (scores and mixture of values), 3 n d m (the gated MLP), where q and k are the widths of all query and all key
heads. With n = v and q = k = d this is the 4 n d^2 + 2 n^2 d + 3 n d m of the literature. A floating-point operation
counts half: FLOPs are twice the multiply-adds.

Source: Chen et al. 2024 (FastV), arXiv 2403.06764; Xing et al. 2024 (PyramidDrop), arXiv 2410.17247.
"""

from typing import Any, Literal, NamedTuple

from models.adapter import Adapter
from models.token_plans.plan import TokenPlan

Convention = Literal["image tokens", "with text", "with text and frozen keys"]
CONVENTIONS: tuple[Convention, ...] = ("image tokens", "with text", "with text and frozen keys")


class Sizes(NamedTuple):
    """The sizes of a language model that decide its cost."""

    n_layers: int
    d_model: int
    d_query: int
    """Width of all query heads."""
    d_key: int
    """Width of all key heads, and of all value heads; smaller than ``d_query`` under grouped queries."""
    d_mlp: int

    @classmethod
    def of(cls, llava: Adapter) -> "Sizes":
        """The sizes of a model.

        Example:
            >>> from models import load
            >>> Sizes.of(load("random:tiny")).d_model
            48
        """
        text: Any = llava.config.text_config
        d_head = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        return cls(
            llava.n_layers,
            llava.d_model,
            llava.n_heads * d_head,
            llava.n_kv_heads * d_head,
            int(text.intermediate_size),
        )


LLAVA_7B = Sizes(32, 4096, 4096, 4096, 11008)
LLAVA_13B = Sizes(40, 5120, 5120, 5120, 13824)


def prefill(
    sizes: Sizes,
    plan: TokenPlan,
    n_image: int,
    n_text: int,
    *,
    convention: Convention = "with text and frozen keys",
) -> float:
    """Multiply-adds of the language model's blocks on a prompt, without the head.

    Args:
        sizes: The model.
        plan: The token plan.
        n_image: Image tokens in the prompt.
        n_text: Text tokens in the prompt.
        convention: ``"image tokens"`` counts a prompt of image tokens alone, without the keys and values of frozen
            tokens, as PyramidDrop does; ``"with text"`` adds the text; ``"with text and frozen keys"`` adds the keys
            and values of frozen tokens, and the scores by which the rule ``attention`` chooses. Only the last is what
            runs.

    Example:
        >>> from models.token_plans.plan import parse_token_plan
        >>> f"{prefill(LLAVA_7B, parse_token_plan('all', 32), 576, 0, convention='image tokens') / 1e12:.3f}"
        '3.817'
    """
    text = 0 if convention == "image tokens" else n_text
    total = 0.0
    for layer in range(sizes.n_layers):
        computed, visible = counts(plan, layer, n_image, text)
        keyed = visible if convention == CONVENTIONS[-1] else computed
        total += _layer(sizes, computed, visible, keyed)
        stage = plan.stage_at(layer)
        if stage is not None and stage.rule == "attention" and convention == CONVENTIONS[-1]:
            asked = text + (plan.kept(layer - 1, n_image) if layer else n_image)
            total += attention_choice(sizes, asked)
    return total


def attention_choice(sizes: Sizes, n: int | float) -> float:
    """Multiply-adds of choosing among ``n`` tokens by attention: one query, the keys of all, and the scores."""
    return float(sizes.d_model * sizes.d_query + n * sizes.d_key * sizes.d_model + n * sizes.d_query)


def decode(sizes: Sizes, plan: TokenPlan, n_image: int, n_text: int, *, n_generated: int = 0) -> float:
    """Multiply-adds of the blocks for one new token after a prompt and ``n_generated`` tokens.

    Example:
        >>> from models.token_plans.plan import parse_token_plan
        >>> plans = [parse_token_plan(text, 32) for text in ("all", "leave@16")]
        >>> full, short = (decode(LLAVA_7B, plan, 576, 60) for plan in plans)
        >>> f"{short / full:.3f}"
        '0.989'
    """
    total = 0.0
    for layer in range(sizes.n_layers):
        _, visible = counts(plan, layer, n_image, n_text)
        total += _layer(sizes, 1, visible + n_generated + 1, 1)
    return total


def cache_bytes(sizes: Sizes, plan: TokenPlan, n_image: int, n_text: int, *, itemsize: int) -> int:
    """Bytes of keys and values that a prompt leaves in the cache; ``itemsize`` is the bytes of one number.

    Example:
        >>> from models.token_plans.plan import parse_token_plan
        >>> cache_bytes(LLAVA_7B, parse_token_plan("all", 32), 576, 0, itemsize=2) // 2**20
        288
    """
    rows = sum(counts(plan, layer, n_image, n_text)[1] for layer in range(sizes.n_layers))
    return rows * 2 * sizes.d_key * itemsize


def counts(plan: TokenPlan, layer: int, n_image: int, n_text: int) -> tuple[int, int]:
    """The numbers of computed and of visible tokens of a prompt in a layer."""
    kept = plan.kept(layer, n_image)
    state = plan.states[layer]
    return n_text + (kept if state == "compute" else 0), n_text + (0 if state == "hide" else kept)


def _layer(sizes: Sizes, computed: int, visible: int, keyed: int) -> float:
    """Multiply-adds of one block for ``computed`` tokens that attend to ``visible`` ones, with ``keyed`` new keys."""
    d = sizes.d_model
    maps = 2.0 * computed * d * sizes.d_query + 2.0 * keyed * d * sizes.d_key
    return maps + 2.0 * computed * visible * sizes.d_query + 3.0 * computed * d * sizes.d_mlp
