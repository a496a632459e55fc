"""Graphs that were made to do harm: code in texts, callables that are no operators, structures that are classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program_files import Entries, edit, node, refused, write


def test_code_in_a_symbolic_size_is_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """torch evaluates sizes as Python; only arithmetic is let through."""
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or Symbol('s77', positive=True, integer=True)"

    def inject(document: Any) -> None:
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = code

    edit(entries, "models/model.json", inject)
    path = write(tmp_path / "model.pt2", entries)
    torch.export.load(str(path))
    assert marker.exists(), "the attack is real"
    marker.unlink()
    refused(path, marker, r"sizes\[0\].*expr_str has the text .__import__.*, which is more than arithmetic")


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.__init__.__globals__",
        "torch.ops.aten.from_file.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "torch.ops.c10d.send.default",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__",
        "builtins.eval",
        "#evil:op",
        "torch.ops.aten.add.Tensor or __import__('os')",
    ],
)
def test_callables_that_are_no_operators_are_refused(
    entries: Entries, tmp_path: Path, marker: Path, target: str
) -> None:
    """torch takes any callable below itself for an operator; here an operator is one."""
    edit(entries, "models/train.json", lambda document: node(document).update(target=target))
    refused(write(tmp_path / "model.pt2", entries), marker, "which is no operator of a model")


@pytest.mark.parametrize(
    "target",
    [
        "aten._reshape_alias.default",
        "aten._sparse_coo_tensor_unsafe.default",
        "aten._ctc_loss.default",
        "aten.segment_reduce.default",
        "aten.set_.source_Tensor",
        "aten.resize_.default",
        "aten._unsafe_view.default",
        "aten.native_group_norm.default",
        "aten.lu_unpack.default",
        "aten.index_put_.hacked_twin",
        "aten.convolution_backward.default",
        "aten._print.default",
        "mkldnn.data_ptr.default",
        "prims.as_strided.default",
        "quantized.linear.default",
    ],
)
def test_operators_that_no_honest_model_calls_are_refused(
    entries: Entries, tmp_path: Path, marker: Path, target: str
) -> None:
    """What reads or writes beside a tensor, or changes the process, is in no list, though torch brings it along."""
    edit(entries, "models/model.json", lambda document: node(document).update(target=f"torch.ops.{target}"))
    name = "::".join(target.split(".")[:2])
    refused(
        write(tmp_path / "model.pt2", entries),
        marker,
        rf"the operator {name}, which is not in the list|needs the operator {target}|no operator of a model",
    )


def test_a_package_may_not_bring_in_an_operator(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """What any imported package registers (a writer of files, say) is called only if the caller names it."""
    with torch.library._scoped_library("modelpress_writer", "DEF") as library:
        library.define("write(Tensor x, str path) -> Tensor")
        edit(
            entries,
            "models/model.json",
            lambda document: node(document).update(target="torch.ops.modelpress_writer.write.default"),
        )
        refused(
            write(tmp_path / "model.pt2", entries),
            marker,
            r"calls the operator modelpress_writer::write, .*mp\.load\(uri, operators=\['modelpress_writer::write'\]\)",
        )


def test_texts_for_operators_are_no_paths(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A mode or an equation passes, a path does not."""
    edit(
        entries,
        "models/model.json",
        lambda document: node(document)["inputs"].append({"name": "x", "arg": {"as_string": "/etc/passwd"}, "kind": 1}),
    )
    refused(write(tmp_path / "model.pt2", entries), marker, "has the text '/etc/passwd', which is no name")


def _nested(document: Any) -> None:
    graph: Any = {"as_int": 1}
    for _ in range(300):
        graph = {"as_string_to_argument": {"a": graph}}
    node(document)["inputs"][0]["arg"] = graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: node(d).update(name="x = __import__('os'); y"), "which is no name"),
        (lambda d: node(d).update(name="lambda"), "which is a word of Python"),
        (lambda d: node(d).update(metadata={"nn_module_stack": "x"}), "metadata is not empty"),
        (lambda d: d.update(guards_code=["__import__('os')"]), r"guards_code.* is not empty"),
        (lambda d: d.update(verifiers=["EDGE"]), "only TRAINING and ATEN"),
        (lambda d: d["graph_module"].update(surprise=1), "has 'surprise', which no program"),
        (lambda d: d["graph_module"]["graph"].update(custom_obj_values={"a": {}}), "custom_obj_values is not empty"),
        (lambda d: d["graph_module"]["signature"]["input_specs"].append({"custom_obj": {}}), "has 'custom_obj'"),
        (lambda d: d.update(range_constraints={"s77); evil(": {"min_val": 0}}), "which is no name"),
        (
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=["x=evil()"]),
            "which is no name",
        ),
        (
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                out_spec='[1, {"type": "transformers.Output", "context": "null", "children_spec": []}]'
            ),
            "only tuples, lists and dicts are read",
        ),
        (
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                out_spec='[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true}]", "children_spec": []}]'
            ),
            "keys that are neither texts nor integers",
        ),
        (_nested, "nested too deeply"),
    ],
)
def test_graphs_hold_only_what_graphs_need(
    entries: Entries, tmp_path: Path, marker: Path, change: Callable[[Any], None], message: str
) -> None:
    """Names become source code, structures become classes: anything unknown is refused with its place."""
    edit(entries, "models/model.json", change)
    refused(write(tmp_path / "model.pt2", entries), marker, message)


def test_unknown_operators_name_their_package(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """An operator that nobody registered is named with what to import; of torch itself, with torch's version."""
    edit(entries, "models/model.json", lambda d: node(d).update(target="torch.ops.nolib.scale.default"))
    edit(entries, "extra/modelpress.json", lambda h: h.update(packages={"nolib.scale.default": "nolib.ops"}))
    refused(
        write(tmp_path / "model.pt2", entries),
        marker,
        r"operator nolib.scale.default of nolib.ops; run 'import nolib.ops'",
    )
    edit(entries, "models/model.json", lambda d: node(d).update(target="torch.ops.aten.conv9d.default"))
    refused(
        write(tmp_path / "model.pt2", entries),
        marker,
        r"needs the operator aten\.conv9d\.default, which torch .* does not have",
    )
