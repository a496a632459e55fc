"""Scales, zero points and ranges, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from modelpress.api.stages.quantize import Numbers
from modelpress_runner.edits.quantizers import QuantizerSpec, make, packed, unpacked
from modelpress_runner.methods.quantize import numerics
from modelpress_runner.methods.quantize.algorithms.lsq import initial_scale
from modelpress_runner.methods.quantize.observers import observe_weight

UINT8, INT8 = Numbers(8, False, "affine"), Numbers(8, True, "symmetric")


@pytest.mark.parametrize(
    ("values", "numbers", "axis", "scale", "zero"),
    [
        ([[1.0, 2.0], [3.0, 5.0]], UINT8, None, 5 / 255, 0),
        ([[-1.0, 2.0], [3.0, 5.0]], UINT8, None, 6 / 255, 42),  # 42.5, half to even
        ([[-1.0, 2.0], [3.0, 5.0]], UINT8, 0, [3 / 255, 5 / 255], [85, 0]),
        ([[-1.0, 2.0], [3.0, 5.0]], INT8, None, 5 / 127, 0),
        ([[-1.0, 2.0], [3.0, -5.0]], INT8, 0, [2 / 127, 5 / 127], [0, 0]),
        ([[-1.0, 2.0], [3.0, -5.0]], INT8, 1, [3 / 127, 5 / 127], [0, 0]),
        ([[0.0, 0.0], [3.0, -5.0]], INT8, 0, [1.0, 5 / 127], [0, 0]),  # nothing to scale
        ([[-1.0, 2.0], [3.0, 5.0]], Numbers(4, True, "symmetric"), None, 5 / 7, 0),
        ([[-1.0, 2.0], [3.0, 5.0]], Numbers(8, True, "affine"), None, 6 / 255, -86),  # -128 + 42.5 = -85.5
        ([[-1.0, 2.0], [3.0, 5.0]], Numbers(8, False, "symmetric"), None, 5 / 127.5, 128),
    ],
)
def test_scale_and_zero_point(values, numbers, axis, scale, zero):
    """Of a weight by its least and greatest value."""
    quantizer = make(QuantizerSpec("affine", numbers, axis), torch.tensor(values))
    observe_weight(torch.tensor(values), quantizer, "minMax")
    torch.testing.assert_close(quantizer.scale, torch.tensor(scale), rtol=1e-6, atol=0)
    assert quantizer.zero_point.tolist() == zero


def test_symmetric_int8_has_no_minus_128():
    """As many numbers below zero as above."""
    assert INT8.range == (-127, 127)
    assert Numbers(4, True, "symmetric").range == (-7, 7)
    weight = torch.tensor([-5.0, 5.0, 0.02])
    quantizer = make(QuantizerSpec("affine", INT8), weight)
    observe_weight(weight, quantizer, "minMax")
    assert quantizer.integers(weight).tolist() == [-127, 127, 1]


def test_moving_average():
    """0.99 of what was, 0.01 of what is; the first value is itself."""
    value = None
    for seen in (1.1287, 2.3456, 3.7814, 5.9723):
        value = numerics.ema(value, torch.tensor(seen, dtype=torch.float64))
    assert value is not None
    assert math.isclose(float(value), 1.2153245669, rel_tol=1e-9)


def test_groups_have_scales_of_their_own():
    """Two of four values each."""
    weight = torch.tensor([[1.0, -7.0, 14.0, 3.0]])
    quantizer = make(QuantizerSpec("affine", Numbers(4, True, "symmetric"), 0, 2), weight)
    observe_weight(weight, quantizer, "minMax")
    assert quantizer.scale.tolist() == [1.0, 2.0]
    assert quantizer(weight).tolist() == [[1.0, -7.0, 14.0, 4.0]]  # 1.5 goes to 2
    with pytest.raises(ValueError, match="groups of 3 do not divide its 4 weights"):
        make(QuantizerSpec("affine", INT8, 0, 3), weight)


def test_percentile_of_a_histogram():
    """Of 1000 values 990 are below 1 and 10 at 9 to 10."""
    counts = torch.zeros(10)
    counts[0], counts[9] = 990, 10
    assert numerics.percentile_range(counts, 0.0, 10.0, 99.0) == (0.0, 1.0)
    assert numerics.percentile_range(counts, 0.0, 10.0, 99.9) == (0.0, 10.0)
    both = torch.tensor([5.0, 0, 0, 990, 0, 5.0])
    assert numerics.percentile_range(both, -3.0, 3.0, 99.0) == (0.0, 1.0)
    assert numerics.percentile_range(both, -3.0, 3.0, 100.0) == (-3.0, 3.0)


def test_entropy_leaves_a_lone_outlier_out():
    """Values in the lower eighth, evenly, and a single one at the end: 128 steps go to the eighth."""
    counts = torch.zeros(2048)
    counts[:256], counts[-1] = 100.0, 1.0
    low, high = numerics.entropy_range(counts, 0.0, 2048.0, 128)
    assert low == 0.0
    assert 255 <= high <= 280
    # Without it nothing is cut: 128 steps of two bins each give the distribution back.
    assert numerics.entropy_range(torch.full((256,), 100.0), 0.0, 256.0, 128) == (0.0, 256.0)


def test_the_least_squared_error_leaves_an_outlier_out():
    """Of a histogram, and of a weight row by row."""
    counts = torch.zeros(2048)
    counts[:256], counts[-1] = 1000.0, 1.0
    _, high = numerics.error_range(counts, 0.0, 2048.0, 0, 15, "affine")
    assert 240 < high < 800
    rows = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([4.0])]).repeat(2, 1)
    rows[1, -1] = 1.0
    _, high = numerics.least_error(rows, -7, 7, "symmetric")
    assert 1.0 < float(high[0]) < 3.0
    assert float(high[1]) > 0.9


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_integers_are_kept_in_few_bytes(bits, signed):
    """And come back, whatever their number."""
    numbers = Numbers(bits, signed, "affine")
    low, high = numbers.range
    integers = torch.arange(15).remainder(high - low + 1).add(low).to(torch.int32).view(3, 5)
    quantizer = make(QuantizerSpec("affine", numbers), integers.float())
    kept = packed(integers, quantizer)
    assert kept.numel() == {1: 2, 2: 4, 4: 8}.get(bits, 15)
    assert kept.element_size() == 1
    assert torch.equal(unpacked(kept, quantizer, integers.shape).to(torch.int32), integers)


def test_forward_is_the_operator_of_torch():
    """Bit for bit, which exporters rely on."""
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for numbers in (UINT8, INT8, Numbers(4, True, "symmetric")):
        for axis in (None, 0, 1):
            quantizer = make(QuantizerSpec("affine", numbers, axis), weight)
            observe_weight(weight, quantizer, "minMax")
            low, high = numbers.range
            scale, zero = quantizer.scale, quantizer.zero_point
            if axis is None:
                wanted = torch.fake_quantize_per_tensor_affine(weight, scale, zero, low, high)
            else:
                wanted = torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, low, high)
            assert torch.equal(quantizer(weight), wanted)
            assert torch.equal(quantizer.floats(quantizer.integers(weight)), wanted)


def test_a_dynamic_range_is_that_of_the_call():
    """[-1, 3] in eight bits, affine: 4/255 and 63.75."""
    quantizer = make(QuantizerSpec("dynamic", UINT8), None)
    value = torch.tensor([-1.0, 0.0, 0.5, 3.0], requires_grad=True)
    wanted = torch.fake_quantize_per_tensor_affine(value, 4 / 255, 64, 0, 255)
    torch.testing.assert_close(quantizer(value), wanted)
    assert quantizer(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    quantizer(value).sum().backward()
    assert value.grad is not None


def test_dorefa_forward_and_gradient():
    """Two bits: multiples of 2/3 from -1 to 1; the gradient is that of tanh over its maximum."""
    weight = torch.tensor([0.2, -0.1, 1.0, -1.0], requires_grad=True)
    quantizer = make(QuantizerSpec("dorefa", Numbers(2, False, "affine")), weight)
    # tanh: .197, -.0997, .7616; shares .6296, .4346, 1, 0; thirds 1.889, 1.304, 3, 0.
    torch.testing.assert_close(quantizer(weight), torch.tensor([1 / 3, -1 / 3, 1.0, -1.0]))
    assert quantizer.integers(weight).tolist() == [2, 1, 3, 0]
    torch.testing.assert_close(quantizer.floats(quantizer.integers(weight)), quantizer(weight).detach())
    quantizer(weight)[0].backward()
    assert weight.grad is not None
    assert math.isclose(float(weight.grad[0]), (1 - math.tanh(0.2) ** 2) / math.tanh(1.0), rel_tol=1e-5)


def test_signs_and_their_gradient():
    """Straight through where |x| <= 1."""
    value = torch.tensor([-2.0, -0.5, 0.0, 1.0, 1.5], requires_grad=True)
    quantizer = make(QuantizerSpec("sign", Numbers(1, True, "symmetric")), value)
    out = quantizer(value)
    assert out.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]
    out.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert quantizer.floats(quantizer.integers(value)).tolist() == out.tolist()


def test_learned_steps():
    """2 mean|w| / sqrt(qmax) to begin with; the scale's gradient has the factor 1 / sqrt(values * qmax)."""
    rows = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    assert math.isclose(float(initial_scale(rows, 7)), 5 / math.sqrt(7), rel_tol=1e-6)
    value = torch.tensor([0.3, -2.6, 9.0], requires_grad=True)
    scale = torch.nn.Parameter(torch.tensor(1.0))
    quantizer = make(QuantizerSpec("affine", Numbers(4, True, "symmetric")), None)
    quantizer.__dict__["learned"] = scale
    out = quantizer(value)
    assert out.tolist() == [0.0, -3.0, 7.0]
    out.sum().backward()
    # round(v) - v within, qmax above: -.3 - .4 + 7.
    assert scale.grad is not None
    assert math.isclose(float(scale.grad), 6.3 / math.sqrt(3 * 7), rel_tol=1e-5)
    assert value.grad is not None
    assert value.grad.tolist() == [1.0, 1.0, 0.0]
