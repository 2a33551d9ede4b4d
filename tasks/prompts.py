"""Prompt templates of LLaVA-1.5: ``vicuna_v1`` (training stage 2 and evaluation) and ``plain`` (stage 1).

Source: Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744.
"""

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
CAPTION = "Provide a one-sentence caption for the provided image."
REGION = "Provide a short description for this region."
BOX = "Provide the bounding box coordinate of the region this sentence describes."

# ``vicuna_v1`` as a chat template, for transformers' ``processor.apply_chat_template``.
CHAT_TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' if loop.first else 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% elif message['role'] != 'assistant' %}"
    "{{ raise_exception('roles must be user and assistant: vicuna_v1 has a system text of its own') }}"
    "{% else %}{{ ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def vicuna_v1(question: str, *, n_images: int = 1, context: str = "") -> str:
    r"""The prompt up to the assistant's answer: system text, picture placeholders, the question.

    Args:
        question: The user's words, followed by the response-format prompt.
        n_images: The number of ``<image>`` placeholders before the question, each on its own line.
        context: Text before the question, on lines of its own.

    Source: Liu et al. 2024, arXiv 2310.03744 (the "curious user" variant, as trained).

    Example:
        >>> vicuna_v1("What is it?").removeprefix(SYSTEM)
        ' USER: <image>\nWhat is it? ASSISTANT:'
    """
    pictures = f"{IMAGE}\n" * n_images
    words = f"{context}\n{question}" if context else question
    return f"{SYSTEM} USER: {pictures}{words} ASSISTANT:"


def with_answer(prompt: str, answer: str, eos: str) -> str:
    """A training text: the prompt, the answer, and the end-of-text token ``eos``."""
    return f"{prompt} {answer}{eos}"


def plain(caption: str) -> str:
    """The training text of stage 1: the picture placeholder and the caption.

    Source: Liu et al. 2023, "Visual Instruction Tuning", arXiv 2304.08485.
    """
    return f"{IMAGE}{caption}\n"
