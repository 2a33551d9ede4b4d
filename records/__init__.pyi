from .intervals import (
    mean_intervals as mean_intervals,
)
from .intervals import (
    ratio_intervals as ratio_intervals,
)
from .intervals import (
    share_intervals as share_intervals,
)
from .options import ModelOptions as ModelOptions
from .progress import ProgressBars as ProgressBars
from .resampling import (
    adjust_p as adjust_p,
)
from .resampling import (
    permutation_p as permutation_p,
)
from .resampling import (
    sign_flip_tests as sign_flip_tests,
)
from .run import FinishedRun as FinishedRun
