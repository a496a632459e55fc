"""Loads the model in this folder, whose layers differ in width: needs transformers alone.

from loader import load
model = load(".")                           # options as of from_pretrained: dtype, device_map, ...
"""

import copy
import itertools
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers


def load(folder: Path | str = Path(__file__).parent, **options: Any) -> Any:
    """The model, in eval mode. config.json says by `per_layer_config` which numbers of a layer are others."""
    plain = json.loads((Path(folder) / "config.json").read_text())
    changes = {int(number): values for number, values in plain.pop("per_layer_config", {}).items()}
    config = transformers.AutoConfig.for_model(plain.pop("model_type"), **plain)
    model_class = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        lists = [each for each in model_class(config).modules() if isinstance(each, torch.nn.ModuleList)]
    layer = type(next(each for each in lists if len(each) == config.num_hidden_layers)[0])
    whole, numbers = layer.__init__, itertools.count()

    def narrow(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        config = copy.deepcopy(config)
        config.update(changes.get(next(numbers), {}))
        whole(self, config, *args, **kwargs)

    with patch.object(layer, "__init__", narrow):
        return model_class.from_pretrained(folder, config=config, **options).eval()
