from .in_memory.context_managers import (
    ablated as ablated,
)
from .in_memory.context_managers import (
    knocked_out as knocked_out,
)
from .in_memory.context_managers import (
    patched as patched,
)
from .in_memory.context_managers import (
    skipped as skipped,
)
from .in_memory.context_managers import (
    steered as steered,
)
from .in_memory.measure import (
    attribution as attribution,
)
from .in_memory.measure import (
    direct_attribution as direct_attribution,
)
from .in_memory.measure import (
    patch as patch,
)
from .in_memory.measure import (
    path_patch as path_patch,
)
from .plan.plan import InterventionPlan as InterventionPlan
from .sweep import run_patch_sweep as run_patch_sweep
from .token_plans.config import InferenceConfig as InferenceConfig
from .token_plans.sweep import run_inference_cost as run_inference_cost
