"""Tokenizer and picture processor: read from a checkpoint folder, or made for random weights."""

import copy
import json
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from models.loading.config_checks import broken_files
from models.loading.llama_tokenizer import fast_tokenizer, llama_tokenizer
from tasks.errors import UserError
from tasks.prompts import CAPTION, CHAT_TEMPLATE, IMAGE, LETTER, SHORT, SYSTEM, vicuna_v1

_LARGEST_EDGE = 2**13  # pixels
_PICTURE_SETTINGS = ("size", "crop_size", "do_center_crop", "resample", "rescale_factor", "image_mean", "image_std")
_KINDS = {  # without "Fast" and "Pil"
    None: CLIPImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "CLIPFeatureExtractor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
}


def read_processor(folder: Path, config: Any) -> LlavaProcessor:
    """The tokenizer and picture processor of a folder.

    Raises:
        UserError: If one of them is missing or broken, or the picture processor has a setting that is not supported.
    """
    tokenizer, chat = read_tokenizer(folder)
    return llava_processor(tokenizer, read_pictures(folder, config), config, chat_template=chat)


def with_tokenizer_of(folder: Path, processor: LlavaProcessor, config: Any) -> LlavaProcessor:
    """The processor with the tokenizer of a folder that has no picture processor."""
    tokenizer, chat = read_tokenizer(folder)
    pictures: Any = processor.image_processor
    template: Any = processor.chat_template
    return llava_processor(tokenizer, pictures, config, chat_template=chat or template)


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer of a folder, and its chat template.

    Raises:
        UserError: If it is missing or broken.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(
            f"checkpoint folder must hold tokenizer.json or tokenizer.model, got neither in {folder.name}. "
            "Download the tokenizer's files."
        )
    with broken_files("tokenizer", folder.name, "Download the tokenizer's files."):
        tokenizer = stored_tokenizer(folder)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise TypeError(f"model_max_length {tokenizer.model_max_length!r:.40}")
        template = folder / "chat_template.jinja"
        chat = template.read_text(encoding="utf-8") if template.is_file() else tokenizer.chat_template
    return tokenizer, chat


def stored_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder as transformers reads it, or ``llama_tokenizer`` if there is only ``tokenizer.model``.

    Transformers 5 reads that file with other merges: runs of spaces become other tokens.

    Raises:
        ValueError: If it is missing or damaged, or ``tokenizer.model`` is not LLaMA's.
    """
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        return llama_tokenizer(folder, chat_template=True)
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(error) from error
    return found


def read_pictures(folder: Path, config: Any) -> CLIPImageProcessorPil | LlavaImageProcessorPil:
    """The picture processor of a folder, with Pillow as its backend.

    Raises:
        UserError: If it is missing or broken, or has a setting that is not supported.
    """
    with broken_files("picture processor", folder.name, "Download preprocessor_config.json."):
        described, _ = CLIPImageProcessorPil.get_image_processor_dict(folder, local_files_only=True)
        kind = described.get("image_processor_type") or described.get("feature_extractor_type")
        kind = kind.removesuffix("Fast").removesuffix("Pil") if isinstance(kind, str) else kind
        if kind not in _KINDS:
            raise UserError(
                f"image_processor_type must be CLIPImageProcessor or LlavaImageProcessor, got {kind!r:.60} in "
                f"{folder.name}. Other picture processors are not supported."
            )
        pictures: Any = _KINDS[kind].from_pretrained(folder, local_files_only=True)
        check_pictures(pictures, int(config.vision_config.image_size), folder.name)
    found: CLIPImageProcessorPil | LlavaImageProcessorPil = pictures
    return found


def check_pictures(pictures: Any, side: int, where: str) -> None:
    """Check that a picture processor makes pictures of ``side`` x ``side`` pixels in a way that is supported.

    Raises:
        UserError: If it does not.
    """

    def wrong(name: str, wanted: str, found: object) -> UserError:
        return UserError(f"{name} of the picture processor must be {wanted}, got {found!r:.80} in {where}.")

    for name in ("do_resize", "do_rescale", "do_normalize"):
        if getattr(pictures, name) is not True:
            raise wrong(name, "true", getattr(pictures, name))
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = getattr(pictures, name)
        if not (
            isinstance(values, list | tuple)
            and len(values) == 3
            and all(isinstance(value, int | float) and least < value < math.inf for value in values)
        ):
            raise wrong(name, "three numbers" + (" above 0" if least == 0 else ""), values)
    if not isinstance(pictures.rescale_factor, int | float) or not 0 < pictures.rescale_factor < math.inf:
        raise wrong("rescale_factor", "a positive number", pictures.rescale_factor)
    if pictures.resample not in range(6):
        raise wrong("resample", "a filter of Pillow, 0 to 5", pictures.resample)
    size, crop = pictures.size, pictures.crop_size
    if size.height and size.width:
        if (size.height, size.width) != (side, side):
            raise wrong("size", f"{side} x {side} pixels", (size.height, size.width))
    elif size.longest_edge or not side <= (size.shortest_edge or 0) <= _LARGEST_EDGE:
        raise wrong("size", f"a shortest edge of at least {side} pixels", size.shortest_edge)
    elif not pictures.do_center_crop:
        raise wrong("do_center_crop", "true where size has a shortest edge", pictures.do_center_crop)
    if pictures.do_center_crop and (crop is None or (crop.height, crop.width) != (side, side)):
        raise wrong("crop_size", f"{side} x {side} pixels", crop and (crop.height, crop.width))


def with_padding(processor: LlavaProcessor) -> LlavaProcessor:
    """The processor that pads pictures to a square of the mean colour first, as ``preprocess="pad"`` does.

    It is saved with a model that was trained on padded pictures, so that transformers prepares them alike.
    """
    padded = copy.copy(processor)
    padded.image_processor = _padding(processor.image_processor)
    return padded


def _padding(pictures: Any) -> LlavaImageProcessorPil:
    own = {name: getattr(pictures, name) for name in _PICTURE_SETTINGS}
    size, crop = ({k: v for k, v in dict(own.pop(name) or {}).items() if v} for name in ("size", "crop_size"))
    return LlavaImageProcessorPil(do_pad=True, size=size, crop_size=crop, **own)


def offline_processor(config: LlavaConfig) -> LlavaProcessor:
    """A processor for models without one (random weights).

    The tokenizer is a byte-level BPE with merges learned from LLaVA-1.5's prompts: it encodes any text, and a prompt
    has about as many tokens as in LLaVA. It does not fit trained weights.

    Raises:
        UserError: If the vocabulary cannot hold 256 bytes and four special tokens.
    """
    size, image_id = int(config.text_config.vocab_size), int(config.image_token_id)  # type: ignore[union-attr]
    if size < 256 + 4 or not 0 <= image_id < size:
        raise UserError(
            f"vocab_size must be at least 260 and hold image_token_index, got {size} and {image_id}. "
            "A model without a tokenizer gets a byte-level one."
        )
    corpus = [SYSTEM, SHORT, LETTER, CAPTION, vicuna_v1("What is in the picture? Is there a red cat at the top left?")]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg, unused-ignore]
        vocab_size=min(size - 4, 2000),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    learner.train_from_iterator([text.replace(IMAGE, " ") for text in corpus], trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    free = iter(i for i in range(size) if i != image_id)
    names = ["<s>", "</s>", "<pad>", *sorted(learned["vocab"], key=learned["vocab"].__getitem__)]
    vocabulary = {IMAGE: image_id} | {token: next(free) for token in names}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]]))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", IMAGE])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    fast = fast_tokenizer(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    pictures = clip_pictures(int(config.vision_config.image_size))  # type: ignore[union-attr]
    return llava_processor(fast, pictures, config, chat_template=CHAT_TEMPLATE)


def clip_pictures(side: int, *, pad: bool = False) -> CLIPImageProcessorPil | LlavaImageProcessorPil:
    """CLIP's picture processor at ``side`` pixels, on Pillow; with ``pad``, pictures are padded to a square first."""
    clip = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return _padding(clip) if pad else clip


def llava_processor(
    tokenizer: PreTrainedTokenizerBase,
    pictures: CLIPImageProcessorPil | LlavaImageProcessorPil,
    config: Any,
    *,
    chat_template: str | None,
) -> LlavaProcessor:
    """Tokenizer and picture processor combined, for the patch grid of ``config``."""
    return LlavaProcessor(  # type: ignore[no-untyped-call, unused-ignore]
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
