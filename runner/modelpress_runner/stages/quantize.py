"""The quantize stage: behind a pass over data, or along a training."""

from __future__ import annotations

from typing import Any

from modelpress.api.v1alpha1 import Quantize
from modelpress.api.v1alpha1.backends import backend
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext, Step, TrainingContext, Transform
from modelpress_runner.methods.quantize.algorithms.dorefa import Dorefa
from modelpress_runner.methods.quantize.behind import carry_out, freeze
from modelpress_runner.methods.quantize.calibrate import activations, enable, prepare
from modelpress_runner.methods.quantize.folding import foldable
from modelpress_runner.methods.quantize.in_backend import check_backend, quantize_in_backend, selected_for_backend
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod
from modelpress_runner.methods.quantize.participant import RoundedTraining
from modelpress_runner.methods.quantize.protocol import method
from modelpress_runner.methods.quantize.report import report
from modelpress_runner.methods.quantize.selection import select
from modelpress_runner.methods.quantize.times import annotate
from modelpress_runner.passes.run import Sources
from modelpress_runner.stages.base import Accompanied, StageKind
from modelpress_runner.stages.quantize_search import allocated, timed, tuned
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training


class QuantizeKind(StageKind[Quantize]):
    """Quantizers are put in place, set by data or along a training, and weights become integers."""

    name = "quantize"

    def algorithm(self, block: Quantize) -> str | None:
        """The block's."""
        return block.algorithm

    def check(self, block: Quantize, path: str, subject: Subject) -> None:
        """Selectors match as far as layers are not cut before, and there are data to be looked at."""
        quantizing = method(block.algorithm)
        select(subject.model, block, path, again=True)
        if block.backend != "torch":
            check_backend(block, path)
        asks = block.keep_only_if_faster or (block.budget is not None and block.budget.metric == "latencyMs")
        if asks and subject.dummy_input is None:
            field = "keepOnlyIfFaster" if block.keep_only_if_faster else "budget"
            message = "layers are timed on example inputs, and there are none; give the Subject example_inputs, or the "
            raise InvalidSpecError(f"{message}evaluator a dummy_input", f"{path}.{field}")
        evaluator = subject.evaluator
        if block.tune is not None and (evaluator is None or not evaluator.can_evaluate):
            what = "an evaluator that can evaluate" if evaluator is None else evaluator.evaluate_needs
            raise InvalidSpecError(f"tuning goes by scores, but nothing here evaluates; give {what}", f"{path}.tune")
        layerwise = isinstance(quantizing, LayerwiseMethod)
        if "activations" in quantizing.facts.needs and (layerwise or self._looks(block)):
            missing = Sources(subject.evaluator, subject.calibration_data).missing({"activations"})
            if missing is not None:
                what = "looks at inputs" if layerwise else "finds ranges of inputs in data"
                raise InvalidSpecError(f"{block.algorithm} {what}: {missing}", path)

    def steps(self, block: Quantize, index: int) -> list[Step]:
        """Quantizers, then what sets them, then integers."""
        path = f"spec.stages[{index}].quantize"
        quantizing = method(block.algorithm)
        if backend(block.backend).quantizes:

            def in_backend(context: StageContext) -> None:
                selection = selected_for_backend(context, block, path)
                kept, times = timed(context, selection, block, quantizing, path)
                if kept.layers:
                    quantize_in_backend(context, kept, block, path)
                annotate(context, selection, times)

            return [Transform(f"quantize in {block.backend} by {block.algorithm}", in_backend)]
        if quantizing.facts.trains:
            along = self.participants(block, path, index, "")
            training = Training("quantize", block.epochs, block.max_steps, along.participants)
            return [*along.before, training, *along.steps]

        def quantize(context: StageContext) -> None:
            selection = select(context.model, block, path, context.dummy_input)
            take = timed if block.budget is None else allocated
            kept, times = take(context, selection, block, quantizing, path)
            chosen = block
            if block.tune is not None and kept.layers:
                kept, chosen = tuned(context, kept, block, quantizing, path)
            if kept.layers:
                carry_out(context, kept, chosen, quantizing, path)
            annotate(context, selection, times)

        return [Transform(f"quantize by {block.algorithm}", quantize)]

    def participants(self, block: Quantize, path: str, index: int, name: str) -> Accompanied:
        """Of what trains: quantizers before it, rounding along with it, and integers behind it."""
        quantizing = method(block.algorithm)
        if not quantizing.facts.trains:
            raise InvalidSpecError(f"{block.algorithm} needs no training; put it into a stage of its own", path)

        def before(context: StageContext) -> None:
            selection = select(context.model, block, path, context.dummy_input)
            prepare(context, selection, block, quantizing, path)
            if isinstance(quantizing, Dorefa):
                for quantizer in activations(context.model, selection).values():
                    quantizer.scale.fill_(1.0 / quantizer.qmax)

        def made(training: TrainingContext) -> list[Participant]:
            layers = list(select(training.context.model, block, path, again=True).layers)
            return [RoundedTraining(layers, quantizing, block.start_step, block.weight_observer, path)]

        def behind(context: StageContext) -> None:
            selection = select(context.model, block, path, again=True)
            enable(context.model, selection)
            report(context, selection, quantizing)
            freeze(context, selection.layers)
            if block.fold_batch_norm and context.dummy_input is not None:
                folds = foldable(context.model, selection.layers, context.dummy_input, context.masks)
                replay(context.model, folds, context.masks)
                context.edits += folds

        label = f"{name}: " if name else ""
        return Accompanied(
            made,
            (Transform(f"{label}keep integers", behind),),
            (Transform(f"{label}quantizers for {block.algorithm}", before),),
        )

    def record(self, block: Quantize) -> dict[str, Any]:
        """By what, and for which backend."""
        return {"algorithm": block.algorithm, "backend": block.backend}

    def _looks(self, block: Quantize) -> bool:
        own = method(block.algorithm).facts.targets
        return any(
            set(entry.targets or block.targets or own) & {"input", "output"}
            for entry in block.config_list
            if not entry.exclude
        )


KIND = QuantizeKind()
