"""What each ATen operation does to labels.

Data movement does to them what it does to the numbers. Pointwise operations tie what stands at one position. What takes
several positions of an axis together, and would give something else without some of them, makes the axis rigid. An
operation that is not in the table keeps everything that passes through it.
"""

from __future__ import annotations

from modelpress_runner.dependency.rules.contraction import CONTRACTIONS
from modelpress_runner.dependency.rules.movement import (
    flipped,
    gated,
    joined,
    kept,
    moved,
    picked,
    restrided,
    shuffled,
    sliced,
    split,
    unbound,
)
from modelpress_runner.dependency.rules.pointwise import dropped, nothing, pointwise, same, unknown
from modelpress_runner.dependency.rules.recurrent import packed
from modelpress_runner.dependency.rules.reductions import (
    batch_norm,
    group_norm,
    layer_norm,
    looked_up,
    padded,
    reduced,
    spatial,
)
from modelpress_runner.dependency.trace import Rule

__all__ = ["RULES", "pointwise", "unknown"]


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}

    def add(rule: Rule, names: str) -> None:
        for name in names.split():
            rules[name] = rule

    add(
        moved,
        "view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze expand repeat movedim "
        "numpy_T mT pixel_unshuffle diagonal unfold view_as_real view_as_complex",
    )
    add(flipped, "flip")
    add(kept, "detach alias contiguous lift_fresh")
    add(same, "empty_like zeros_like ones_like full_like rand_like randn_like")
    add(sliced, "slice narrow")
    add(split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk split_copy")
    add(picked, "index index_select select roll")
    add(shuffled, "pixel_shuffle channel_shuffle native_channel_shuffle")
    add(restrided, "as_strided")
    add(unbound, "unbind")
    add(joined, "cat stack")
    add(
        reduced,
        "mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm argmax argmin _softmax "
        "_log_softmax softmax log_softmax cumsum cumprod logsumexp sort topk median prod all any",
    )
    add(
        spatial,
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool1d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
        "upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    )
    add(layer_norm, "native_layer_norm _fused_rms_norm")
    add(batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm")
    add(group_norm, "native_group_norm")
    add(dropped, "native_dropout _fused_dropout bernoulli")
    add(gated, "glu")
    add(packed, "_pack_padded_sequence")
    add(looked_up, "embedding")
    add(
        pointwise,
        "masked_fill where _prelu_kernel copy maximum minimum addcmul addcdiv lerp clamp hardswish hardsigmoid "
        "hardtanh elu celu selu leaky_relu gelu silu mish softplus softshrink hardshrink threshold relu6 "
        "log_sigmoid_forward rrelu_with_noise logit nan_to_num rsub",
    )
    add(
        nothing,
        "fill zero uniform normal bernoulli_ random set_ resize_ sym_size sym_stride item _local_scalar_dense "
        "new_zeros new_ones new_full new_empty new_empty_strided",
    )
    rules.update(CONTRACTIONS)
    rules["constant_pad_nd"] = padded
    return rules


RULES = _table()
