"""LoRA on the transformer, by peft.

Place in the pipeline: :class:`bczoo.train.finetune.policy.FineTune` adds the small matrices before training;
``bczoo.hub.state`` merges them into the weights whenever a policy is saved or exported (arXiv 2106.09685).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from bczoo.core.errors import UserError


@dataclass
class LoRA:
    """Low-rank matrices beside the linear layers of the transformer, whose own weights stay as they are.

    Args:
        rank: of the matrices.
        alpha: their product is scaled with alpha / rank.
        dropout: on their input, in training.
        layers: names of the linear layers that get them; null for all of the transformer. Both of bczoo's have qkv and
            out in the attention; the feed-forward is gate_up and down in a BCPolicy, up and down in a CNNPolicy.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    layers: list[str] | None = None

    @property
    def scale(self) -> float:
        return self.alpha / max(self.rank, 1)


def add_lora(module: nn.Module, lora: LoRA) -> LoRA:
    """Add the matrices to a module in place; only they are trained in it from now on.

    Returns:
        the same with the names of the layers, in the order of the module: what runs keep, and are resumed by.

    Raises:
        UserError: peft is not installed, or the module has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'bczoo[lora]'") from error
    linear = [name.rsplit(".", 1)[-1] for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    known = list(dict.fromkeys(linear))
    layers = known if lora.layers is None else list(lora.layers)
    if lora.rank < 1 or not layers or set(layers) - set(known):
        raise UserError(f"lora needs a rank of at least 1 and layers out of {sorted(known)}, got {lora}")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)
    inject_adapter_in_model(config, module)
    return replace(lora, layers=layers)
