"""Writes the list of operators that a program may call: runner/modelpress_runner/export/pt2/operators.txt.

It holds what torch makes of honest code: the graphs of the zoo (tests/support/program_zoo.py) in train and eval
form, the samples of torch's own public functions, and the operators that torch tags as core, pointwise or reductions;
less those whose names or arguments say that they skip checks, show memory, change the process or the shape of memory.
The list is data: read the difference before it is committed.
"""

from __future__ import annotations

import re
import sys
import types
import unittest
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

ROOT = Path(__file__).parent.parent
LIST = ROOT / "runner/modelpress_runner/export/pt2/operators.txt"
FORBIDDEN = re.compile(
    r"unsafe|alias|set_|seed|data_ptr|backward|from_file|save|print|warn|resize|_ptr|sparse|fbgemm|mkldnn|mkl|cudnn|"
    r"miopen|quantize|qint|qscheme|q_|nested|ctc_loss|segment_reduce|record_stream|storage|names|_out$|^out$|"
    r"_efficient|_flash|_cuda|_cslt|_foreach|_fused|empty_strided|requires_grad|_make_|as_strided_|"
    # These take pivots, factors or sizes on trust.
    r"^native_|lu_solve|lu_unpack|ldl_solve|ormqr|max_unpool|householder|_assert_async|is_pinned|pin_memory"
)
# Asserts of sizes, and what softmax, attention and recurrent layers become: private names that honest graphs have.
KEPT = {
    *("aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten.div.out"),
    "aten.alias.default",  # a view of the whole: what a graph has where a module gives its input back
    # What quantized layers call. They check that there are as many scales as channels, and read nothing else on trust.
    "aten.detach.default",  # the same, without gradients: ranges of what goes through
    *("aten.fake_quantize_per_tensor_affine.tensor_qparams", "aten.fake_quantize_per_channel_affine.default"),
}
PLAIN = {torch.float32, torch.int64, torch.bool, torch.complex64}


def main() -> None:
    """Writes the list."""
    warnings.simplefilter("ignore")
    from_zoo = set(zoo())
    public = {name for name in (*tagged(), *samples()) if not name.split(".")[1].startswith("_")}
    kept = sorted(name for name in from_zoo | public | KEPT if allowed(name))
    head = __doc__.split("\n\n")[1].strip().replace("\n", "\n# ")
    LIST.write_text(f"# Made by tools/operators.py.\n# {head}\n" + "".join(f"{name}\n" for name in kept))
    refused = sorted(name for name in from_zoo if not allowed(name))
    print(f"{len(kept)} operators; of the zoo's {len(from_zoo)} not in the list: {', '.join(refused) or 'none'}")


def allowed(name: str) -> bool:
    """Whether an operator, "aten.name.overload", may stand in the list."""
    namespace, operator, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, operator), overload)
    # Sets dtypes and names of memory formats are enumerations; what else is a text is a mode or an equation.
    typed = " ".join(str(argument.type) for argument in found._schema.arguments)
    odd = re.search(r"Dimname|Storage|Stream|QScheme|__torch__|Device\[\]", typed)
    return name in KEPT or (namespace == "aten" and not odd and not any(map(FORBIDDEN.search, (operator, overload))))


def tagged() -> Iterable[str]:
    """The core ATen operators, those that work element by element, and reductions, as torch tags them."""
    tags = {torch.Tag.core, torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::"):
            operator, _, overload = name.removeprefix("aten::").partition(".")
            found = getattr(getattr(torch.ops.aten, operator, None), overload or "default", None)
            if found is not None and tags & set(found.tags):
                yield str(found)


def zoo() -> Iterable[str]:
    """What the zoo's graphs call."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    import program_zoo

    from modelpress_runner.export.pt2 import callees, program
    from modelpress_runner.export.pt2.quiet import quiet

    for source in (program_zoo.plain, program_zoo.pretrained):
        for name, (model, inputs) in source():
            for training in (False, True):
                with quiet():
                    document = program._document(program.trace(model, inputs, training=training))
                found = callees.operators(callees.counted(document))
                print(name, training, len(found), flush=True)
                yield from (each for each in found if each.startswith("aten."))


def samples() -> Iterable[str]:
    """What torch's public functions become before autograd, by the samples of torch's own tests."""
    # Its test tools want a package of which these samples use nothing.
    stand_in: Any = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stand_in)
    from torch.testing._internal.common_methods_invocations import op_db

    for info in op_db:
        for dtype in PLAIN:
            if info.supports_dtype(dtype, "cpu"):
                yield from _traced(info, dtype)


def _traced(info: Any, dtype: torch.dtype) -> Iterable[str]:
    try:
        for sample in list(info.sample_inputs("cpu", dtype, requires_grad=False))[:3]:
            leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            for function in (info.op, info.inplace_variant):
                if function is not None:
                    yield from _graph(function, leaves, spec)
    except Exception as error:  # samples of what this build lacks
        print(f"{info.name}: no samples: {str(error)[:80]}", flush=True)


def _graph(function: Any, leaves: list[Any], spec: Any) -> Iterable[str]:
    def call(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return function(first, *args, **kwargs)

    try:
        graph = make_fx(call, pre_dispatch=True)(*(leaf.clone() for leaf in leaves if isinstance(leaf, torch.Tensor)))
    except Exception:  # what cannot be traced is in no program
        return
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
            yield str(node.target)


if __name__ == "__main__":
    main()
