"""Tokenizer and picture processor: read from a checkpoint folder, or made for random weights."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tasks.errors import UserError
from tasks.prompts import CAPTION, CHAT_TEMPLATE, IMAGE, LETTER, SHORT, SYSTEM, vicuna_v1


def read_processor(folder: Path, config: Any) -> LlavaProcessor:
    """The tokenizer and picture processor of a folder.

    Raises:
        UserError: If one of them is missing or broken.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        pictures = CLIPImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"checkpoint folder must hold its tokenizer and preprocessor files, got {str(error).splitlines()[0]} in "
            f"{folder.name}. Download them."
        ) from error
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else tokenizer.chat_template
    return llava_processor(tokenizer, pictures, config, chat_template=chat)


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


def fast_tokenizer(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    """A tokenizer for transformers, with ``<image>`` and the tokens named in ``special``."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer,
        additional_special_tokens=[IMAGE],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        **special,
    )


def clip_pictures(side: int) -> CLIPImageProcessorPil:
    """CLIP's picture processor at ``side`` pixels; it uses Pillow, not torchvision."""
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def llava_processor(
    tokenizer: PreTrainedTokenizerBase, pictures: CLIPImageProcessorPil, config: Any, *, chat_template: str | None
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
