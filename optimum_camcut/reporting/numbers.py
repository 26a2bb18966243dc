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
"""Dense against pruned in numbers: what a model costs, and how good it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..architectures.groups import find_groups, possible_kinds
from ..architectures.modeling_camcut import RECORD
from ..architectures.vocabulary import VOCABULARY
from ..planning.measure import longest_input
from ..planning.plan import is_weight, layer_of
from ..planning.twin import dense_shapes


logger = logging.getLogger(__name__)

SIZE = "size of the weights (MB)"
TOKENS = 128  # of the sequence that FLOPs are counted for, where no config says how many
SPEED = ("_runtime", "_per_second", "_time", "epoch")  # what a trainer gives beside the metrics

Metrics = Mapping[str, Mapping[str, float]]


class Row(NamedTuple):
    """A line of the table of dense against pruned; what was not measured is None."""

    name: str
    dense: float | None
    pruned: float | None
    style: str  # of the format that shows either

    def cells(self) -> list[str]:
        """Dense, pruned, and pruned / dense, as they are shown."""
        shown = ["" if value is None else self.style.format(value) for value in (self.dense, self.pruned)]
        return [*shown, f"{self.pruned / self.dense:.2f}" if self.dense and self.pruned is not None else ""]


def compare_metrics(metrics: Metrics) -> list[Row]:
    """Dense against pruned: what evaluation gave."""
    before, after = (results_of(metrics.get(which) or {}) for which in ("dense", "pruned"))
    names = {**before, **after}
    return [Row(name.removeprefix("eval_"), before.get(name), after.get(name), "{:.4g}") for name in names]


def compare_costs(model: PreTrainedModel, dense: PreTrainedModel | None = None) -> list[Row]:
    """Dense against pruned: what the models cost; nothing of a model that was not cut.

    Args:
        dense: before the cut. Default: one that is built from the config, without storage.
    """
    if not was_cut(model) or is_deepspeed_zero3_enabled():  # there, the parameters are elsewhere
        return []
    parameters = sum(parameter.numel() for parameter in model.parameters())
    megabytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
    try:
        if dense is None:
            dense = dense_shapes(model)
    except (NotImplementedError, TypeError) as error:  # takes more than a config, or computes as it is built
        logger.info("what the dense model costs is left blank: none can be built from the config (%s)", error)
        return [Row("parameters", None, parameters, "{:,}"), Row(SIZE, None, megabytes, "{:,.1f}")]
    before = sum(parameter.numel() for parameter in dense.parameters())
    rows = [Row("parameters", before, parameters, "{:,}"), *_vocabulary(model)]
    if getattr(model, "hf_quantizer", None) is not None:  # its tensors do not say what they take
        return rows
    layers = {layer_of(group.name) for group in find_groups(dense)}
    words = getattr(dense, "main_input_name", "input_ids") == "input_ids"  # so many tokens as one likes
    if words and len(layers) == getattr(dense.config, "num_hidden_layers", None):  # none runs repeatedly
        config = model.pruning_plan.config if model.pruning_plan is not None else None
        tokens = longest_input(model, config.sequence_length if config is not None else TOKENS)
        flops = [_flops(each, tokens) / 1e9 for each in (dense, model)]
        rows.append(Row(f"FLOPs of the layers, 1 x {tokens} tokens (G)", flops[0], flops[1], "{:.3g}"))
    return [*rows, Row(SIZE, megabytes * before / parameters, megabytes, "{:,.1f}")]


def _vocabulary(model: PreTrainedModel) -> list[Row]:
    """How many tokens there are, if some are gone."""
    plan = model.pruning_plan
    if plan is None or VOCABULARY not in plan.keep:
        return []
    return [Row("tokens of the vocabulary", plan.sizes[VOCABULARY], len(plan.keep[VOCABULARY]), "{:,}")]


def _flops(model: PreTrainedModel, tokens: int) -> int:
    """Of the matrix products in attention and feed-forward layers, for one sequence; a multiplication and an addition
    are two."""
    kinds = possible_kinds(model)  # whole sub-layers hold all that units inside of them do
    groups = find_groups(model, ("layers",) if "layers" in kinds else kinds)
    return sum(g.size * (g.unit_flops + g.unit_flops_per_position * tokens) for g in groups) * tokens


def results_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a trainer's evaluation says of quality."""
    return {
        name: value for name, value in metrics.items() if isinstance(value, int | float) and not name.endswith(SPEED)
    }


def was_cut(model: PreTrainedModel) -> bool:
    """Whether units of a model are gone, of all that its plan or its config tell."""
    plan = model.pruning_plan
    named = [name for name in plan.keep if not is_weight(name)] if plan is not None else []
    sized = any(len(plan.keep[name]) < plan.sizes.get(name, 0) for name in named)
    return getattr(model.config, RECORD, None) is not None or sized
