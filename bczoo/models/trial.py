"""Whether the parts of a policy return what they have to, tried before a training.

Place in the pipeline: :meth:`bczoo.models.policy.Policy.setup` calls :func:`check_forward` once recordings are there
and nothing has been learned. Only policies with classes from outside bczoo are tried: one forward pass over a window
of zeros, in evaluation mode, which leaves weights and random numbers as they are.

Shape legend: B batch, T steps, N frames, I image tokens, L tokens of a window, D width, n tokens and V choices of a
group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bczoo.core.errors import UserError
from bczoo.core.parts import Configured
from bczoo.core.spec import Batch, window_batch
from bczoo.models.bc.decoder import Decoder
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.nn.encoders import Encoder

if TYPE_CHECKING:
    from bczoo.core.actions import ActionSpace
    from bczoo.models.policy import Policy

STEPS = 2  # of the window, where the family is one of bczoo's


def check_forward(policy: Policy) -> None:
    """Raise if a part of a policy, or its family, fails or returns something else than it has to.

    Raises:
        UserError: names the class, what it has to return and what it returned.
    """
    own_parts = [m for m in policy.modules() if isinstance(m, Configured) and _is_foreign(m)]
    if not own_parts or any(p.is_meta for p in policy.parameters()):
        return
    modes = {module: module.training for module in policy.modules()}
    hooks = [m.register_forward_hook(_checking(contract)) for m in modes if (contract := _contract(m))]
    try:
        policy.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            batch = _zeros(policy, policy.input_spec.window if _is_foreign(policy) else STEPS)
            logits = policy.logits(batch)
        _check_logits(policy, logits, policy.action_space, tuple(batch["valid"].shape))
    except UserError:
        raise
    except Exception as error:
        owner = _owner(error, own_parts)
        raise UserError(
            f"{_name(owner)} failed on a window of zeros, before training: {type(error).__name__}: "
            f"{' '.join(str(error).split())} (BCZOO_TRACEBACK=1 shows where)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def _zeros(policy: Policy, steps: int) -> Batch:
    spec, device = policy.input_spec, next(policy.parameters()).device
    frames = torch.zeros(1, steps, 3, *spec.shape, dtype=torch.uint8, device=device)
    actions = {
        g.name: torch.zeros(1, steps, g.tokens, dtype=torch.long, device=device) for g in policy.action_space.groups
    }
    text = None if spec.text_dim is None else torch.zeros(1, steps, spec.text_dim, device=device)
    return window_batch(frames, actions, text)


def _is_foreign(module: nn.Module) -> bool:
    """Whether a class from outside bczoo takes part in what a module is."""
    return any(issubclass(c, nn.Module) and c.__module__.split(".")[0] not in OURS for c in type(module).__mro__)


OURS = {"bczoo", "torch", "lightning", "pytorch_lightning", "lightning_fabric"}

Contract = Callable[[nn.Module, tuple[Any, ...], Any], None]


def _contract(module: nn.Module) -> Contract | None:
    contracts = {Encoder: _check_encoder, PolicyTransformer: _check_transformer, Decoder: _check_decoder}
    return next((check for base, check in contracts.items() if isinstance(module, base)), None)


def _checking(contract: Contract) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        contract(module, given, returned)

    return hook


def _check_encoder(encoder: Any, given: tuple[Any, ...], returned: Any) -> None:
    frames, tokens = len(given[0]), encoder.tokens
    if not isinstance(returned, Tensor) or returned.ndim != 3 or tuple(returned.shape[:2]) != (frames, tokens):
        wanted = f"an encoder has to return a tensor (N, I, D) of image tokens, here ({frames}, {tokens}, D)"
        _refuse(encoder, wanted, returned)


def _check_transformer(transformer: Any, given: tuple[Any, ...], returned: Any) -> None:
    shape = tuple(given[0].shape)
    if not isinstance(returned, Tensor) or tuple(returned.shape) != shape:
        _refuse(transformer, f"a transformer has to return a tensor (B, L, D) like its input, here {shape}", returned)


def _check_decoder(decoder: Any, given: tuple[Any, ...], returned: Any) -> None:
    _check_logits(decoder, returned, decoder.space, tuple(given[0].shape[:2]))


def _check_logits(owner: Any, logits: Any, space: ActionSpace, lead: tuple[int, ...]) -> None:
    wanted = {g.name: (*lead, g.tokens, g.choices) for g in space.groups}
    found = logits if isinstance(logits, Mapping) else {}
    right = found.keys() == wanted.keys() and all(
        isinstance(v, Tensor) and tuple(v.shape) == wanted[k] for k, v in found.items()
    )
    if not right:
        what = "a decoder" if isinstance(owner, Decoder) else "a policy"
        shapes = ", ".join(f"{name}: {shape}" for name, shape in wanted.items())
        _refuse(owner, f"{what} has to return a dict of logits (B, T, n, V) by action group, here {{{shapes}}}", logits)


def _refuse(owner: Any, wanted: str, returned: Any) -> None:
    raise UserError(f"{_name(owner)}: {wanted}; it returned {_described(returned)}")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_described(v)}" for k, v in value.items()) + "}"
    return f"a {type(value).__name__}"


def _name(owner: Any) -> str:
    return f"{type(owner).__module__}.{type(owner).__name__}"


def _owner(error: Exception, parts: Sequence[Configured]) -> Any:
    """The innermost of some parts in whose code an error was raised; the first if it was in none."""
    owner, trace = parts[0], error.__traceback__
    while trace is not None:
        inside = trace.tb_frame.f_locals.get("self")
        owner = next((part for part in parts if part is inside), owner)
        trace = trace.tb_next
    return owner
