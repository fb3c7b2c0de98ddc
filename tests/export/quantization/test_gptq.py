"""GPTQ: never worse than rounding, exact where rounding is, and equal to a plain version of the published algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.model.quantized_matrix import QuantizedMatrix
from export.quantization.gptq import gptq, round_with_feedback
from export.quantization.quantize import BlockGrids, fit_grids, quantize, stored_residual
from tests.support.examples import examples


def problem(seed: int, rows: int = 24, columns: int = 96, tokens: int = 400):
    """Make weights, and inputs with correlated channels, like a language model's."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * (0.2 + rng.random(columns)) + 2 * np.eye(columns)
    x = (rng.standard_normal((tokens, columns)) @ mixing).astype(np.float32)
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    return w, x, (x.T @ x / tokens).astype(np.float32)


def weighted_error(difference, hessian):
    """tr(D H Dᵀ): the summed squared change of outputs that a change of weights D (N, K) makes."""
    return float(((difference @ hessian) * difference).sum(dtype=np.float64))


@given(st.integers(0, 10_000), st.sampled_from(["symmetric", "asymmetric", "affine"]))
@settings(max_examples=examples(25), deadline=None)
def test_outputs_change_less_than_with_plain_rounding(seed, grid):
    w, x, hessian = problem(seed)
    calibrated, rounded = gptq(w, 4, hessian, grid), quantize(w, 4, grid)
    after, before = (weighted_error(q.dequantize() - w, hessian) for q in (calibrated, rounded))
    assert after < before
    # The weighted error follows its definition: the mean squared change of outputs over the inputs.
    change = ((x @ (calibrated.dequantize() - w).T) ** 2).sum() / len(x)
    assert change == pytest.approx(after, rel=1e-2)


def test_rounding_with_feedback_is_the_published_algorithm_column_by_column():
    w, _, hessian = problem(3, rows=5, columns=64)
    grids = fit_grids(w, 4, "asymmetric")
    codes = round_with_feedback(w, grids, hessian, damping=0.02)

    # Frantar et al., equations 2 and 3: quantize one column, adjust the others, remove it from the inverse Hessian.
    damped = hessian.astype(np.float64) + 0.02 * np.diag(hessian).mean() * np.eye(64)
    inverse, left, expected = np.linalg.inv(damped), w.astype(np.float64), np.zeros_like(codes)
    scales, zeros = grids.scales.reshape(5, 2), grids.zeros.reshape(5, 2)
    for column in np.argsort(-np.diag(hessian), kind="stable"):
        s, z = scales[:, column // 32], zeros[:, column // 32]
        expected[:, column] = np.clip(np.rint(left[:, column] / s + z), 0, 15)
        error = (left[:, column] - s * (expected[:, column] - z)) / inverse[column, column]
        left -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    assert (codes == expected).mean() > 0.99  # float32 against float64: a tie may fall to the other side


def test_without_correlation_it_is_rounding_to_the_nearest():
    w, _, _ = problem(4)
    grids = fit_grids(w, 4, "asymmetric")
    codes = round_with_feedback(w, grids, np.eye(96, dtype=np.float32))
    np.testing.assert_array_equal(codes, grids.codes(w.reshape(-1, 32)).reshape(w.shape))


def test_weights_on_a_grid_stay_where_they_are():
    rng = np.random.default_rng(5)
    _, _, hessian = problem(5)
    q = quantize(rng.standard_normal((24, 96)).astype(np.float32), 4, "asymmetric")
    assert q.zeros is not None
    grids = BlockGrids(4, q.scales.ravel(), q.zeros.ravel().astype(np.float32), np.zeros(q.scales.size, np.float32))
    np.testing.assert_array_equal(round_with_feedback(q.dequantize(), grids, hessian), q.codes)


def test_the_residual_it_returns_is_what_the_device_will_read():
    w, _, hessian = problem(6)
    residual = gptq(w, 4, hessian, "affine").residual
    assert residual is not None
    np.testing.assert_allclose(stored_residual(residual), residual, atol=2e-2)


def test_inputs_that_calibration_never_saw_do_not_break_it():
    w, x, _ = problem(7)
    x[:, 10:20] = 0
    hessian = x.T @ x / len(x)
    q = gptq(w, 4, hessian)
    assert np.isfinite(q.dequantize()).all()
    nothing = gptq(w, 4, np.zeros_like(hessian))
    np.testing.assert_allclose(nothing.dequantize(), w, atol=0.5)


def test_a_hessian_of_another_size_is_refused():
    w, _, hessian = problem(9)
    with pytest.raises(ValueError, match="can't go with"):
        gptq(w, 4, hessian[:64, :64])


def test_the_result_says_its_bits_and_kind():
    w, _, hessian = problem(10)
    q = gptq(w, 4, hessian, "symmetric")
    assert isinstance(q, QuantizedMatrix)
    assert (q.bits, q.zeros, q.residual) == (4, None, None)
