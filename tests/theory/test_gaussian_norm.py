"""The mean largest singular value against draws."""

import numpy as np
import pytest

from theory.gaussian_norm import gaussian_norm


@pytest.mark.parametrize(
    ("rows", "columns", "tolerance"),
    [
        (1, 1, 0.03),
        (1, 40, 0.005),
        (2, 2, 0.12),
        (3, 5, 0.03),
        (8, 8, 0.01),
        (8, 200, 0.005),
        (64, 64, 0.005),
        (128, 512, 0.003),
    ],
)
def test_equals_the_mean_of_draws(rows, columns, tolerance):
    """2000 draws up to 200 columns: their mean is good to 0.2 %, and of one entry, which is half a Gaussian, to 2 %."""
    count = 2000 if columns <= 200 and rows < 64 else 40
    drawn = np.random.default_rng(0).standard_normal((count, rows, columns))
    mean = np.linalg.norm(drawn, 2, axis=(1, 2)).mean()
    np.testing.assert_allclose(gaussian_norm(rows, columns), mean, rtol=tolerance)
    assert gaussian_norm(rows, columns) == gaussian_norm(columns, rows)
