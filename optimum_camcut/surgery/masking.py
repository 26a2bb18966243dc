# Copyright 2026 The optimum-camcut authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Single weights: set to zero by `apply_plan`, and held there while the model trains."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ..architectures.groups import linear_parameters, transformers_models
from ..planning.plan import PruningPlan, is_weight, layer_of
from ..planning.units import IndexSet, mask_of
from ..utils.sharding import check_whole, is_sharded


logger = logging.getLogger(__name__)

# What PEFT and others put into the names of parameters that they wrap.
WRAPPED = re.compile(r"(?<![^.])(base_layer|original_module|modules_to_save\.[^.]+|_orig_mod)\.")
MANY_ZEROS = 0.05  # of the weights: more than any training ends with by chance, and than 8-bit weights have


@dataclasses.dataclass(frozen=True)
class Mask:
    """A parameter that a plan masks.

    Args:
        name (`str`): in the plan.
        kept (`Sequence[int]`): elements that are not masked, in row-major order.
        parameters (`Mapping[str, nn.Parameter]`): by its path. More than one where an adapter has a trained copy of a
            layer beside the original.
    """

    name: str
    kept: Sequence[int]
    parameters: Mapping[str, nn.Parameter]

    def removed(self, values: Tensor) -> Tensor:
        """Bool in the shape and on the device of the parameter: True at the elements that are not kept."""
        return ~torch.from_numpy(mask_of(self.kept, values.numel())).view(values.shape).to(values.device)


def list_masks(module: nn.Module) -> list[Mask]:
    """What plans mask in a model, or in models inside of others: found through DDP, `torch.compile`, the layers of
    adapters and modules of one's own."""
    masks = []
    for root, model in module.named_modules():
        plan = vars(model).get("pruning_plan")  # its own: wrappers hand on that of the model inside
        names = [name for name in plan.keep if is_weight(name)] if isinstance(plan, PruningPlan) else []
        if not names:
            continue
        found: dict[str, dict[str, nn.Parameter]] = {}
        for path, parameter in model.named_parameters(remove_duplicate=False):
            for name in {path, WRAPPED.sub("", path)}:
                found.setdefault(name, {})[f"{root}.{path}" if root else path] = parameter
        masks += [Mask(name, plan.keep[name], found.get(name, {})) for name in names]
    return masks


def _is_plain(values: Tensor) -> bool:
    """Whether values can be read and set one by one: neither packed by a quantizer nor offloaded nor sharded."""
    return type(values) in (Tensor, nn.Parameter) and values.is_floating_point() and not values.is_meta


@torch.no_grad()
def zero_weights(masks: Iterable[Mask]) -> int:
    """Sets to zero, in place, every element that is masked, and returns how many were not."""
    changed = 0
    for mask in masks:
        for parameter in mask.parameters.values():
            if _is_plain(parameter):
                removed = mask.removed(parameter)
                changed += int(torch.count_nonzero(parameter[removed]))
                parameter.masked_fill_(removed, 0)
    return changed


@contextmanager
def hold_masks(model: nn.Module) -> Iterator[None]:
    """Keeps the single weights that a plan removed at exactly zero while the context lasts, whatever trains them.

    They are set to zero at the start. Their gradients are zero, so that they count in no norm and no moment, and after
    every step of any `torch.optim.Optimizer` that holds them they are set to zero again. `CamCutTrainer.train` does
    this by itself. Parameters keep their names, and checkpoints are plain ones.

    Args:
        model (`PreTrainedModel` or `nn.Module`): after `apply_plan(model, plan)` or from `load_pruned`; or what is
            wrapped around it: an adapter of PEFT, DDP, `torch.compile`, a module of your own. May also be wrapped
            inside the context. What an adapter adds to a layer is not sparse: as long as it is not merged the layer's
            own weights are, and a warning tells of those that will not stay so.

    Raises:
        `ValueError`: the model has no masks, is sharded, or trains masked weights that are out of reach.
    """
    check_whole(model, "hold_masks")
    found = list_masks(model)
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no masks to hold; mask it with apply_plan, or load a masked checkpoint "
            "with load_pruned, since from_pretrained does not read its masks"
        )
    for mask in found:
        if not mask.parameters or any(p.requires_grad and not _is_plain(p) for p in mask.parameters.values()):
            raise ValueError(
                f"the masks of {mask.name!r} cannot be held in this {type(model).__name__}: "
                + ("its values are packed or not in memory" if mask.parameters else "it has no such parameter")
            )
    changed = zero_weights(found)
    if changed:
        logger.warning(
            "%d masked weights were not zero and are now: an adapter was merged, or the model was trained without its "
            "masks, and what it computes changes. To keep them as they are, save the model and load it again, which "
            "takes them out of its plan",
            changed,
        )
    adapted = [m for m in found if m.name.endswith(".weight") and any("base_layer." in p for p in m.parameters)]
    if adapted:
        logger.warning(
            "%d of the %d parameters with masked weights carry an adapter. They stay sparse beside it; to merge it "
            "(merge_and_unload) may fill their zeros, and the merged model is then saved with the weights that it has "
            "and a plan that no longer masks those",
            len(adapted),
            len(found),
        )
    masks = {}  # ones and zeros in the parameter's type: multiplying is several times faster than filling
    with ExitStack() as stack:
        for mask in found:
            for parameter in mask.parameters.values():
                if not _is_plain(parameter):  # it does not train
                    continue
                kept = masks[id(parameter)] = (~mask.removed(parameter)).to(parameter.dtype)
                if parameter.requires_grad:
                    stack.callback(parameter.register_hook(lambda grad, kept=kept: grad * kept.to(grad)).remove)

        @torch.no_grad()
        def zero(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in masks:
                        parameter.mul_(masks[id(parameter)].to(parameter))

        stack.callback(register_optimizer_step_post_hook(zero).remove)
        yield


def make_plans_true(module: nn.Module, weights: Mapping[str, Tensor] | None = None) -> int:
    """Takes weights that are no longer zero out of the masks of a model and of its parts.

    Args:
        weights (*optional*): name -> value, of those parameters that are not the model's own.

    Returns:
        How many weights that is.
    """
    changed: dict[str, int] = {}
    for path, model in module.named_modules():
        plan = vars(model).get("pruning_plan")
        if isinstance(plan, PruningPlan):
            start = f"{path}." if path else ""
            own = {name.removeprefix(start): value for name, value in (weights or {}).items()}
            model.pruning_plan, counts = _true_plan(model, plan, own)
            # The plan of a part may be in that of the whole, too.
            changed |= {start + name: count for name, count in counts.items()}
    return sum(changed.values())


def _true_plan(
    model: nn.Module, plan: PruningPlan, weights: Mapping[str, Tensor]
) -> tuple[PruningPlan, dict[str, int]]:
    """The plan of a model without what is not true of it, and how many weights that is, by parameter."""
    keep = dict(plan.keep)
    changed: dict[str, int] = {}
    own = [mask for mask in list_masks(model) if keep.get(mask.name) is mask.kept]
    for mask in own:
        kept = mask_of(mask.kept, plan.sizes[mask.name])
        nonzero = np.zeros_like(kept)
        for path, parameter in mask.parameters.items():
            values = weights.get(path, parameter).detach()
            if _is_plain(values):
                nonzero |= (values != 0).flatten().cpu().numpy()
        count = int(np.count_nonzero(nonzero & ~kept))
        if count:
            changed[mask.name] = count
            left = IndexSet(kept | nonzero)
            if len(left) < left.size:
                keep[mask.name] = left
            else:
                del keep[mask.name]
    if not changed:
        return plan, {}
    sizes = {name: size for name, size in plan.sizes.items() if name in keep}
    return dataclasses.replace(plan, keep=keep, sizes=sizes, config=None), changed


def count_zeros(model: nn.Module) -> dict[str, int]:
    """Weights that are exactly zero, of those that a plan masks some of: layer -> number. Of a model with a plan, by
    its own: a part of it may have the same masks under other names."""
    counts: dict[str, int] = {}
    plan = getattr(model, "pruning_plan", None)
    for mask in list_masks(model):
        if plan is not None and plan.keep.get(mask.name) is not mask.kept:
            continue
        values = [parameter for parameter in mask.parameters.values() if _is_plain(parameter)][:1]
        zeros = sum(int((parameter == 0).sum()) for parameter in values)
        counts[layer_of(mask.name)] = counts.get(layer_of(mask.name), 0) + zeros
    return counts


@torch.no_grad()
def warn_of_zeros(module: nn.Module) -> None:
    """Warns of weights that are zero, that no plan masks and that will be trained: what something else has pruned.
    Counts as `PruningPlan.from_zeros` does."""
    if is_sharded(module):
        return
    held = {id(p): p.numel() - len(mask.kept) for mask in list_masks(module) for p in mask.parameters.values()}
    zeros = total = 0
    for model in transformers_models(module).values():
        for parameter in linear_parameters(model).values():
            if parameter.requires_grad and parameter.dim() > 1 and not parameter.is_meta:
                count = parameter.numel() - int(torch.count_nonzero(parameter))
                total += parameter.numel()
                zeros += max(count - held.get(id(parameter), 0), 0) if count < parameter.numel() else 0
    if zeros and zeros >= MANY_ZEROS * total:
        logger.warning(
            "%d of the %d weights of linear layers that will be trained (%.1f %%) are zero, and no plan holds them "
            "there: after the first step hardly one will be. If they were pruned, hold them: `apply_plan(model, "
            "PruningPlan.from_zeros(model))` before training",
            zeros,
            total,
            100 * zeros / total,
        )
