from .compare.compare import run_compare as run_compare
from .compare.config import CompareConfig as CompareConfig
from .compare.config import CompareData as CompareData
from .config import (
    DataOptions as DataOptions,
)
from .config import (
    Optimisation as Optimisation,
)
from .config import (
    PlanOptions as PlanOptions,
)
from .config import (
    RunOptions as RunOptions,
)
from .config import (
    TuningConfig as TuningConfig,
)
from .in_memory import tune as tune
from .plan.apply import apply_plan as apply_plan
from .plan.default_plans import default_plans as default_plans
from .plan.layers import select_layers as select_layers
from .plan.plan import LayerPlan as LayerPlan
from .plan.plan import Lisa as Lisa
from .plan.plan import Lora as Lora
from .plan.resolve import resolve as resolve
from .run import FinishedTuning as FinishedTuning
from .run import run_tuning as run_tuning
