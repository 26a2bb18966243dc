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
"""Quantizers and layers of any size: what a kind of numbers cannot hold stays as it is."""

from __future__ import annotations

import copy
import logging
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from .stored import skeleton


logger = logging.getLogger(__name__)


def leaving_out(model_class: type[PreTrainedModel], config: PretrainedConfig, quantizer: Any) -> Any:
    """A config of torchao's quantizer that leaves linear maps alone which it would fail on: those of layers that lost
    all units, and those whose inputs do not fill whole groups. Other quantizers are given back as they are."""
    if not hasattr(quantizer, "quant_type") or not hasattr(quantizer, "modules_to_not_convert"):
        return quantizer
    group = getattr(quantizer.quant_type, "group_size", None)
    group = group or getattr(getattr(quantizer.quant_type, "granularity", None), "group_size", None)
    model = skeleton(model_class, config)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    empty = [name for name, module in linear.items() if not module.weight.numel()]
    broken = [name for name, module in linear.items() if group and module.in_features % group and name not in empty]
    if not empty and not broken:
        return quantizer
    changed = copy.deepcopy(quantizer)
    others = HfQuantizer.get_modules_to_not_convert(model, quantizer.modules_to_not_convert)  # those left out anyway
    changed.modules_to_not_convert = [*others, *empty, *broken]
    if broken:
        logger.warning(
            "%d linear maps are not quantized, as their inputs are no multiple of %d: %s%s; cut with multiple_of=%d",
            *(len(broken), group, ", ".join(broken[:3]), ", ..." if len(broken) > 3 else "", group),
        )
    return changed
