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
"""`Architecture`: what can be cut in the models of one `model_type`, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field


UNIT, HEAD, QUERIES = "unit", "head", "queries"  # widths of a unit in features, see `Cut`


@dataclass(frozen=True)
class Cut:
    """One linear map of a block that loses rows or columns when a unit goes.

    Args:
        module (`str`): path of the map inside the block.
        axis (`str`): `"out"` if a unit owns output features, `"in"` if it owns input features.
        width (`str`): features per unit: `"unit"` (one), `"head"` (the head size), or `"queries"` (the head size times
            the number of query heads that share one key-value head).
        blocks (`int`): how many such maps are fused side by side (3 for a fused query-key-value).
    """

    module: str
    axis: str
    width: str = UNIT
    blocks: int = 1


@dataclass(frozen=True)
class Architecture:
    """What may be cut in one `model_type`. All paths but `layers` are relative to a block.

    Args:
        layers (`str`): path of the blocks inside the base model, `{}` standing for each index.
        heads, neurons (`tuple[Cut, ...]`): the maps of one attention and one feed-forward layer. The last is the
            output projection, where the activations of the units are observed.
        residual (`tuple[str, str]`): for the attention and for the feed-forward layer, a module whose input is the
            residual stream that the layer's output is added to (in pre-norm blocks, the norm before the layer; in
            post-norm blocks, the first linear map of the layer).
        attributes (`Mapping[str, str]`): module attributes that count heads, with the amount per head as a symbolic
            width; they are kept true after a cut.
        neuron_attributes (`Mapping[str, str]`): the same for neurons.
        bypass (`tuple[Mapping[str, str], Mapping[str, str]]`, *optional*): for the attention and for the feed-forward
            layer, the modules that go when the whole sub-layer goes, norms included, and what the stand-in for each
            must give so that the residual stream passes unchanged; see `Bypass`. Without it, sub-layers stay.
        position_bias (`str`, *optional*): path of the attention module whose forward takes a `position_bias` with one
            map per head of the uncut model, shared by all layers. It is cut on the way in.
        native_pruned_heads (`bool`): transformers 4 itself loads `config.pruned_heads` for this architecture.
        config_fields (`Mapping[str, tuple[str, ...]]`): kind of unit -> the fields of the config that say how many
            every layer has: the number itself, then others that grow with it. What they express needs no record.
    """

    layers: str
    heads: tuple[Cut, ...]
    neurons: tuple[Cut, ...]
    residual: tuple[str, str]
    attributes: Mapping[str, str] = field(default_factory=dict)
    neuron_attributes: Mapping[str, str] = field(default_factory=dict)
    bypass: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    position_bias: str | None = None
    native_pruned_heads: bool = False
    config_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
