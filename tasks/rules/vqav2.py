"""VQAv2's rule: answers in a normal form, and agreement with ten people. TextVQA and VizWiz use it too.

Two forms of the script exist. EvalAI's processor, which LLaVA-1.5 uses for VQAv2, TextVQA and VizWiz, first deletes
commas and question marks and splits off ``'s``. The VQA script itself does not.

Source: Antol et al. 2015, "VQA: Visual Question Answering", arXiv 1505.00468, and its public evaluation script.
"""

import re
from collections.abc import Sequence

import numpy as np

from tasks.errors import UserError

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(value - 1, 0)) for value, word in enumerate(_NUMBERS)}  # "none" is 0 in the script
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIODS = 32  # the script passes a flag as the largest number of replacements
# The script's table: as written, then as corrected. A few corrections are odd, and some entries can never occur.
_PAIRS = """
aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've couldnt've couldn't've
didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've hadn'tve hadn't've hasnt hasn't havent
haven't hed he'd hed've he'd've he'dve he'd've hes he's howd how'd howll how'll hows how's Id've I'd've I'dve I'd've
Im I'm Ive I've isnt isn't itd it'd itd've it'd've it'dve it'd've itll it'll let's let's maam ma'am mightnt mightn't
mightnt've mightn't've mightn'tve mightn't've mightve might've mustnt mustn't mustve must've neednt needn't notve
not've oclock o'clock oughtnt oughtn't ow's'at 'ow's'at 'ows'at 'ow's'at 'ow'sat 'ow's'at shant shan't shed've
she'd've she'dve she'd've she's she's shouldve should've shouldnt shouldn't shouldnt've shouldn't've shouldn'tve
shouldn't've somebody'd somebodyd somebodyd've somebody'd've somebody'dve somebody'd've somebodyll somebody'll
somebodys somebody's someoned someone'd someoned've someone'd've someone'dve someone'd've someonell someone'll
someones someone's somethingd something'd somethingd've something'd've something'dve something'd've somethingll
something'll thats that's thered there'd thered've there'd've there'dve there'd've therere there're theres there's
theyd they'd theyd've they'd've they'dve they'd've theyll they'll theyre they're theyve they've twas 'twas wasnt
wasn't wed've we'd've we'dve we'd've weve we've werent weren't whatll what'll whatre what're whats what's whatve
what've whens when's whered where'd wheres where's whereve where've whod who'd whod've who'd've who'dve who'd've
wholl who'll whos who's whove who've whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt
wouldn't wouldnt've wouldn't've wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll yall'd've
y'all'd've y'alld've y'all'd've y'all'dve y'all'd've youd you'd youd've you'd've you'dve you'd've youll you'll youre
you're youve you've
""".split()  # noqa: SIM905 - a list would take 240 quotes
CONTRACTIONS = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))


def normalise(answer: str, *, evalai: bool = True) -> str:
    """The answer in VQAv2's normal form: lower case, digits for number words, no articles, no punctuation.

    ``evalai``: by EvalAI's processor, as in LLaVA-1.5's evaluation; otherwise by the VQA script.

    Example:
        >>> normalise("The two cats!"), normalise("Macy's, two"), normalise("Macy's, two", evalai=False)
        ('2 cats', "macy 's 2", "macy's 2")
    """
    text = answer
    if evalai:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    given = text = text.replace("\n", " ").replace("\t", " ").strip()
    comma_in_number = re.search(r"(?<=\d)(\,)+(?=\d)", given) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if beside_space or comma_in_number else " ")
    text = re.sub(r"(?!<=\d)(\.)(?!\d)", "", text, count=_PERIODS)  # a full stop goes unless a digit follows
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement with people: min(matches / 3, 1), averaged over leaving out each answer.

    All texts are in the form of EvalAI's processor, as in LLaVA-1.5's evaluation of TextVQA and VizWiz. VQAv2's own
    script compares texts as written where all people agree: ``tasks.benchmarks.vqav2.script_accuracy``.

    Args:
        prediction: The model's answer.
        answers: People's answers, usually ten. One answer is compared exactly.

    Raises:
        UserError: If there is no answer.

    Example:
        >>> accuracy("red", ["red"] * 2 + ["blue"] * 8), accuracy("The red.", ["red"] * 10)
        (0.6, 1.0)
    """
    if not answers:
        raise UserError("answers must have at least one entry, got none.")
    own = normalise(prediction)
    matches = np.array([normalise(answer) == own for answer in answers])
    if len(answers) == 1:
        return float(matches[0] and own != "")
    return float(np.minimum((matches.sum() - matches) / 3, 1).mean())
