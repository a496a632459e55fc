"""Stages of a configuration that a script holds: what modelpress.compat asks for."""

from __future__ import annotations

from typing import Any

from .notes import Field
from .pruners import prune_stages
from .quantizers import is_quantizer, quantize_stages
from .spaces import Space, of_auptimizer

_OTHERS = ("name", "script", "resource", "workingdir", "folder_name", "save_model", "resource_args", "job_id")
_OF_EXPERIMENT = ("compression_framework", "compression_type", "framework", "type", "proposer", "n_samples", "target")


def stages_of(config: Field) -> tuple[list[dict[str, Any]], bool]:
    """The stages of compressor and config_list, which go along with a training; and whether they hold ranges."""
    compressor, entries = config.take("compressor"), config.take("config_list")
    for name, value, fix in (
        ("compressor", compressor, 'add "compressor": "l1_filter"'),
        ("config_list", entries, 'add "config_list": [{"sparsity": 0.5}]'),
    ):
        if value is None:
            config.wrong(f"it has no {name}", fix)
    if compressor is None or entries is None:
        return [], False
    for key in (*_OTHERS, *_OF_EXPERIMENT, "n_parallel", "random_seed", "job_failure", "runtime_args"):
        config.take(key)
    space = Space(of_auptimizer)
    if is_quantizer(str(compressor.data)):
        stages = quantize_stages(compressor, entries.entries(), config, space, 0, in_loop=True)
    else:
        stages = prune_stages(compressor, entries.entries(), config, space, 0, in_loop=True)
    return stages, bool(space.parameters)
