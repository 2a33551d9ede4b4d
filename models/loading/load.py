"""Load a LLaVA-1.5 model by name, folder or config, and validate it: ``load(name_or_path)`` returns a ``Llava``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging

from models.adapter import Attention
from models.hooks import CaptureError, Recorder, Selection
from models.llava import Llava
from models.loading.checkpoints import (
    hash_files,
    hash_random,
    random_weights,
    read_weights,
    stored_tensors,
    weight_files,
)
from models.loading.configs import SIZES, config_of
from models.loading.locate import Located, locate, unknown_model
from models.loading.original import is_original, read_original
from models.loading.processors import offline_processor, read_processor
from models.precision import DTYPES, parse_dtype
from models.sites import Site, all_sites
from tasks.errors import UserError

# Random weights with more parameters skip the check on a forward: it would take minutes on a CPU, and the same code is
# tested on small models.
_CHECK_RANDOM_BELOW = 10**9


def load(
    name_or_path: str | Path | LlavaConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    attn: Attention = "sdpa",
    seed: int = 0,
    base: str | Path | None = None,
    validate: bool = True,
) -> Llava:
    """Load a LLaVA-1.5 model and check it on a forward pass.

    Args:
        name_or_path: ``"smol"`` or ``"smol-stage1"`` (embedded); a checkpoint folder or Hugging Face id,
            in either llava-hf key layout or the original one (``liuhaotian/llava-v1.5-7b``); ``"random:llava-1.5-7b"``
            or ``"random:llava-1.5-13b"`` (published size, random weights and a byte-level tokenizer); ``"random:tiny"``
            (the same with 4 layers, for examples and tests); or a config, which also gets random weights.
        device: The device of the weights.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype; None is float32 on a CPU and the
            checkpoint's dtype elsewhere.
        revision: A branch, tag or commit, for a Hugging Face id.
        attn: The attention implementation; every site can be captured with both.
        seed: Seed of random weights.
        base: The language model (folder or Hugging Face id) of an original stage-1 folder, which is only a projector.
        validate: Whether to check that image tokens match the patch grid, that the captured last ``resid_post`` gives
            the model's logits, and that every site fires. Random weights of a billion and more skip the last two.

    Raises:
        UserError: If the name is unknown, or the checkpoint is not LLaVA-1.5 or incomplete.
        FileNotFoundError: If the package with the language model of ``smol`` is missing.

    Example:
        >>> load("random:tiny", dtype="bfloat16")
        Llava('random:tiny@0', n_layers=4, d_model=48, torch.bfloat16, cpu)
    """
    if attn not in ("sdpa", "eager"):
        raise UserError(f"attn must be 'sdpa' or 'eager', got {attn!r}.")
    dtype = parse_dtype(dtype)
    config = name_or_path if isinstance(name_or_path, LlavaConfig) else None
    name = "random" if config is not None else str(name_or_path)
    if name.startswith("random:"):
        if name.removeprefix("random:") not in SIZES:
            raise unknown_model(name)
        config = config_of(name.removeprefix("random:"))
    if config is not None:
        llava = _random(config, offline_processor(config), f"{name}@{seed}", seed, dtype or torch.float32, device, attn)
    else:
        llava = _from_folder(locate(name, revision), base=base, device=torch.device(device), dtype=dtype, attn=attn)
    if validate:
        _validate(llava, forward=config is None or llava.model.num_parameters() < _CHECK_RANDOM_BELOW)
    return llava


def randomised(llava: Llava, seed: int) -> Llava:
    """The same architecture and tokenizer with random weights: the control for what the model learned in training.

    Example:
        >>> randomised(load("random:tiny"), seed=1).id
        'random(random:tiny@0)@1'
    """
    attn = llava.model.config._attn_implementation
    return _random(llava.config, llava.processor, f"random({llava.id})@{seed}", seed, llava.dtype, llava.device, attn)


def _random(
    config: LlavaConfig,
    processor: LlavaProcessor,
    name: str,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    attn: str,
) -> Llava:
    _check_architecture(config, name)
    if torch.device(device).type == "meta":  # sizes alone, for estimates
        with torch.device("meta"):
            empty: Any = LlavaForConditionalGeneration(config)
        return Llava(empty.to(dtype).eval(), processor, name, None, hash_random(config, seed, dtype))
    shapes = _shapes(config)
    weights = dict(random_weights(shapes, seed=seed, dtype=dtype))
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return Llava(_build(config, weights, dtype, device, attn), processor, name, None, hash_random(config, seed, dtype))


def _shapes(config: LlavaConfig) -> dict[str, torch.Size]:
    """The model's keys and shapes; no memory is allocated for weights."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in LlavaForConditionalGeneration(config).state_dict().items()}


def _build(
    config: LlavaConfig, weights: dict[str, Tensor], dtype: torch.dtype, device: torch.device | str, attn: str
) -> LlavaForConditionalGeneration:
    """The model with the given weights, which are not copied if dtype and device agree."""
    config.architectures = ["LlavaForConditionalGeneration"]
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attn
        )
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    placed: LlavaForConditionalGeneration = model.to(device).eval()
    return placed


def _from_folder(
    located: Located,
    *,
    base: str | Path | None,
    device: torch.device,
    dtype: torch.dtype | None,
    attn: Attention,
) -> Llava:
    folder, name, revision = located
    if is_original(folder):
        original = read_original(folder, base=base)
        config, processor, files = original.config, original.processor, original.files
        stored: Iterable[tuple[str, Tensor]] = original.tensors
    else:
        if base is not None:
            raise UserError(f"base is for original stage-1 folders, got {str(base)!r} with {name}. Leave it out.")
        config = _read_config(folder)
        _check_architecture(config, name)
        files, processor = tuple(weight_files(folder)), read_processor(folder, config)
        stored = stored_tensors(files)
    weights = read_weights(stored, _shapes(config), where=folder.name, tied=bool(config.tie_word_embeddings))
    kept = next(iter(weights.values())).dtype
    chosen = dtype or (torch.float32 if device.type == "cpu" or kept not in DTYPES.values() else kept)
    return Llava(_build(config, weights, chosen, device, attn), processor, name, revision, hash_files(files))


def _read_config(folder: Path) -> LlavaConfig:
    try:
        config: LlavaConfig = LlavaConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, LookupError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config.json must be readable, got {reason} in {folder.name}. Download it again.") from error
    return config


def _check_architecture(config: Any, name: str) -> None:
    """Check that the model is CLIP, a projector and LLaMA, and that the features come from one vision layer."""
    parts = config.model_type, config.vision_config.model_type, config.text_config.model_type
    if parts != ("llava", "clip_vision_model", "llama"):
        raise UserError(
            "checkpoint must be LLaVA-1.5 (model_type llava with clip_vision_model and llama), got "
            f"{' with '.join(parts)} in {name}. Other architectures are not supported."
        )
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"vision_feature_layer must be one layer, got {config.vision_feature_layer} in {name}. LLaVA-1.5 reads -2."
        )


def _validate(llava: Llava, *, forward: bool) -> None:
    """Check the image token, the image-token count and, with ``forward``, every site and the logits."""
    if llava.tokenizer.convert_tokens_to_ids("<image>") != llava.image_token_id:
        raise UserError(
            f"tokenizer must give <image> the id {llava.image_token_id}, got "
            f"{llava.tokenizer.convert_tokens_to_ids('<image>')} in {llava.id}. Config and tokenizer do not match."
        )
    declared = llava.config.image_seq_length
    if declared != llava.n_image_tokens:
        raise UserError(
            f"image_seq_length must be {llava.n_image_tokens} (the patch grid {llava.grid}), got {declared} in "
            f"{llava.id}. Correct config.json."
        )
    if forward:
        probe_forward(llava, all_sites(llava))


def probe_forward(llava: Llava, sites: Sequence[Site]) -> None:
    """Check on a short forward that every site fires and that the last ``resid_post`` gives the model's logits.

    Raises:
        CaptureError: If one does not; the message names the site.
    """
    ids = torch.full((1, llava.n_image_tokens + 2), llava.image_token_id, device=llava.device)
    ids[0, [0, -1]] = next(token for token in range(2) if token != llava.image_token_id)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, llava.image_size, llava.image_size, generator=generator).to(llava.device, llava.dtype)
    last = Site("language_model", llava.n_layers - 1, "resid_post")
    row, token = torch.tensor([[0]], device=llava.device), torch.tensor([[ids.shape[1] - 1]], device=llava.device)
    selections = {
        part: Selection(
            row, token if part == "language_model" else torch.zeros_like(token), torch.ones_like(row).bool(), (0,)
        )
        for part in ("vision_tower", "projector", "language_model")
    }
    with torch.inference_mode():
        recorders = {
            part: Recorder(llava, [s for s in sites if s.part == part], selection, "none")
            for part, selection in selections.items()
        }
        logits: list[Tensor] = []

        def forward() -> None:
            logits.append(
                llava.model(input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=False).logits[0, -1]
            )

        recorders["vision_tower"].run(
            lambda: recorders["projector"].run(
                lambda: recorders["language_model"].run(forward, stop=False), stop=False
            ),
            stop=False,
        )
        resid = [recorder.finished([f"the check of {llava.id}"]) for recorder in recorders.values()][-1][last][0, 0]
        ours = llava.unembed(resid[None, None])[0, 0]
    # The same numbers through the same modules in another batch shape: only the order of summation differs.
    tolerance = 1e-3 if llava.dtype == torch.float32 else 5e-2
    if not torch.allclose(
        ours.float(), logits[0].float(), rtol=tolerance, atol=tolerance * float(logits[0].abs().max())
    ):
        raise CaptureError(
            f"site {str(last)!r} must give the logits of {llava.id} through norm and head, got a difference of "
            f"{float((ours - logits[0]).abs().max()):.2g}. This version of transformers computes something else."
        )
