"""Each task, on a tiny model: how it is scored, what it learns, and that compressed forms of it score alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import LENGTH, bert, gpt2, rows, subject, vit

from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.huggingface.tasks.base import classification_score
from modelpress_runner.huggingface.tasks.feature_extraction import retrieval_score
from modelpress_runner.huggingface.tasks.token_classification import entities, entity_f1
from modelpress_runner.inputs import rows as readers

SENTENCES = [
    {"text": "the red cat sleeps", "label": "yes"},
    {"text": "the blue dog runs", "label": "no"},
    {"text": "a red dog runs", "label": "yes"},
    {"text": "a blue cat sleeps in Rome", "label": "no"},
    {"text": "red is big", "label": "yes"},
    {"text": "blue is small", "label": "no"},
]
TAGGED = [
    {"tokens": ["Anna", "runs", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]},
    {"tokens": ["the", "cat", "sleeps"], "tags": ["O", "O", "O"]},
    {"tokens": ["Bob", "is", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]},
]
PAIRS = [
    {"text": "the red cat", "positive": "a cat is red"},
    {"text": "the blue dog", "positive": "a dog is blue"},
    {"text": "Anna runs", "positive": "the big Bob"},
    {"text": "small Rome", "positive": "Rome is small"},
]
TEXTS = [{"text": "the red cat sleeps in Rome"}, {"text": "a blue dog runs"}, {"text": "Anna is in Rome"}]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def photos(folder: Path) -> readers.Rows:
    """Bright and dark images of several sizes, as an imageFolder."""
    for label, value in (("bright", 230), ("dark", 20)):
        for number in range(4):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8 + number, 10, 3), value - 5 * number, np.uint8)).save(path)
    return readers.read(folder, "imageFolder", "validation")


def made(task: str, folder: Path, *splits: str) -> Any:
    """The subject of a task on its own data, for these splits."""
    if task == "image-classification":
        data = photos(folder / "photos")
        return subject(vit(folder), task, *(readers.Rows(data._rows, data.columns, name) for name in splits))
    model, data = {
        "text-classification": (lambda: bert(folder, "BertForSequenceClassification"), SENTENCES),
        "token-classification": (lambda: bert(folder, "BertForTokenClassification", TAGS), TAGGED),
        "feature-extraction": (lambda: bert(folder), PAIRS),
        "causal-lm": (lambda: gpt2(folder), TEXTS),
    }[task]
    return subject(model(), task, *(rows(name, *data) for name in splits))


TASKS = ("text-classification", "token-classification", "feature-extraction", "causal-lm", "image-classification")


@pytest.mark.parametrize("task", TASKS)
def test_training_learns_the_data(task, tmp_path):
    """From random weights the score on the training data becomes (nearly) perfect."""
    found = made(task, tmp_path, "train", "validation")
    torch.manual_seed(0)
    before = found.evaluator.evaluate(found.model)
    found.evaluator.bind(found.model)
    found.evaluator.train(max_epochs=40)
    after = found.evaluator.evaluate()
    found.evaluator.unbind()
    if task == "causal-lm":
        assert before["default"] == pytest.approx(-math.log(20), abs=0.2)  # 20 words in the vocabulary
        assert after["perplexity"] < 3
        assert after["perplexity"] == pytest.approx(math.exp(-after["default"]))
    else:
        assert after["default"] == 1.0 > before["default"]


@pytest.mark.parametrize("task", ["feature-extraction", "causal-lm"])
def test_a_program_scores_like_the_model(task, tmp_path):
    """The exported program, which takes one length only, gets batches of that length and gives the same score."""
    found = made(task, tmp_path, "validation")
    score = found.evaluator.evaluate(found.model)
    export_program(found.model, found.dummy_input, tmp_path / "model.pt2")
    program = found.evaluator.evaluate(open_program(tmp_path / "model.pt2"))
    assert program == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_training_goes_on_bit_for_bit(task, tmp_path):
    """Two epochs at once are the same as one, a checkpoint, and one more in another process's stead."""
    whole, first = made(task, tmp_path, "train"), made(task, tmp_path, "train")
    torch.manual_seed(3)
    whole.evaluator.bind(whole.model)
    whole.evaluator.train(max_epochs=1)
    whole.evaluator.train(max_epochs=1)
    torch.manual_seed(3)
    first.evaluator.bind(first.model)
    first.evaluator.train(max_epochs=1)
    state, weights, generator = first.evaluator.state_dict(), first.model.state_dict(), torch.get_rng_state()
    second = made(task, tmp_path, "train")
    second.model.load_state_dict(weights)
    second.evaluator.bind(second.model)
    second.evaluator.load_state_dict(state)
    torch.set_rng_state(generator)
    second.evaluator.train(max_epochs=1)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_steps_are_counted(tmp_path):
    """maxSteps is the number of optimizer steps, also over the end of an epoch."""
    found = made("text-classification", tmp_path, "train")
    found.evaluator.bind(found.model)
    steps = []
    found.evaluator.after_optimizer_step(lambda: steps.append(1))
    found.evaluator.train(max_steps=5)  # six rows in batches of 4: two steps an epoch
    assert len(steps) == 5


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant", 0.5, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", 0.5, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 0.5, [0.25, 0.5, 0.75, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_rises_and_falls(tmp_path, schedule, warmup, expected):
    """Of the very steps that are made, behind one another in two trainings."""
    folder = bert(tmp_path / "folder", "BertForSequenceClassification")
    rates = []

    found = subject(
        folder, "text-classification", rows("train", *(SENTENCES * 2)[:8]), rows("validation", *SENTENCES),
        batchSize=1, learningRate=0.004, learningRateSchedule=schedule, warmupRatio=warmup,
    )  # fmt: skip
    evaluator = found.evaluator
    evaluator.bind(found.model)
    (optimizer,) = evaluator.optimizers()
    optimizer.register_step_pre_hook(lambda each, *_: rates.append(each.param_groups[0]["lr"] / 0.004))
    evaluator.train(max_steps=8)
    assert rates == pytest.approx(expected)
    evaluator.train(max_epochs=1)
    assert rates[8:] == pytest.approx(expected)


def test_perplexity_is_that_of_transformers(tmp_path):
    """The mean loss over all blocks, weighted by tokens, equals transformers' own loss; texts end with the end mark."""
    found = made("causal-lm", tmp_path, "validation")
    tokens = [16, 5, 7, 10, 13, 14, 4, 17, 6, 8, 9, 4, 11, 15, 13, 14, 4]
    whole = [tokens[:LENGTH], tokens[LENGTH:]]
    total = 0.0
    with torch.no_grad():
        for block in whole:
            ids = torch.tensor([block])
            total += float(found.model(input_ids=ids, labels=ids).loss) * (len(block) - 1)
    loss = total / (len(tokens) - 2)
    assert found.evaluator.evaluate(found.model)["default"] == pytest.approx(-loss, rel=1e-5)


def test_embeddings_leave_padding_out(tmp_path):
    """A text has the same embedding alone as beside a longer one."""
    found = made("feature-extraction", tmp_path, "validation")
    task = found.evaluator.task
    from modelpress_runner.huggingface.tasks.feature_extraction import embeddings

    short, long = task.encoded(["red cat", "the big red dog runs in the small Rome"])
    with torch.no_grad():
        alone = embeddings(found.model, task.padded([short]))
        beside = embeddings(found.model, task.padded([short, long]))
        whole = embeddings(found.model, task.padded([short], whole=True))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    assert torch.allclose(alone, whole, atol=1e-6)
    assert alone.norm(dim=-1).item() == pytest.approx(1.0)


def test_retrieval_by_hand():
    """Ranks 1, 2 and 2; a tie with another entry counts against the own one."""
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    corpus = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    score = retrieval_score(texts, corpus, torch.tensor([0, 1, 2]))
    assert score == pytest.approx({"default": 1 / 3, "mrr": (1 + 1 / 2 + 1 / 2) / 3})


def test_one_entry_of_the_corpus_for_equal_pairs(tmp_path):
    """Two questions with the same answer: it is one entry, and no negative for either."""
    twins = [{"text": "red", "positive": "the big cat"}, {"text": "blue", "positive": "the big cat"}]
    found = subject(bert(tmp_path), "feature-extraction", rows("train", *twins), rows("validation", *twins))
    assert found.evaluator.evaluate(found.model) == {"default": 1.0, "mrr": 1.0}
    task = found.evaluator.task
    with torch.no_grad():
        assert float(task.loss(found.model, task.batch(task.examples(rows("train", *twins))))) == 0.0


def test_classification_by_hand():
    """Accuracy 3/5; F1 of 2/3 and 1/2 for the classes that occur, the third one does not count."""
    predicted, labels = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 0, 1])
    score = classification_score(predicted, labels, 3)
    assert score == pytest.approx({"default": 0.6, "accuracy": 0.6, "f1": (2 / 3 + 1 / 2) / 2})


def test_entities_by_hand():
    """B- begins one, I- goes on or begins one of another kind, O ends it."""
    tags = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]
    assert entities(tags) == {("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5), ("PER", 5, 6)}
    # One of two found entities is right, of three that there are: 2 * 1 / (2 + 3).
    assert entity_f1([["B-PER", "I-PER", "B-LOC", "B-LOC"]], [["B-PER", "O", "B-LOC", "O"]]) == pytest.approx(0.4)
    assert entity_f1([["O"]], [["O"]]) == 1.0


def test_words_in_pieces_have_their_tag_once(tmp_path):
    """A word of two tokens counts by its first one, so accuracy is over words."""
    found = made("token-classification", tmp_path, "validation")
    example = found.evaluator.task._encode(["Anna", "red-dog", "runs"], [1, 0, 3])  # "red-dog": red, -, dog
    assert example["labels"] == [-100, 1, 0, -100, -100, 3, -100]


def test_labels_are_names_or_numbers(tmp_path):
    """Names of the model's labels, their numbers, and numbers as text are the same labels."""
    folder = bert(tmp_path, "BertForSequenceClassification")
    scores = [
        subject(
            folder,
            "text-classification",
            rows("validation", *({**row, "label": forms[row["label"]]} for row in SENTENCES)),
        )
        for forms in ({"yes": "yes", "no": "no"}, {"yes": 1, "no": 0}, {"yes": "1", "no": "0"})
    ]
    assert len({found.evaluator.evaluate(found.model)["default"] for found in scores}) == 1


@pytest.mark.parametrize(
    ("task", "row", "settings", "path", "message"),
    [
        (
            "text-classification",
            {"text": "red", "label": "maybe"},
            {},
            "columns.label",
            "row 1 of data.validation has the label 'maybe'; the model knows no, yes",
        ),
        ("text-classification", {"text": "red", "label": 2}, {}, "columns.label", "has the label 2"),
        ("text-classification", {"text": "red", "label": None}, {}, "columns.label", "has no label"),
        ("text-classification", {"text": "red", "labels": "no"}, {}, "columns.label", "did you mean labels?"),
        (
            "text-classification",
            {"text": " ", "label": "no"},
            {},
            "columns.text",
            "row 1 of data.validation has no text",
        ),
        ("text-classification", {"text": 3, "label": "no"}, {}, "columns.text", "has the int 3 in the column 'text'"),
        ("text-classification", {"sentence": "red", "label": "no"}, {}, "columns.text", "no column 'text'"),
        (
            "text-classification",
            {"text": "red", "label": "no"},
            {"columns": {"textPair": "second"}},
            "columns.textPair",
            "no column 'second'",
        ),
        ("text-classification", {"text": "red", "label": "no"}, {"maxLength": 13}, "maxLength", "at most 12 tokens"),
        ("feature-extraction", {"text": "red"}, {}, "columns.textPair", "no column 'positive'"),
    ],
)
def test_data_that_does_not_fit_is_said_in_one_sentence(task, row, settings, path, message, tmp_path):
    """The field, the row and the value, and what would do."""
    folder = bert(tmp_path, "BertForSequenceClassification" if task == "text-classification" else "BertModel")
    with pytest.raises(InvalidSpecError) as caught:
        subject(folder, task, rows("validation", row), **settings)
    assert str(caught.value).startswith(f"spec.model.huggingFace.{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["red", "cat"], "tags": ["O"]}, "row 1 of data.train has 2 words and 1 tags; give one tag a word"),
        ({"tokens": "red cat", "tags": "O B-CAT"}, "word 2 of row 1 of data.train has the label 'B-CAT'"),
        ({"tokens": 7, "tags": ["O"]}, "row 1 of data.train has no list in the column 'tokens'"),
    ],
)
def test_tags_that_do_not_fit(row, message, tmp_path):
    """One tag a word, each of them known to the model."""
    folder = bert(tmp_path, "BertForTokenClassification", TAGS)
    with pytest.raises(InvalidSpecError, match=r"^spec\.model\.huggingFace\.columns\.") as caught:
        subject(folder, "token-classification", rows("train", row))
    assert message in str(caught.value)


def test_pairs_of_texts_are_one_input(tmp_path):
    """With textPair both texts reach the model, apart by their segment."""
    folder = bert(tmp_path, "BertForSequenceClassification")
    row = {"text": "red", "second": "blue cat", "label": "no"}
    found = subject(folder, "text-classification", rows("validation", row), columns={"textPair": "second"})
    (example,) = found.evaluator.task.examples(rows("validation", row))
    assert example["input_ids"] == [2, 5, 3, 6, 7, 3]
    assert example["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_calibration_needs_no_labels(tmp_path):
    """Batches of the model's inputs, as long as the example inputs; feature-extraction needs no pairs for it."""
    found = subject(bert(tmp_path), "feature-extraction", rows("calibration", *({"text": "red cat"} for _ in range(6))))
    assert [batch["input_ids"].shape for batch in found.calibration_data] == [(4, LENGTH), (2, LENGTH)]
    assert not found.evaluator.can_train
    assert not found.evaluator.can_evaluate


@pytest.mark.parametrize(
    ("task", "kind", "row"),
    [
        ("text-classification", ("BertForSequenceClassification",), {"text": "red cat"}),
        ("token-classification", ("BertForTokenClassification", TAGS), {"tokens": ["red", "cat"]}),
    ],
)
def test_calibration_of_what_has_labels_needs_none(tmp_path, task, kind, row):
    """Text alone, or words alone; what the model takes is what it takes of labeled rows."""
    found = subject(bert(tmp_path, *kind), task, rows("calibration", row, row))
    [batch] = found.calibration_data
    assert batch["input_ids"].shape == (2, LENGTH)
    assert batch["input_ids"][0, :4].tolist() == [2, 5, 7, 3]
    assert "labels" not in batch
    assert found.model(**batch)["logits"].shape[0] == 2


def test_roberta_counts_positions_from_behind_the_padding(tmp_path):
    """A RoBERTa of 10 positions takes 9 tokens: the first position is the padding's."""
    from tiny_models import SPECIAL, WORDS, tokenizer

    config = transformers.RobertaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=10,
        pad_token_id=0,
        type_vocab_size=1,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    tokenizer(tmp_path)
    found = subject(tmp_path, "feature-extraction", rows("validation", *PAIRS))
    assert found.dummy_input["input_ids"].shape == (1, 9)
    assert 0 <= found.evaluator.evaluate(found.model)["default"] <= 1
