"""Instruction data from captions and boxes: what a language model is asked, and which replies become samples.

``described`` reads pictures as text, ``kinds`` chooses what is made of them, ``prompts`` asks, ``reply``, ``validate``
and ``duplicates`` check, ``samples`` writes LLaVA's layout. It does not depend on a server or a model.
"""

from tasks.instructions.described import Described, PlacedObject, read_described
from tasks.instructions.duplicates import near_duplicates
from tasks.instructions.kinds import Job, assign_kinds
from tasks.instructions.prompts import load_prompts
from tasks.instructions.reply import Pair, parse_reply_json, parse_text
from tasks.instructions.samples import llava_sample
from tasks.instructions.validate import refusal, vocabulary

__all__ = [
    "Described",
    "Job",
    "Pair",
    "PlacedObject",
    "assign_kinds",
    "llava_sample",
    "load_prompts",
    "near_duplicates",
    "parse_reply_json",
    "parse_text",
    "read_described",
    "refusal",
    "vocabulary",
]
