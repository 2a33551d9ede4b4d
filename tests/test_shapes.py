"""The tests check the shapes of tensors: a function refuses a tensor of other dimensions than it states."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from records.intervals import mean_intervals
from tests.shapes import modules_with_shapes


def test_a_tensor_of_other_dimensions_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="cell unit"):
        mean_intervals(np.ones(3))


def test_a_module_that_was_imported_before_the_checks_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"imported later, got .*records\.intervals"):
        modules_with_shapes()
