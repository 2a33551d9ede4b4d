from .options import ModelOptions as ModelOptions
from .progress import ProgressBars as ProgressBars
from .resampling import (
    adjust_p as adjust_p,
)
from .resampling import (
    bootstrap_means as bootstrap_means,
)
from .resampling import (
    permutation_p as permutation_p,
)
from .resampling import (
    sign_flip_p as sign_flip_p,
)
from .run import FinishedRun as FinishedRun
