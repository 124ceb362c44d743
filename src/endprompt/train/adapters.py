"""What is trained: all weights, LoRA, LoRA with embeddings and norms, or attention alone.

LoRA layers are PEFT's, put into the model in place: the model stays the class it was, so that
a checkpoint holds every weight, trained embeddings and norms included, and resuming is exact.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from endprompt.errors import ModelError
from endprompt.recipe import Training

ATTENTION = ("self_attn", "attention", "attn", "self_attention")


def prepare(model: Any, training: Training) -> Any:
    """Leave only what the recipe trains with a gradient; adds LoRA layers where it asks for them.

    Returns the model that was given, changed in place. `lora` and `lora+` adapt the linear maps
    of every attention layer (q, k, v, o); `lora+` trains embeddings and norms beside them
    (LongLoRA, section 3.3). Raises ModelError where no attention layer is found.
    """
    trainable = training.trainable
    model.requires_grad_(trainable == "all")
    if trainable in ("all", "nothing"):
        return model
    layers = attention_layers(model)
    if not layers:
        raise ModelError(
            f"no attention layers found in model type {model.config.model_type!r}: "
            f"set training.trainable to all"
        )
    if trainable == "attention":
        for layer in layers.values():
            layer.requires_grad_(True)
        return model
    _add_lora(model, layers, training)
    if trainable == "lora+":
        model.get_input_embeddings().requires_grad_(True)
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):  # LayerNorm, LlamaRMSNorm, ...
                module.requires_grad_(True)
    return model


def merge(model: Any) -> Any:
    """Fold LoRA layers into the weights they adapt; a model without them is left as it is."""
    from peft.tuners.lora import LoraLayer

    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name in adapted:
        module = model.get_submodule(name)
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def attention_layers(model: Any) -> dict[str, nn.Module]:
    """Attention modules of a decoder by name, wherever its family puts them."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ATTENTION
        and any(isinstance(child, nn.Linear) for child in module.children())
    }


def _add_lora(model: Any, layers: dict[str, nn.Module], training: Training) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        f"{name}.{child}"
        for name, layer in layers.items()
        for child, module in layer.named_children()
        if isinstance(module, nn.Linear)
    ]
    settings = LoraConfig(
        r=training.lora_rank, lora_alpha=training.lora_alpha, target_modules=targets
    )
    inject_adapter_in_model(settings, model)
