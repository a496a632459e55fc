"""The contract of an evaluator, as tests that any implementation can run (needs pytest).

    class TestMyEvaluator(EvaluatorContract):
        @pytest.fixture
        def make(self):
            def make():                        # each call the same weights, data and settings, nothing shared
                model = ...
                return MyEvaluator(...), model
            return make

The evaluator must be able to train and to evaluate and have a dummy_input, the model at least two modules with a weight
matrix, an epoch at least two optimizer steps. Optional: the fixture `broken` (like `make`, but the user's training
raises an exception after its first step) and `watched(evaluator)` (the framework's objects, looked through for methods
that are still patched). A test that cannot apply at all is left out by setting its name to None in the subclass.
"""

from modelpress_runner.testing.evaluators.along import Along, AlongKind, AlongRules, along_stage
from modelpress_runner.testing.evaluators.basis import Make, traces
from modelpress_runner.testing.evaluators.binding import Binding
from modelpress_runner.testing.evaluators.hooks import Hooks
from modelpress_runner.testing.evaluators.leavings import Leavings


class EvaluatorContract(Binding, Hooks, Along, Leavings):
    """What every evaluator promises."""


__all__ = ["AlongKind", "AlongRules", "EvaluatorContract", "Make", "along_stage", "traces"]
