"""Load a LLaVA-1.5 model by name, folder or config, and validate it: ``load(name_or_path)`` returns a ``Llava``."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging

from models.adapter import Attention
from models.hooks import CaptureError, Recorder, Selection
from models.llava import Llava
from models.loading.checkpoints import (
    hash_model,
    hash_random,
    random_weights,
    read_weights,
    stored_tensors,
    weight_files,
)
from models.loading.config_checks import broken_files, check_config, check_json_files, read_json, without_extras
from models.loading.configs import SIZES, config_of
from models.loading.locate import Located, locate, unknown_model
from models.loading.lora import Lora, merge, no_base, read_lora
from models.loading.original import is_original, read_original
from models.loading.placing import Placing
from models.loading.processors import offline_processor, read_processor, with_tokenizer_of
from models.loading.quantised import Quantise, quantisation, quantised_as
from models.loading.spread import spread
from models.precision import DTYPES, parse_dtype
from models.sites import PARTS, Site, all_sites
from tasks.checksums import DamagedFileError, damaged_files
from tasks.errors import UserError

# Random weights with more parameters are not checked on a forward pass: it would take minutes on a CPU, and the same
# code is tested on small models.
_CHECK_RANDOM_BELOW = 10**9
_DEEPEST = 8  # folders of LoRA factors that name each other as their base
# Random weights with more parameters are drawn on the model's device: on a CPU they take minutes, on a GPU seconds.
_DRAW_ON_CPU_BELOW = 10**9


def load(
    name_or_path: str | Path | LlavaConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    attn: Attention = "sdpa",
    seed: int = 0,
    base: str | Path | None = None,
    quantize: Quantise | None = None,
    device_map: Literal["auto"] | None = None,
    validate: bool = True,
) -> Llava:
    """Load a LLaVA-1.5 model and check it on a forward pass.

    Args:
        name_or_path: ``"smol"`` or ``"smol-stage1"`` (embedded); a checkpoint folder or Hugging Face id in either
            llava-hf layout or the original one (``liuhaotian/llava-v1.5-7b``), or of LoRA factors, which are merged
            into their base; ``"random:llava-1.5-7b"``, ``"random:llava-1.5-13b"`` or ``"random:tiny"`` (random weights
            and a byte-level tokenizer); or a config, which also gets random weights.
        device: The device of the weights; on ``"meta"`` the model has shapes and no values, for estimates.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype; None is float32 on a CPU and the
            checkpoint's dtype elsewhere.
        revision: A branch, tag or commit of a Hugging Face id.
        attn: The attention implementation; every site can be captured with both.
        seed: Seed of random weights.
        base: The language model (folder or Hugging Face id) of an original stage-1 folder, or the model that LoRA
            factors are added to if it is not the one that their ``adapter_config.json`` names.
        quantize: Store the matrices of the language model's blocks in ``"4bit"`` or ``"8bit"``, with bitsandbytes.
        device_map: ``"auto"`` leaves the blocks that do not fit on ``device`` in main memory, and runs them there in
            turn; for reading and changing runs, not for training.
        validate: Whether to check that image tokens match the patch grid, that the captured last ``resid_post`` gives
            the model's logits, and that every site fires. Random models above 1e9 parameters skip the last two.

    Raises:
        UserError: If the name is unknown, or the checkpoint is incomplete or not LLaVA-1.5.
        FileNotFoundError: If the package with the language model of ``smol`` is missing.

    Example:
        >>> load("random:tiny", dtype="bfloat16")
        Llava('random:tiny@0', n_layers=4, d_model=48, torch.bfloat16, cpu)
    """
    if attn not in ("sdpa", "eager"):
        raise UserError(f"attn must be 'sdpa' or 'eager', got {attn!r}.")
    dtype = parse_dtype(dtype)
    how = Placing(torch.device(device), attn, quantize, device_map)
    how.check()
    config = name_or_path if isinstance(name_or_path, LlavaConfig) else None
    name = "random" if config is not None else str(name_or_path)
    if name.startswith("random:"):
        if name.removeprefix("random:") not in SIZES:
            raise unknown_model(name)
        config = config_of(name.removeprefix("random:"))
    if config is not None:
        llava = _random(config, offline_processor(config), f"{name}@{seed}", seed, dtype or torch.float32, how)
    else:
        located = locate(name, revision, weights=how.device.type != "meta")
        llava = _from_folder(located, base=base, dtype=dtype, how=how)
    if validate:
        small = config is None or llava.model.num_parameters() < _CHECK_RANDOM_BELOW
        _validate(llava, forward=small and llava.device.type != "meta")
    return llava


def randomised(llava: Llava, seed: int) -> Llava:
    """The same architecture and tokenizer with random weights, as a control for what training contributes.

    Example:
        >>> randomised(load("random:tiny"), seed=1).id
        'random(random:tiny@0)@1'
    """
    how = Placing(llava.device, llava.model.config._attn_implementation, quantised_as(llava.model), None)
    return _random(llava.config, llava.processor, f"random({llava.id})@{seed}", seed, llava.dtype, how)


def _random(
    config: LlavaConfig,
    processor: LlavaProcessor,
    name: str,
    seed: int,
    dtype: torch.dtype,
    how: Placing,
) -> Llava:
    _check_architecture(config, name)
    without_extras(config, how.attn)
    if how.device.type == "meta":
        return Llava(_on_meta(config, dtype), processor, name, None, hash_random(config, seed, dtype))
    shapes, kind = _shapes(config), how.device.type
    large = sum(shape.numel() for shape in shapes.values()) >= _DRAW_ON_CPU_BELOW
    if kind != "cpu" and large and how.quantize is None and how.device_map is None:
        model = _drawn_in_place(config, shapes, seed=seed, dtype=dtype, device=how.device, attn=how.attn)
        return Llava(model, processor, name, None, hash_random(config, seed, dtype, kind))
    weights = dict(random_weights(shapes, seed=seed, dtype=dtype))
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    identity = how.identity(hash_random(config, seed, dtype))
    return Llava(_build(config, weights, dtype, how), processor, name, None, identity)


def _drawn_in_place(
    config: LlavaConfig,
    shapes: Mapping[str, torch.Size],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    attn: str,
) -> LlavaForConditionalGeneration:
    """The model with random weights that are drawn on ``device``; the CPU's memory holds none of them."""
    config.architectures = ["LlavaForConditionalGeneration"]
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):  # transformers draws initial weights
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
    state = model.state_dict()
    with torch.no_grad():
        for key, tensor in random_weights(shapes, seed=seed, dtype=dtype, device=device):
            if key != "lm_head.weight" or not config.tie_word_embeddings:
                state[key].copy_(tensor)
    drawn: LlavaForConditionalGeneration = model.eval()
    return drawn


def _shapes(config: LlavaConfig) -> dict[str, torch.Size]:
    """The model's keys and shapes; the meta device needs no memory for weights."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in LlavaForConditionalGeneration(config).state_dict().items()}


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Context manager: transformers shows no progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]


def _on_meta(config: LlavaConfig, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """The model without values."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    empty: LlavaForConditionalGeneration = model.to(dtype).eval()
    return empty


def _build(
    config: LlavaConfig, weights: dict[str, Tensor], dtype: torch.dtype, how: Placing
) -> LlavaForConditionalGeneration:
    """The model with the given weights, which are not copied if dtype and device agree."""
    config.architectures = ["LlavaForConditionalGeneration"]
    narrow: dict[str, Any] = {}
    if how.quantize is not None:
        narrow = {"quantization_config": quantisation(how.quantize, dtype), "device_map": {"": how.device}}
    with hide_progress_bars():
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, attn_implementation=how.attn, **narrow
        )
    if how.device_map is not None:
        model = spread(model, how.device)
    elif how.quantize is None:
        model = model.to(how.device)
    placed: LlavaForConditionalGeneration = model.eval()
    return placed


class _Read(NamedTuple):
    """A checkpoint folder in transformers' layout."""

    config: Any
    processor: LlavaProcessor
    files: tuple[Path, ...]
    stored: Iterable[tuple[str, Tensor]]


def _read_folder(folder: Path, name: str, base: str | Path | None, *, weights: bool) -> _Read:
    """Config, processor and weights; files and weights are empty without ``weights``."""
    if is_original(folder):
        config, processor, files, tensors = read_original(folder, base=base, weights=weights)
        return _Read(config, processor, files if weights else (), tensors.items())
    if base is not None:
        raise UserError(
            f"base is for original stage-1 folders and LoRA factors, got {str(base)!r} with {name}. Leave it out."
        )
    check_json_files(folder)
    with broken_files("config.json", folder.name, "Download it again."):
        config = LlavaConfig.from_pretrained(folder, local_files_only=True)
    _check_architecture(config, name)
    files = tuple(weight_files(folder)) if weights else ()
    return _Read(config, read_processor(folder, config), files, stored_tensors(files))


def _read_lora(
    folder: Path, name: str, lora: Lora, base: str | Path | None, *, weights: bool, depth: int = 1
) -> tuple[_Read, tuple[Lora, ...]]:
    """The base model of LoRA factors, and the factors to merge in turn.

    The base may be a folder of LoRA factors itself. What the folder has of a processor replaces the base's.
    """
    lora = lora._replace(base=str(base or lora.base))
    try:
        below = locate(lora.base, None if base else lora.revision, weights=weights)
    except UserError as error:
        raise no_base(lora, error) from error
    factors = None if is_original(below.folder) else read_lora(below.folder)
    merged: tuple[Lora, ...] = ()
    if factors is None:
        read = _read_folder(below.folder, name, None, weights=weights)
    elif depth == _DEEPEST:
        raise UserError(
            f"base_model_name_or_path must lead to a whole model, got more than {_DEEPEST} folders of LoRA factors, "
            f"the last in {below.folder.name}. Name the whole model, or merge the factors."
        )
    else:
        read, merged = _read_lora(below.folder, name, factors, None, weights=weights, depth=depth + 1)
    if any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        read = read._replace(processor=read_processor(folder, read.config))
    elif (folder / "tokenizer_config.json").is_file():
        read = read._replace(processor=with_tokenizer_of(folder, read.processor, read.config))
    return read._replace(files=(*read.files, lora.file)), (*merged, lora)


def _from_folder(located: Located, *, base: str | Path | None, dtype: torch.dtype | None, how: Placing) -> Llava:
    folder, name, revision = located
    on_meta = how.device.type == "meta"
    _check_written(folder)
    lora = None if is_original(folder) else read_lora(folder)
    factors: tuple[Lora, ...] = ()
    if lora is None:
        config, processor, files, stored = _read_folder(folder, name, base, weights=not on_meta)
    else:
        (config, processor, files, stored), factors = _read_lora(folder, name, lora, base, weights=not on_meta)
    without_extras(config, how.attn)
    if on_meta:
        declared = config.dtype if isinstance(config.dtype, torch.dtype) and config.dtype in DTYPES.values() else None
        with broken_files("config.json", folder.name, "Download it again."):
            return Llava(_on_meta(config, dtype or declared or torch.float32), processor, name, revision, "")
    with broken_files("config.json", folder.name, "Download it again."):
        scales = [(one.alpha, one.rank_stabilised) for one in factors]
        identity = hash_model(files, config, processor, scales[0] if len(scales) == 1 else scales or None)
        shapes = _shapes(config)
    weights = read_weights(stored, shapes, where=folder.name, tied=bool(config.tie_word_embeddings))
    kept = next(iter(weights.values())).dtype
    chosen = dtype or (torch.float32 if how.device.type == "cpu" or kept not in DTYPES.values() else kept)
    for one in factors:
        weights = merge(weights, one, dtype=chosen)
    return Llava(_build(config, weights, chosen, how), processor, name, revision, how.identity(identity))


def _check_written(folder: Path) -> None:
    """Check that a folder that a training run wrote is finished, and its weights are as they were written."""
    manifest: dict[str, Any] = {}
    with suppress(UserError):  # another program's file of this name
        manifest = read_json(folder / "manifest.json")
    if str(manifest.get("kind")).startswith("laccolith ") and manifest.get("finished", True) is None:
        raise UserError(
            f"checkpoint folder must hold a finished run, got one that is not in {folder.name}. Start the same "
            "layerwise-finetune again to finish it."
        )
    for name in filter(lambda name: name.endswith(".safetensors"), damaged_files(folder)):
        raise DamagedFileError(
            f"{name} must be as it was written, got changed bytes in {folder.name}. Start the command that wrote it "
            "again: the file is made anew."
        )


def _check_architecture(config: Any, name: str) -> None:
    """Check that the model is CLIP, a projector and LLaMA, and its config."""
    parts = config.model_type, config.vision_config.model_type, config.text_config.model_type
    if parts != ("llava", "clip_vision_model", "llama"):
        raise UserError(
            "checkpoint must be LLaVA-1.5 (model_type llava with clip_vision_model and llama), got "
            f"{' with '.join(map(str, parts))[:100]} in {name}. Other architectures are not supported."
        )
    check_config(config, name)


def _validate(llava: Llava, *, forward: bool) -> None:
    """Check the image token, the image-token count and, with ``forward``, every site and the logits."""
    image_id = llava.tokenizer.convert_tokens_to_ids("<image>")
    if image_id != llava.image_token_id:
        raise UserError(
            f"tokenizer must give <image> the id {llava.image_token_id}, got {image_id} in {llava.id}. "
            "Config and tokenizer do not match."
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
    """Check on a short forward pass that every site fires and that the last ``resid_post`` gives the model's logits.

    Raises:
        CaptureError: If a check fails; the message names the site.
    """
    ids = torch.full((1, llava.n_image_tokens + 2), llava.image_token_id, device=llava.device)
    ids[0, [0, -1]] = next(token for token in range(2) if token != llava.image_token_id)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, llava.image_size, llava.image_size, generator=generator).to(llava.device, llava.dtype)
    last = Site("language_model", llava.n_layers - 1, "resid_post")
    zero, final = (torch.tensor([[column]], device=llava.device) for column in (0, ids.shape[1] - 1))
    logits: list[Tensor] = []

    def forward() -> None:
        logits.append(llava.model(input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=False).logits[0, -1])

    run: Callable[[], None] = forward
    recorders = []
    with torch.inference_mode():
        for part in PARTS:
            chosen = Selection(zero, final if part == "language_model" else zero, zero == 0, (0,))
            recorders.append(Recorder(llava, [site for site in sites if site.part == part], chosen, "none"))
            run = partial(recorders[-1].run, run, stop=False)
        run()
        resid = [recorder.finished([f"the check of {llava.id}"]) for recorder in recorders][-1][last][0, 0]
        ours, theirs = llava.unembed(resid[None, None])[0, 0].float(), logits[0].float()
    # The same numbers through the same modules in another batch shape: only the order of summation differs.
    tolerance = 1e-3 if llava.dtype == torch.float32 else 5e-2
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise CaptureError(
            f"site {str(last)!r} must give the logits of {llava.id} through norm and head, got a difference of "
            f"{float((ours - theirs).abs().max()):.2g}. This version of transformers computes something else."
        )
