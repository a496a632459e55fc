"""A folder in the layout of save_pretrained as a model with its tokenizer or image processor. No code in it is run."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress.api.messages import keys_in_words
from modelpress.api.v1alpha1 import HuggingFace, HuggingFaceTask
from modelpress_runner.errors import InvalidModelError, first_line
from modelpress_runner.huggingface.bounds import bounded, checked, weigh
from modelpress_runner.inputs.hub import library

log = logging.getLogger("modelpress")

_PATH = "spec.model.huggingFace.source.uri"
_TASK = "spec.model.huggingFace.task"
_CLASSES: dict[HuggingFaceTask, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "feature-extraction": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "source.spm"),
)
_DROPOUT = re.compile(r"dropout|pdrop|drop_rate$")  # not those of whole layers and paths


@dataclass(frozen=True)
class Pretrained:
    """A model as its folder has it.

    Attributes:
        model: a transformers.PreTrainedModel in eval mode, float32.
        processor: its tokenizer, or its image processor.
        auto_class: name of the transformers class that loads it: AutoModel.
    """

    model: Any
    processor: Any
    auto_class: str


def load(spec: HuggingFace, folder: Path) -> Pretrained:
    """The model and its processor in a folder that `fetch` gave.

    Raises:
        InvalidModelError: it needs code of its own, is of a kind that transformers does not know, was made for another
            task, is damaged, or has no tokenizer or image processor.
    """
    transformers = library()
    config = _config(folder)
    auto_class = _CLASSES[spec.task]
    _check_task(config, getattr(transformers, auto_class), spec.task)
    if spec.dropout is not None:
        _set_dropouts(config, spec.dropout)
    with quiet(), bounded(weigh(folder)):
        try:
            model, info = getattr(transformers, auto_class).from_pretrained(
                folder,
                config=config,
                dtype="float32",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except InvalidModelError:
            raise
        except Exception as error:  # whatever a damaged folder makes of transformers
            raise InvalidModelError(
                f"the model does not load ({first_line(error)}); write the folder anew", _PATH
            ) from error
    # Mean pooling passes the pooler by, and many sentence encoders come without one.
    missing = sorted(
        name for name in info["missing_keys"] if not (spec.task == "feature-extraction" and name.startswith("pooler."))
    )
    if missing:
        raise InvalidModelError(
            f"the weights lack {keys_in_words(missing, 3)}; write the folder anew with save_pretrained", _PATH
        )
    if spec.task == "image-classification":
        processor = _image_processor(folder)
    else:
        processor = _tokenizer(folder, model)
    model.eval()
    return Pretrained(model, processor, auto_class)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and remarks of transformers: what matters is said as an error."""
    from transformers.utils import logging as reports

    bars, level = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity_error()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()


def _config(folder: Path) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    plain = checked(folder)
    kind = plain.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if plain.get("auto_map"):
            message = "the model needs code of its own, which is never run; give it as model.entrypoint"
        else:
            near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
            hint = f"did you mean {near[0]}?" if near else "update transformers, or give it as model.entrypoint"
            message = f"transformers knows no model_type {kind!r}; {hint}"
        raise InvalidModelError(message, _PATH)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise InvalidModelError(f"config.json cannot be read ({first_line(error)}); write it anew", _PATH) from error
    # Which kernels compute it is transformers' choice for this machine: a name in the file would have code fetched.
    config._attn_implementation = config._experts_implementation = None
    return config


def _set_dropouts(config: Any, probability: float) -> None:
    """Sets what model configurations name so: hidden_dropout_prob, attention_dropout, resid_pdrop, attn_drop_rate."""
    found = False
    for each in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in list(vars(each).items()):
            if _DROPOUT.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(each, name, probability)
                found = True
    if not found:
        message = f"the configuration of a {config.model_type} model has no dropout; leave dropout out"
        raise InvalidModelError(message, "spec.model.huggingFace.dropout")


def _check_task(config: Any, auto: Any, task: HuggingFaceTask) -> None:
    """Whether a model of this kind can do the task, and was made for it: a head of another task would load as well."""
    if type(config) not in auto._model_mapping:
        raise InvalidModelError(f"a {config.model_type} model cannot do {task}; choose another task or source", _TASK)
    if config.is_encoder_decoder:
        raise InvalidModelError(
            f"{config.model_type} is an encoder-decoder, which no task here takes; write an entrypoint", _TASK
        )
    found = config.architectures or []
    if task == "feature-extraction" or not found:
        return
    wanted = auto._model_mapping[type(config)]
    names = [each.__name__ for each in (wanted if isinstance(wanted, tuple) else (wanted,))]
    if not set(names) & set(found):
        message = f"the source is a {found[0]}, and {task} needs a {' or '.join(names)}"
        raise InvalidModelError(f"{message}; choose another task, or train it for this one first", _TASK)


def _tokenizer(folder: Path, model: Any) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        message = "there is no tokenizer beside the weights; add it with tokenizer.save_pretrained(folder)"
        raise InvalidModelError(message, _PATH)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise InvalidModelError(
                f"the tokenizer does not load ({first_line(error)}); write it anew", _PATH
            ) from error
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest < 0 or highest >= rows:
        message = f"the tokenizer has {highest + 1} tokens and the model {rows}; give the tokenizer that belongs to it"
        raise InvalidModelError(message, _PATH)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            message = "the tokenizer has no padding token; set tokenizer.pad_token and save it again"
            raise InvalidModelError(message, _PATH)
        tokenizer.pad_token = tokenizer.eos_token
    # Classifiers of decoders look for the last token that is no padding; they ask the model's own configuration.
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _image_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        message = "there is no preprocessor_config.json; add it with image_processor.save_pretrained(folder)"
        raise InvalidModelError(message, _PATH)
    with quiet():
        try:
            # One backend everywhere: torchvision resizes a little differently, so that scores would hang on it.
            return AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            message = f"the image processor does not load ({first_line(error)}); install Pillow, or write it anew"
            raise InvalidModelError(message, _PATH) from error
