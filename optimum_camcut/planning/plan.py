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
"""`PruningPlan`: what to keep. Made from scores by `allocation.make_plan`, or by hand."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.entry import SUBLAYERS
from ..architectures.groups import WEIGHTS, find_groups, inner_model
from ..architectures.modeling_camcut import RECORD
from ..architectures.structure import blocks_of, config_fields, kept_heads, label_of, list_blocks, sublayer_of
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from ..utils.fields import check_fields
from ..utils.files import read_json, shown, write_json
from ..utils.sharding import check_whole
from .units import IndexSet, mask_of


PLAN_NAME = "pruning_plan.json"
PLANS_NAME = "pruning_plans.json"  # of the parts of a composite model: path -> plan


@dataclass(frozen=True)
class PruningPlan:
    """Which units of each group are kept, by their index in the uncut model.

    Groups that are not named stay whole. A plan made by hand needs only `keep`:
    `PruningPlan(keep={"layer.0.heads": [0, 3, 5]})`.

    Of single weights, a group is a parameter and its units are the elements in row-major order; `make_plan` keeps
    them as an `IndexSet`, a sequence like any other that takes one byte a weight.

    Args:
        keep (`Mapping[str, Sequence[int]]`): group name -> kept indices; stored sorted.
        sizes (`Mapping[str, int]`): group name -> number of units in the uncut model, if known.
        model_type (`str`, *optional*): the architecture the plan was made for.
        config (`PruningConfig`, *optional*): how the plan was made.
        num_layers (`int`, *optional*): blocks of the model that the plan was made for.
        cut_before (`bool`): of a model's plan, whether earlier cuts than those of `config` are in it.

    Raises:
        `ValueError`: an index that is negative, repeated, no integer, or not below the group's size.
    """

    keep: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    model_type: str | None = None
    config: PruningConfig | None = None
    num_layers: int | None = None
    cut_before: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for part, values in (("keep", "lists of indices"), ("sizes", "numbers of units")):
            given = getattr(self, part)
            if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
                raise ValueError(f"a plan should hold {part!r}, group names -> {values}; got {shown(given)}")
        keep, sizes = dict(self.keep), dict(self.sizes)
        for name, size in sizes.items():
            if type(size) is not int or not 0 <= size < 2**63:
                raise ValueError(f"a plan's size of {name!r} should be an integer of at least 0; got {shown(size)}")
        for name, units in keep.items():
            if isinstance(units, IndexSet):
                if sizes.setdefault(name, units.size) != units.size:
                    raise ValueError(f"the plan keeps {units!r} of {name!r}, which has size {sizes[name]}")
                continue
            keep[name] = units = _indices(name, units)
            if units and units[-1] >= sizes.get(name, math.inf):
                raise ValueError(f"the plan keeps unit {shown(units[-1])} of {name!r}, which has size {sizes[name]}")
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "sizes", sizes)
        for name, kind in (("model_type", str), ("config", PruningConfig)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"a plan's {name} should be a {kind.__name__} or None; got {shown(value)}")
        layers = self.num_layers
        if layers is not None and (type(layers) is not int or not 0 <= layers < 2**63):
            raise ValueError(f"a plan's num_layers should be an integer of at least 0 or None; got {shown(layers)}")
        if not isinstance(self.cut_before, bool):
            raise ValueError(f"a plan's cut_before should be True or False; got {shown(self.cut_before)}")

    def mask(self, name: str) -> np.ndarray:
        """Bool of shape `(sizes[name],)`: True at the units of a group that are kept.

        Raises:
            `KeyError`: the plan does not know the group, or its size.
        """
        return mask_of(self.keep[name], self.sizes[name])

    def removed(self, name: str) -> Sequence[int]:
        """Original indices of the units of a group that are gone.

        Raises:
            `KeyError`: the plan does not know the group, or its size.
        """
        removed = IndexSet(~self.mask(name))
        return removed if isinstance(self.keep[name], IndexSet) else tuple(removed)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "model_type": self.model_type,
            "num_layers": self.num_layers,
            "cut_before": self.cut_before,
            "sizes": dict(self.sizes),
            "keep": {n: u.to_dict() if isinstance(u, IndexSet) else list(u) for n, u in self.keep.items()},
            "config": self.config.to_dict() if self.config else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningPlan:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: an unknown key, or a value of the wrong form.
        """
        check_fields(cls, values)
        keep, config = values.get("keep"), values.get("config")
        if isinstance(keep, Mapping):
            keep = {n: IndexSet.from_dict(u) if isinstance(u, Mapping) else u for n, u in keep.items()}
        config = None if config is None else PruningConfig.from_dict(config)
        return cls(**{**values, "keep": keep, "config": config})

    def save(self, path: str | Path) -> None:
        """Writes the plan to a JSON file, or to `pruning_plan.json` in a folder."""
        path = Path(path)
        write_json(path / PLAN_NAME if path.is_dir() else path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Reads a JSON file, or `pruning_plan.json` in a folder.

        Raises:
            `ValueError`: the file holds no plan.
        """
        path = Path(path)
        path = path / PLAN_NAME if path.is_dir() else path
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(error if str(path) in str(error) else f"{path} holds no plan: {error}") from error

    @classmethod
    def from_zeros(cls, model: nn.Module) -> PruningPlan:
        """A plan that removes the single weights that are zero already: `apply_plan(model, plan)` then makes masks of
        them, which `CamCutTrainer` and `hold_masks` hold at zero, whoever pruned the model.

        It looks at the weight matrices of the linear layers below the task head, of any architecture, and takes those
        that are zero in part. Biases are left out, which start at zero and are to be trained, and so are matrices
        that are zero throughout, which were initialized so; embeddings too, for their padding.

        Args:
            model (`PreTrainedModel` or `nn.Module`): see `find_groups`.

        Returns:
            `PruningPlan`: parameter name -> the elements that are not zero.

        Raises:
            `TypeError`: see `find_groups`.
            `ValueError`: no matrix is zero in part, or the model is offloaded or sharded.
        """
        check_whole(model, "PruningPlan.from_zeros")
        groups, model = find_groups(model, (WEIGHTS,)), inner_model(model)
        keep = {}
        for group in groups:
            parameter = model.get_parameter(group.name)
            if parameter.is_meta:
                raise ValueError(
                    f"the values of {group.name!r} are not in memory; load the model whole (on the CPU, say) and make "
                    "the plan of that"
                )
            if parameter.dim() > 1:
                kept = IndexSet((parameter.detach() != 0).cpu().numpy())
                if 0 < len(kept) < kept.size:
                    keep[group.name] = kept
        if not keep:
            raise ValueError(
                f"no linear layer of this {type(model).__name__} is zero in part: there are no zeros to hold"
            )
        return cls(keep, model_type=groups[0].model_type, num_layers=groups[0].num_layers)

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of layer, kind and what is kept: `("3", "heads", "7 / 12")`. The weights of a layer are counted
        together."""
        return [(*cell, self._count(names)) for cell, names in self._cells().items()]

    def counts(self) -> dict[str, int]:
        """Units that are kept, by kind and layer, and of the kind in all: `{"heads/3": 7, ..., "heads/all": 68}`."""
        cells = {cell: sum(len(self.keep[name]) for name in names) for cell, names in self._cells().items()}
        kinds = dict.fromkeys(kind for _, kind in cells)
        return {
            **{f"{kind}/{layer}": kept for (layer, kind), kept in cells.items()},
            **{f"{kind}/all": sum(kept for (_, k), kept in cells.items() if k == kind) for kind in kinds},
        }

    def __str__(self) -> str:
        cells = self._cells()
        kinds = list(dict.fromkeys(kind for _, kind in cells))

        def cell(layer: str, kind: str) -> str:
            if (layer, kind) in cells:
                return self._count(cells[layer, kind])
            gone = [len(self.keep[name]) == 0 for name in cells.get((layer, SUBLAYERS.get(kind, kind)), ())]
            stack = layer.rpartition(".")[0]
            known = any(k in (kind, SUBLAYERS.get(kind)) for other, k in cells if other.rpartition(".")[0] == stack)
            tokens = kind == VOCABULARY or (layer, VOCABULARY) in cells  # in no layer
            return "-" if any(gone) or not known or tokens else "all"

        lines = [["layer", *kinds]]
        lines += [
            [layer, *(cell(layer, kind) for kind in kinds)] for layer in dict.fromkeys(layer for layer, _ in cells)
        ]
        total = {kind: [n for (_, k), names in cells.items() if k == kind for n in names] for kind in kinds}
        lines.append(["total", *(self._count(total[kind]) for kind in kinds)])
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)

    def _cells(self) -> dict[tuple[str, str], list[str]]:
        """Layer and kind -> names of the groups."""
        cells: dict[tuple[str, str], list[str]] = {}
        for name in self.keep:
            cells.setdefault((layer_of(name), _label(name)), []).append(name)
        return cells

    def _count(self, names: Sequence[str]) -> str:
        known = all(name in self.sizes for name in names)
        size = sum(self.sizes[name] for name in names) if known else "?"
        return f"{sum(len(self.keep[name]) for name in names)} / {size}"


def _indices(name: str, units: Any) -> tuple[int, ...]:
    """The kept units of a group as a plan stores them: plain integers, ascending.

    Raises:
        `ValueError`: an index that is negative, repeated or no integer, or no list at all.
    """
    try:
        listed = units.tolist() if isinstance(units, Tensor) else list(units)
        if not set(map(type, listed)) <= {int}:
            listed = [None if isinstance(unit, bool) else operator.index(unit) for unit in listed]
        indices = sorted(set(listed))
        valid = len(indices) == len(listed) and (not indices or (indices[0] >= 0 and indices[-1] < 2**63))
    except TypeError:
        valid = False
    if not valid or isinstance(units, str | bytes):
        raise ValueError(
            f"the plan should keep distinct indices of at least 0 and below 2**63 of {name!r}; got {shown(units)}"
        )
    return tuple(indices)


def without_removed(keep: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """What a plan keeps, less the heads and neurons of sub-layers that it removes: nothing is left of them."""
    return {n: units for n, units in keep.items() if sublayer_of(n) == n or keep.get(sublayer_of(n)) != ()}


def layer_of(name: str) -> str:
    """The layer index in a group's name, its first number, with the name of the stack of blocks before it if there are
    several (`"decoder.3"`, but the encoder's are plain numbers); of a parameter outside of the layers, its module; of
    the vocabulary, `"embeddings"`."""
    number = re.search(r"(?<![^.])\d+(?![^.])", name)
    if number is None:
        return name.rpartition(".")[0] or "embeddings"
    before = name[: number.start()].split(".")
    stack = "decoder" if "decoder" in before else before[0] if before[1:] == ["layer", ""] else "encoder"
    return ("" if stack == "encoder" else f"{stack}.") + number[0]


def is_weight(name: str) -> bool:
    """Whether a group of this name is a parameter, whose units are single weights."""
    return name.endswith((".weight", ".bias"))


def is_unit(name: str) -> bool:
    """Whether the units of a group of this name are parts of the blocks, or whole sub-layers."""
    return name != VOCABULARY and not is_weight(name)


def _label(name: str) -> str:
    return WEIGHTS if is_weight(name) else name.rpartition(".")[2]


def plain_shape(model: PreTrainedModel, plan: PruningPlan) -> dict[str, int] | None:
    """Units of each label (`"neurons"`, `"decoder.cross_heads"`) that all layers have after a cut, if fields of the
    config can say so: else None.

    Args:
        model: the fields of its config may be those of before or of after the cut.
        plan: with sizes.
    """
    config, shape = model.config, dict[str, int]()
    fields, blocks = config_fields(config), blocks_of(model)
    cut = {n: len(units) for n, units in plan.keep.items() if is_unit(n) and len(units) < plan.sizes[n]}
    for label in {label_of(name) for name in cut}:
        start, _, kind = label.rpartition(".")
        stack = [block for block in blocks if block.name.startswith(f"{start}.layer.".lstrip("."))]
        having = [block.name for block in stack if any(part.kind == kind for part in block.sublayers(model))]
        sizes = {cut.get(f"{name}.{kind}") for name in having}
        size = sizes.pop() if len(sizes) == 1 and label in fields else None
        if not size:
            return None
        shape[label] = size
    if "heads" in shape:  # the head size has a field of its own, and transformers 5 wants whole fractions all the same
        heads = shape["heads"] * config.num_attention_heads // getattr(config, fields["heads"][0])
        if not getattr(config, "head_dim", None) or config.hidden_size % heads:
            return None
    return shape


def as_in_config(config: PretrainedConfig, label: str, units: int) -> int:
    """Units of a group as the field of the config counts them: of neurons inside of experts, those of one expert. A
    layer that has lost some of these has all of its experts."""
    before, found, after = label.partition("expert_neurons")
    return units // getattr(config, config_fields(config)[f"{before}experts{after}"][0]) if found else units


def plan_of(model: PreTrainedModel) -> PruningPlan | None:
    """What was cut or masked in a model: its plan, or what transformers 4 itself has cut. None if that is nothing, or
    if the plan was lost."""
    plan, config = getattr(model, "pruning_plan", None), model.config
    if plan is not None or getattr(config, RECORD, None) is not None or not getattr(config, "pruned_heads", None):
        return plan
    keep = kept_heads(config, len(list_blocks(model)))
    return PruningPlan(keep, dict.fromkeys(keep, config.num_attention_heads), config.model_type)
