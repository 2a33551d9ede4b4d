"""ScienceQA's rule in LLaVA-1.5's evaluation: the letter of an option.

Source: Lu et al. 2022, "Learn to Explain" (ScienceQA), arXiv 2209.09513; Liu et al. 2024, arXiv 2310.03744, and its
    public evaluation script.
"""

import re

LETTERS = "ABCDE"


def option_letter(prediction: str, letters: str = LETTERS) -> str | None:
    """The option that an answer names; None if the rule finds none.

    The answer is a letter, begins with a letter, a full stop and a space, or says ``The answer is X`` with one further
    character exactly once. Nothing else counts.

    Example:
        >>> option_letter("B"), option_letter("B. a cat"), option_letter("The answer is B."), option_letter("(B)")
        ('B', 'B', 'B', None)
    """
    options = set(letters)
    if prediction in options:
        return prediction
    if prediction[:1] in options and prediction[1:3] == ". ":
        return prediction[0]
    found: list[str] = re.findall(r"The answer is ([A-Z]).", prediction)
    return found[0] if len(found) == 1 and found[0] in options else None
