from .dataset import Dataset as Dataset
from .errors import UserError as UserError
from .example import Box as Box
from .example import Example as Example
from .example import Picture as Picture
from .example import Target as Target
from .examples_from import examples_from as examples_from
from .examples_from import picture_from as picture_from
from .pictures import open_picture as open_picture
from .prompts import vicuna_v1 as vicuna_v1
from .scoring import (
    accuracy_by_family as accuracy_by_family,
)
from .scoring import (
    exact_match as exact_match,
)
from .scoring import (
    normalise as normalise,
)
from .scoring import (
    option_letter as option_letter,
)
from .scoring import (
    score_answer as score_answer,
)
from .scoring import (
    vqa_accuracy as vqa_accuracy,
)
from .scoring import (
    yes_or_no as yes_or_no,
)
