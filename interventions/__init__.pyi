from .in_memory import (
    ablated as ablated,
)
from .in_memory import (
    attribution as attribution,
)
from .in_memory import (
    direct_attribution as direct_attribution,
)
from .in_memory import (
    knocked_out as knocked_out,
)
from .in_memory import (
    patch as patch,
)
from .in_memory import (
    patched as patched,
)
from .in_memory import (
    path_patch as path_patch,
)
from .in_memory import (
    skipped as skipped,
)
from .in_memory import (
    steered as steered,
)
from .plan.plan import InterventionPlan as InterventionPlan
from .sweep import run_patch_sweep as run_patch_sweep
