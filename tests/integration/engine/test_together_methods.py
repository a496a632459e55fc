"""Every pruning method passes its own suite as part of a training that any evaluator runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1.algorithms import names
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.subject.compression_module import CompressionModule, subject_of
from modelpress_runner.testing.prune_methods import PruneMethodContract, loss_of

pytestmark = pytest.mark.long


class _Along(PruneMethodContract):
    """What of the suite is about stages."""

    __test__: ClassVar = False
    test_scores_have_the_promised_shape = None
    test_scores_repeat_and_leave_the_module_alone = None
    test_half_precision_is_summed_in_double = None
    test_its_row_is_complete = None
    test_a_second_stage_like_the_first_changes_nothing = None
    test_what_is_excluded_keeps_every_bit = None
    test_what_is_masked_stays_zero_in_a_training = None
    test_what_depends_on_each_other_goes_together = None
    test_what_was_made_is_loaded_again = None

    @pytest.fixture(params=names("prune"))
    def each(self, request: pytest.FixtureRequest) -> PruneMethod:
        return method(request.param)

    @pytest.fixture(params=["together"])
    def way(self, request: pytest.FixtureRequest) -> str:
        return request.param


class TestModule(_Along):
    """A trainer of a CompressionModule, one step an epoch."""

    __test__ = True

    def evaluator(self, model: nn.Module) -> Evaluator:
        def trainer(model: nn.Module, optimizer: Any, criterion: Any, epoch: int) -> None:
            optimizer.zero_grad()
            criterion(loss_of(model), None).backward()
            optimizer.step()

        class Module(CompressionModule):
            @classmethod
            def model(cls) -> nn.Module:
                return model

            @classmethod
            def evaluator(cls) -> Any:
                return lambda model: 0.0

            @classmethod
            def optimizer_factory(cls) -> Any:
                return lambda params: torch.optim.SGD(params, lr=0.1)

            @classmethod
            def criterion(cls) -> Any:
                return lambda output, target: output

            @classmethod
            def post_compress_finetuning_trainer(cls, algorithm_name: str) -> Any:
                return trainer

        return subject_of(Module).evaluator


class TestLightning(_Along):
    """A Trainer's fit."""

    __test__ = True

    def net(self, *modules: nn.Module) -> nn.Module:
        import lightning.pytorch as pl

        class Module(pl.LightningModule):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                return loss_of(self)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return _with(Module(), modules)

    def evaluator(self, model: nn.Module) -> Evaluator:
        import lightning.pytorch as pl

        class Data(pl.LightningDataModule):
            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(torch.zeros(8, 1), 1)

        trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False)
        return mp.LightningEvaluator(trainer, mp.trace(Data)())


class TestTransformers(_Along):
    """A Trainer's train."""

    __test__ = True

    def net(self, *modules: nn.Module) -> nn.Module:
        from transformers import PretrainedConfig, PreTrainedModel

        class Module(PreTrainedModel):
            config_class = PretrainedConfig

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"loss": loss_of(self)}

        return _with(Module(PretrainedConfig()), modules)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def evaluator(self, model: nn.Module) -> Evaluator:
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=1,
            optim="sgd",
            learning_rate=0.1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = mp.trace(Trainer)(model, arguments, train_dataset=[{"x": torch.zeros(1)}] * 8)
        return mp.TransformersEvaluator(trainer)


class TestDeepSpeed(_Along):
    """A loop over an engine, which takes no weights in float64."""

    __test__ = True

    def net(self, *modules: nn.Module) -> nn.Module:
        return nn.Sequential(*modules).float()

    def evaluator(self, model: nn.Module) -> Evaluator:
        def training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs) -> None:
            for _ in range(max_steps):
                engine.backward(training_step(None, engine))
                engine.step()

        config = {"train_micro_batch_size_per_gpu": 1}
        optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
        return mp.DeepspeedTorchEvaluator(
            training_func, lambda batch, engine: loss_of(engine.module), config, optimizer
        )


def _with(model: nn.Module, modules: tuple[nn.Module, ...]) -> nn.Module:
    for number, module in enumerate(modules):
        model.add_module(str(number), module)
    return model
