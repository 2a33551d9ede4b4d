"""Controls keep the structure they must keep and destroy the rest."""

import numpy as np
import pytest
from PIL import Image

from probes.evaluation.controls import control_labels, pixel_features


def test_a_type_has_one_control_label_drawn_from_the_label_distribution() -> None:
    types = np.arange(4000) // 2
    labels = np.where(np.arange(4000) % 4 == 0, "rare", "common")
    made = control_labels(types, labels, generator=np.random.default_rng(0))
    assert (made[::2] == made[1::2]).all()
    assert np.mean(made == "rare") == pytest.approx(0.25, abs=0.04)
    assert np.mean(made == labels) < 0.7  # and says nothing about the real one


def test_pixel_features_are_box_averages_in_reading_order() -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:2, 2:, 0] = 255
    features = pixel_features([pixels, Image.fromarray(pixels)], size=2)
    assert features.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] * 2
    with pytest.raises(ValueError, match="pictures must be non-empty"):
        pixel_features([])
