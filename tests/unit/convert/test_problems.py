"""What is said of configurations: what cannot be converted, with line, field and fix; what means something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelpress.api.errors import SpecError
from modelpress.cli.convert import convert
from modelpress.convert import Converted, convert_files

COMPRESSION = '{"compression": {"type": "pruning", "compressor": "%s", "config_list": [\n%s\n]}}'


def converted(folder: Path, name: str, text: str, **options: Any) -> Converted:
    """What becomes of one file."""
    file = folder / name
    file.write_text(text)
    return convert_files([str(file)], **options)


def problem(folder: Path, name: str, text: str, **options: Any) -> str:
    """What is wrong with one file, without its folder."""
    with pytest.raises(SpecError) as raised:
        converted(folder, name, text, **options)
    return str(raised.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{\n", "a.json:2: the '{' of line 1 is not closed; add '}'"),
        ("a.json", '{"compression": {\n"a" 1}}', "a.json:2: a ':' is missing behind the key 'a'; write \"a\": value"),
        ("a.json", '{"a": {\n"b": 1\n"c": maybe}}', "a.json:3: the word maybe is no value; put it in quotes"),
        ("a.json", '{"a": 1,\n"a": 2}', "a.json:2: the key 'a' stands twice in one mapping; keep one of them"),
        ("a.json", "[1 2]", "a.json:1: found '2' where a ',' or ']' is expected; add the comma"),
        ("a.json", '{"a": "b\n"}', 'a.json:1: a text is not closed in its line; add " at its end'),
        ("a.json", "{}\n{}", "a.json:2: text follows the end of the configuration"),
        ("a.json", "[" * 200, "nested deeper than"),
        ("a.yaml", "a: 1\n\tb: 2\n", "a.yaml:2: not valid YAML"),
        ("a.py", "configs = [\n{'sparsity': 0.5 0.6}]\n", "a.py:2: is not Python"),
        ("a.py", "a = " + "+".join(["b"] * 700), "an expression is nested too deeply"),
        (
            "a.py",
            "from neural_compressor.experimental import Pruning\nprune = Pruning('conf.yaml')\n",
            "its configuration is in conf.yaml; convert that",
        ),
        ("a.json", '{"a": 1}', "it looks like no configuration of NNI, Auptimizer or Neural Compressor"),
        ("missing.json/a", "", ""),
    ],
)
def test_files_that_cannot_be_read(name: str, text: str, said: str, tmp_path: Path) -> None:
    """File, line and what to do."""
    if not said:
        with pytest.raises(SpecError, match="there is no such file; check the path"):
            convert_files([str(tmp_path / name)])
        return
    assert said in problem(tmp_path, name, text)


@pytest.mark.parametrize(
    ("compressor", "entries", "said"),
    [
        (
            "l1_filter",
            '{"sparsity": 1.5}',
            "a.json:2: compression.config_list[0].sparsity: must be below 1, found 1.5",
        ),
        ("l1_filter", '{"sparsity": "half"}', "must be a number, found the text 'half'; write a number"),
        ("l1_filter", '{"sparsity": {"range": [0.1, 1.5], "type": "float"}}', "must be below 1, found 1.5"),
        ("l1_filter", '{"sparsity": {"range": [0.1], "type": "float"}}', "a range of type float is [least, greatest]"),
        (
            "l1_filter",
            '{"sparsity": {"range": [0.1, 0.2], "type": "real"}}',
            "must be float, int or choice, found real",
        ),
        ("l1_filter", '{"op_types": ["Conv2d"]}', "nothing says how much to prune"),
        ("l7_filter", '{"sparsity": 0.5}', "there is no counterpart to the pruner l7_filter; write another one"),
        ("l1_filter", "3", "compression.config_list[0]: must be a mapping, found 3"),
    ],
)
def test_values_that_cannot_be_used(compressor: str, entries: str, said: str, tmp_path: Path) -> None:
    """Each with its field."""
    assert said in problem(tmp_path, "a.json", COMPRESSION % (compressor, entries))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """A line for each."""
    text = problem(tmp_path, "a.json", COMPRESSION % ("l1", '{"sparsity": 2},\n{"sparsity": -1}'))
    assert [line.split(": ")[:2] for line in text.splitlines()] == [
        ["a.json:2", "compression.config_list[0].sparsity"],
        ["a.json:3", "compression.config_list[1].sparsity"],
    ]


def test_n_of_m_is_counted_the_other_way_round(tmp_path: Path) -> None:
    """1:4 prunes one of four there, and keeps three here; what it can reach bounds the sparsity."""
    text = "pruning:\n  approach:\n    weight_compression:\n      pattern: '1:4'\n      prune_type: magnitude\n"
    found = converted(tmp_path, "a.yaml", text)
    [stage] = found.documents[0]["spec"]["stages"]
    assert (stage["prune"]["pattern"], stage["prune"]["sparsity"]) == ("3:4", 0.25)
    remark = "line 4: pruning.approach.weight_compression.pattern: 1:4 says how many of every 4 weights are pruned"
    assert remark in "\n".join(found.remarks())


def test_a_schedule_by_steps(tmp_path: Path) -> None:
    """The decay has its formula's name, and progressive pruning goes in parts."""
    text = "[{'pruning_type': 'snip_momentum_progressive', 'pattern': '1xchannel', 'target_sparsity': 0.5, "
    text += "'start_step': 10, 'end_step': 50, 'pruning_frequency': 8, 'sparsity_decay_type': 'cube'}]"
    [document] = converted(tmp_path, "a.json", text).documents
    [stage] = document["spec"]["stages"]
    expected = {"type": "cube", "startStep": 10, "endStep": 50, "frequency": 8, "progressiveSteps": 4}
    assert stage["prune"]["schedule"] == expected
    assert "shrink" not in stage["prune"]


@pytest.mark.parametrize(
    ("pruner", "arguments", "expected"),
    [
        ("L1FilterPruner", "", {"algorithm": "l1"}),
        ("L2NormPruner", "", {"algorithm": "l2"}),
        ("FPGMPruner", "", {"algorithm": "fpgm"}),
        ("LevelPruner", "", {"algorithm": "level", "shrink": False}),
        ("TaylorFOWeightPruner", "training_steps=20", {"algorithm": "taylor", "scores": {"steps": 20}}),
        ("ActivationAPoZRankPruner", "training_batches=7", {"algorithm": "apoz", "scores": {"steps": 7}}),
        ("ActivationMeanRankFilterPruner", "", {"algorithm": "mean_activation"}),
        (
            "SlimPruner",
            "training_steps=30, regular_scale=0.01",
            {
                "algorithm": "slim",
                "scope": "global",
                "sparsify": {"penalty": "l1", "strength": 0.01, "maxSteps": 30},
            },
        ),
        (
            "ADMMPruner",
            "iterations=3, training_epochs=2, base_algo='l1'",
            {"algorithm": "l1", "sparsify": {"penalty": "admm", "epochs": 6}},
        ),
        (
            "SimulatedAnnealingPruner",
            "base_algo='level', start_temperature=50, cool_down_rate=0.8",
            {
                "algorithm": "level",
                "shrink": False,
                "search": {"type": "simulated_annealing", "startTemperature": 50, "coolDownRate": 0.8},
            },
        ),
        (
            "NetAdaptPruner",
            "base_algo='l2', sparsity_per_iteration=0.1",
            {"algorithm": "l2", "search": {"type": "net_adapt", "sparsityPerStep": 0.1, "train": {"epochs": 1}}},
        ),
        (
            "AutoCompressPruner",
            "total_iteration=2, sa_params={'start_temperature': 50}, "
            "admm_params={'iterations': 3, 'training_epochs': 2}",
            {
                "algorithm": "l1",
                "search": {"type": "auto_compress", "startTemperature": 50},
                "sparsify": {"penalty": "admm", "epochs": 6},
                "schedule": {"type": "exp", "rounds": 2},
            },
        ),
        (
            "LotteryTicketPruner",
            "pruning_algorithm='l1', total_iteration=4",
            {
                "algorithm": "l1",
                "schedule": {"type": "exp", "rounds": 4, "train": {"epochs": 1}, "rewindTo": 0},
            },
        ),
        (
            "LinearPruner",
            "pruning_algorithm='fpgm', total_iteration=3",
            {"algorithm": "fpgm", "schedule": {"type": "linear", "rounds": 3, "train": {"epochs": 1}}},
        ),
    ],
)
def test_pruners(pruner: str, arguments: str, expected: dict[str, Any], tmp_path: Path) -> None:
    """Of versions 1 to 3, with their arguments."""
    types = "BatchNorm2d" if pruner.startswith("Slim") else "Conv2d"
    text = f"pruner = {pruner}(model, [{{'sparsity': 0.5, 'op_types': ['{types}']}}], {arguments})\n"
    [document] = converted(tmp_path, "a.py", text).documents
    [stage] = document["spec"]["stages"]
    assert stage["prune"] == {"configList": [{"opTypes": [types], "sparsity": 0.5}], **expected}


def test_amc_is_a_budget(tmp_path: Path) -> None:
    """The share that its policy would learn to spread, of what it counts; a bound for each layer stays."""
    text = "AMCPruner(400, model, [{'total_sparsity': 0.7, 'max_sparsity_per_layer': 0.9, 'op_types': ['Conv2d']}], "
    found = converted(tmp_path, "a.py", text + "target='params')\n")
    [stage] = found.documents[0]["spec"]["stages"]
    assert stage["prune"] == {
        "algorithm": "l1",
        "configList": [{"opTypes": ["Conv2d"], "maxSparsity": 0.9}],
        "budget": {"metric": "parameters", "maxRatio": 0.3},
    }
    assert any("AMCPruner is budget: {metric: parameters, maxRatio: 0.3}" in remark for remark in found.remarks())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "QAT_Quantizer(model, [{'quant_types': ['weight', 'output'], 'quant_bits': {'weight': 4, 'output': 8}, "
            "'op_types': ['Conv2d'], 'quant_start_step': 7}, {'exclude': True, 'op_names': ['a']}])",
            {
                "algorithm": "qat",
                "granularity": "tensor",
                "startStep": 7,
                "epochs": 1,
                "configList": [
                    {"opTypes": ["Conv2d"], "targets": ["weight", "output"], "quantBits": {"weight": 4, "output": 8}},
                    {"opNames": ["a"], "exclude": True},
                ],
            },
        ),
        (
            "LSQQuantizer(model, [{'op_names': ['a'], 'target_names': ['_input_', 'weight', 'bias'], "
            "'quant_dtype': 'int8', 'quant_scheme': 'affine', 'granularity': 'out_channel'}], evaluator)\n"
            "q.compress(max_steps=9, max_epochs=None)",
            {
                "algorithm": "lsq",
                "granularity": "tensor",
                "maxSteps": 9,
                "configList": [
                    {
                        "opNames": ["a"],
                        "targets": ["input", "weight"],
                        "quantDtype": "int8",
                        "granularity": "channel",
                    }
                ],
            },
        ),
        (
            "NaiveQuantizer(model, [{'op_types': ['default'], 'quant_bits': 8}])",
            {
                "algorithm": "ptq_static",
                "granularity": "tensor",
                "configList": [{"opTypes": ["default"], "quantBits": 8}],
            },
        ),
        (
            "BNNQuantizer(model, [{'op_types': ['Linear'], 'quant_bits': 1, 'quant_types': ['weight']}])",
            {
                "algorithm": "bnn",
                "epochs": 1,
                "configList": [{"opTypes": ["Linear"], "targets": ["weight"], "quantBits": 1}],
            },
        ),
    ],
)
def test_quantizers(code: str, expected: dict[str, Any], tmp_path: Path) -> None:
    """Of versions 1 and 3."""
    [document] = converted(tmp_path, "a.py", f"q = {code}\n").documents
    [stage] = document["spec"]["stages"]
    assert stage["quantize"] == expected


def test_operations_of_neural_compressor(tmp_path: Path) -> None:
    """What stays in floats is excluded; scheme, granularity and range by type and name."""
    text = """
from neural_compressor.config import AccuracyCriterion, PostTrainingQuantConfig
conf = PostTrainingQuantConfig(
    approach="static",
    op_type_dict={"Conv": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}},
    op_name_dict={"fc": {"weight": {"scheme": ["asym"], "granularity": ["per_tensor"]},
                         "activation": {"scheme": ["sym"], "algorithm": ["kl"]}}},
    accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=0.02, higher_is_better=False),
)
"""
    [document] = converted(tmp_path, "a.py", text).documents
    [stage] = document["spec"]["stages"]
    assert stage["quantize"]["configList"] == [
        {"opTypes": ["default"]},
        {"opTypes": ["_ConvNd"], "exclude": True},
        {"opNames": ["fc"], "granularity": "tensor", "scheme": {"weight": "affine", "input": "symmetric"}},
    ]
    assert stage["quantize"]["calibration"] == {"observer": "kl"}
    assert stage["quantize"]["tune"] == {"criteria": [{"absolute": 0.02}]}
    assert "constraints" not in document["spec"]
    assert document["spec"]["metrics"] == {"default": {"goal": "minimize"}}


@pytest.mark.parametrize(
    ("said", "tune"),
    [
        ('tuning_criterion=TuningCriterion(strategy="tpe", timeout=60, max_trials=5)', {"strategy": "bayesian"}),
        ('quant_level=1, tuning_criterion=TuningCriterion(strategy="mse_v2", timeout=60, max_trials=5)', {
            "quantLevel": 1, "strategy": "mse"
        }),
        ('quant_level="auto", tuning_criterion=TuningCriterion(strategy="conservative", timeout=60, max_trials=5)', {
            "quantLevel": 0, "strategy": "basic"
        }),
    ],
)  # fmt: skip
def test_tuning_of_neural_compressor(said: str, tune: dict[str, Any], tmp_path: Path) -> None:
    """Its strategies, levels and ends; where it says no criterion, its own is written out."""
    text = f"""
from neural_compressor.config import PostTrainingQuantConfig, TuningCriterion
conf = PostTrainingQuantConfig({said})
"""
    [stage] = converted(tmp_path, "a.py", text).documents[0]["spec"]["stages"]
    ends = {"timeout": 60, "maxTrials": 5, "criteria": [{"relative": 0.01}]}
    assert stage["quantize"]["tune"] == tune | ends


def test_a_strategy_that_is_none(tmp_path: Path) -> None:
    text = "quantization: {approach: post_training_static_quant}\ntuning: {strategy: {name: lottery}}\n"
    with pytest.raises(SpecError, match="no counterpart to the strategy lottery; write basic or bayesian"):
        converted(tmp_path, "a.yaml", text)


def test_trials_that_do_badly_are_stopped(tmp_path: Path) -> None:
    """By the median, whatever it was there."""
    entry = '{"sparsity": {"range": [0.1, 0.2], "type": "float"}}'
    early = ', "resource_args": {"early_stop": {"aup_policy": "bandit", "aup_policy_steps": 3}}}'
    text = (COMPRESSION % ("l1", entry)).removesuffix("}") + early
    found = converted(tmp_path, "a.json", text)
    assert found.documents[0]["spec"]["earlyStopping"] == {"name": "median", "minSteps": 3}
    assert "median takes the place of bandit" in "\n".join(found.remarks())


def test_movement_goes_along_with_a_training(tmp_path: Path) -> None:
    """From the end of its warm-up to the beginning of its cool-down."""
    text = "p = MovementPruner(model, [{'op_types': ['Linear'], 'sparse_ratio': 0.5}], evaluator, warmup_step=5, "
    text += "cooldown_begin_step=40, training_steps=60)\n"
    [document] = converted(tmp_path, "a.py", text).documents
    [stage] = document["spec"]["stages"]
    assert stage["together"]["maxSteps"] == 60
    assert stage["together"]["of"][0]["prune"]["schedule"] == {"type": "agp", "startStep": 5, "endStep": 40}


def test_a_distiller(tmp_path: Path) -> None:
    """Layers are mapped by name."""
    text = "d = DynamicLayerwiseDistiller(model, [{'op_names': ['a', 'b'], 'lambda': 0.1, 'link': 'c', "
    text += "'apply_method': 'kl'}], evaluator, teacher, origin_loss_lambda=0.5)\n"
    [document] = converted(tmp_path, "a.py", text).documents
    [stage] = document["spec"]["stages"]
    mapping = {"teacher": "c", "lossType": "KL", "weight": 0.1}
    assert stage["distill"]["lossWeights"] == [0.5, 0.0]
    assert stage["distill"]["layerMappings"] == [{"student": "a", **mapping}, {"student": "b", **mapping}]


def test_python_is_never_run(tmp_path: Path) -> None:
    """What only a run could tell is not known."""
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\nratio = compute()\nconfig_list = [{{'sparsity': ratio}}]\n"
    said = problem(tmp_path, "a.py", text)
    assert "a.py:3: config_list[0].sparsity: must be a number, found" in said
    assert not (tmp_path / "ran").exists()


def test_the_model_and_the_method_can_be_said(tmp_path: Path) -> None:
    """In place of what the file leaves open."""
    text = "[{'sparsity': 0.5, 'op_types': ['Linear']}]"
    found = converted(tmp_path, "a.json", text, model="digits:create", algorithm="LevelPruner")
    [document] = found.documents
    assert document["spec"]["model"] == {"entrypoint": "digits:create"}
    assert document["spec"]["stages"][0]["prune"]["algorithm"] == "level"
    assert found.tool == "nni"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML with its notes as comments; or into a file, which is never written over."""
    file, out = tmp_path / "a.json", tmp_path / "job.yaml"
    file.write_text(COMPRESSION % ("l1_filter", '{"sparsity": 0.5}'))
    given = {"tool": None, "model": None, "algorithm": None}
    assert convert([str(file)], output=None, **given) == 0
    printed = capsys.readouterr().out
    assert "# Translated:\n#   - line 1: compression.compressor: l1_filter is algorithm: l1\n" in printed
    assert "kind: CompressionJob" in printed
    assert convert([str(file)], output=out, **given) == 0
    assert out.read_text() == printed
    assert "job.yaml: 1 object" in capsys.readouterr().out
    with pytest.raises(Exception, match="is there already; remove it"):
        convert([str(file)], output=out, **given)
