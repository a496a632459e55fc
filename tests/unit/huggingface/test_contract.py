"""The evaluator of huggingFace keeps the contract of all evaluators, on two of its tasks and on shared weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import bert, gpt2, rows, subject

from modelpress_runner.testing.evaluators import EvaluatorContract, Make

TEXTS = [{"text": "the red cat sleeps in Rome"}, {"text": "a blue dog runs"}, {"text": "Anna is in Rome the big"}]
SENTENCES = [
    {"text": "the red cat sleeps", "label": "yes"},
    {"text": "the blue dog runs", "label": "no"},
    {"text": "a red dog runs", "label": "yes"},
    {"text": "a blue cat sleeps in Rome", "label": "no"},
    {"text": "red is big", "label": "yes"},
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bert."""
    return bert(tmp_path_factory.mktemp("bert"), "BertForSequenceClassification", hidden_dropout_prob=0.1)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a gpt2."""
    return gpt2(tmp_path_factory.mktemp("gpt2"))


class TestClassifier(EvaluatorContract):
    """A BERT with a head."""

    @pytest.fixture
    def make(self, classifier: Path) -> Make:
        def make():
            splits = (rows(name, *SENTENCES) for name in ("train", "validation"))
            found = subject(classifier, "text-classification", *splits, batchSize=2)
            return found.evaluator, found.model

        return make


class TestLanguageModel(EvaluatorContract):
    """A GPT-2, whose output shares the weights of its input, at a learning rate that rises and falls."""

    @pytest.fixture
    def make(self, language_model: Path) -> Make:
        def make():
            splits = (rows(name, *TEXTS) for name in ("train", "validation"))
            moving = {"learningRateSchedule": "cosine", "warmupRatio": 0.2}
            found = subject(language_model, "causal-lm", *splits, batchSize=1, maxLength=6, **moving)
            return found.evaluator, found.model

        return make
