"""A sample in LLaVA's JSON from the turns of a reply."""

import random
from collections.abc import Sequence
from typing import Any

from tasks.instructions.kinds import Job
from tasks.instructions.reply import Pair
from tasks.prompts import IMAGE

# What a person may say to get a description; a seed chooses.
DESCRIBE = (
    "Describe this picture in detail.",
    "What does the picture show? Please be thorough.",
    "Give a full account of what can be seen here.",
    "Write a careful description of the photograph.",
    "Walk me through everything in this image.",
    "Please describe the scene and its details.",
    "Explain what is in this photograph, from the main things to the small ones.",
    "Can you put this picture into words for somebody who cannot see it?",
    "What is going on in this image, and what does it look like? Take your time.",
    "Tell me all that you notice in the photograph.",
)


def llava_sample(job: Job, pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    r"""The sample. The picture stands before or after the words of the first question, as in LLaVA's data.

    Example:
        >>> from tasks.instructions.described import Described
        >>> job = Job(Described("1", "1.jpg", ("A dog.",)), "conversation")
        >>> sample = llava_sample(job, [Pair("What is it?", "A dog.")], seed=0)
        >>> sample["id"], sample["image"], sample["conversations"][1]
        ('1-conversation', '1.jpg', {'from': 'gpt', 'value': 'A dog.'})
        >>> sorted(sample["conversations"][0]["value"].split("\n"))
        ['<image>', 'What is it?']
    """
    rng = random.Random(f"{seed} {job.id}")
    turns = []
    for number, pair in enumerate(pairs):
        question = pair.question or rng.choice(DESCRIBE)
        if number == 0:
            question = f"{IMAGE}\n{question}" if rng.random() < 0.5 else f"{question}\n{IMAGE}"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": pair.answer}]
    return {"id": job.id, "image": job.picture.image, "conversations": turns}
