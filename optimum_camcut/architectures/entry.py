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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import transformers


UNIT, HEAD, QUERIES, GROUP = "unit", "head", "queries", "group"  # widths of a unit in features, see `Cut`
MAJOR = transformers.__version__.partition(".")[0]
# Kind of unit -> the sub-layer it is part of, in the order in which the residual stream meets them.
SUBLAYERS = {
    "heads": "attention",
    "cross_heads": "cross_attention",
    "neurons": "feed_forward",
    "experts": "feed_forward",
    "expert_neurons": "feed_forward",
}
STACKED = 8  # neurons of an expert come in multiples: torch's grouped product takes rows of 16 bytes
DENSE = ("heads", "cross_heads", "neurons")  # whose output projection is a linear map


@dataclass(frozen=True)
class Cut:
    """One linear map of a block that loses rows or columns when a unit goes, or another parameter that has something
    for each unit.

    Args:
        module (`str`): path of the map inside the block; or of the parameter or buffer.
        axis (`str` or `int`): `"out"` if a unit owns output features, `"in"` if it owns input features; of a parameter
            or buffer, the dimension.
        width (`str`): features per unit: `"unit"` (one), `"head"` (the head size), or `"queries"` (the head size times
            the number of query heads that share one key-value head); of counts also `"group"` (that number). Sums and
            multiples stand for what lies side by side in one unit: `"3 * head"`, `"queries + 2 * head"`.
        blocks (`int`): how many such maps are fused side by side (3 for a fused query-key-value).
        fused (`tuple[str, ...]`): in place of `width` and `blocks`, the widths of maps of unlike width that are fused
            side by side.
        rest (`str`): width of what lies behind the units, and belongs to none of them.
        optional (`bool`): passed over in blocks that lack the module.
        stacked (`bool`): of a parameter whose first dimension is that of the experts, a unit is a feature of one
            expert.
    """

    module: str
    axis: str | int
    width: str = UNIT
    blocks: int = 1
    fused: tuple[str, ...] = ()
    rest: str = ""
    optional: bool = False
    stacked: bool = False


def kind_of(part: str) -> str:
    """The kind of a part's units: `"heads"` for `"cross_heads"`, `"neurons"` for `"expert_neurons"`."""
    return part.removeprefix("cross_").removeprefix("expert_")


def features(width: str, widths: Mapping[str, int]) -> int:
    """How many features a width stands for, in a block with these symbolic widths."""
    found = re.findall(r"(?:(\d+) \* )?(\w+)", width)
    return sum(int(factor or 1) * widths[name] for factor, name in found)


class Sublayer(NamedTuple):
    """One sub-layer of a block, by one kind of its units, as its entry describes it; see `Architecture`."""

    kind: str
    name: str
    cuts: tuple[Cut, ...]
    attributes: Mapping[str, str]
    residual: str | None
    factor: str | None
    bypass: Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """What may be cut in one `model_type`, or in one stack of blocks of it. All paths but `layers` are relative to a
    block.

    Args:
        layers (`str`): path of the blocks inside the base model, `{}` standing for each index, and `{stage}` for that
            of a stage, whose blocks are a stack of their own.
        heads, neurons (`tuple[Cut, ...]`): the maps of one attention and one feed-forward layer. The last is the
            output projection, where the activations of the units are observed. A block that lacks that has none of
            them.
        residual (`tuple[str | None, ...]`): for each sub-layer, a module whose input is the residual stream that the
            sub-layer's output is added to (in pre-norm blocks, the norm before the layer; in post-norm blocks, the
            first linear map of the layer). None where no module reads that stream, or where a norm or a factor stands
            between the output and the sum: then `reconstruct` restores what the sub-layer gives, not the stream.
        factors (`tuple[str | None, ...]`): for each sub-layer, path of the parameter or attribute that its output is
            multiplied by before it is added to the stream. Default: none is.
        attributes (`Mapping[str, str]`): module attributes that count heads, with the amount per head as a symbolic
            width; they are kept true after a cut. What begins with the path of a config, `"attention.config."`, is
            changed in the eyes of that module alone.
        neuron_attributes (`Mapping[str, str]`): the same for neurons.
        bypass (`tuple[Mapping[str, str], ...]`, *optional*): for each sub-layer, the modules that go when the whole
            sub-layer goes, norms included, and what the stand-in for each must give so that the residual stream passes
            unchanged; see `Bypass`. Without it, sub-layers stay, and so does one without modules.
        position_bias (`str`, *optional*): path of the attention module whose forward takes a `position_bias` with one
            map per head of the uncut model, shared by all layers. It is cut on the way in. The name of another
            argument follows behind a colon: `"self_attention:alibi"`, or of several.
        own_bias (`Mapping[str, str]`): path of each attention module that hands a `position_bias` on to the layers
            behind -> name of the embedding that the first block makes it of, or `""` if there is none. Once heads go,
            every layer makes its own.
        native_pruned_heads (`bool`): transformers 4 itself loads `config.pruned_heads` for this architecture.
        config_fields (`Mapping[str, tuple[str, ...]]`): kind of unit -> the fields of the config that say how many
            every layer has: the number itself, then others that grow with it. What they express needs no record.
        cross_heads (`tuple[Cut, ...]`): the maps of attention to another stack, a sub-layer between the two others.
        cross_attributes (`Mapping[str, str]`): as `attributes`, for `cross_heads`.
        experts (`tuple[Cut, ...]`): the parameters in which the first dimension is that of the experts; the last is
            the router, one output feature an expert. A block that lacks that has none of them.
        expert_neurons (`tuple[Cut, ...]`): those with the neurons inside of the experts, all `stacked`; the last is
            that of the output projections. Of all experts in a layer the same number stays.
        expert_attributes, expert_neuron_attributes (`Mapping[str, str]`): as `attributes`, for these.
        head_size (`str`): path of the module attribute that holds the head size. Default: the config's `head_dim`, or
            its `hidden_size` divided by its `num_attention_heads`.
        key_value_heads (`str`): without `head_size`, the config's field for the number of key-value heads; a config
            that lacks it has one for each query head.
        refused (`Mapping[str, str]`): kind of unit -> why the units of this kind cannot go one by one.
        variants (`Mapping[str, Mapping[str, Any]]`): a field of the config and its value, `"parallel_attn=True"` ->
            the fields of the entry that are different there. `"transformers=4"` stands for the major version, and
            `&` between several means all of them.
    """

    layers: str
    heads: tuple[Cut, ...] = ()
    neurons: tuple[Cut, ...] = ()
    residual: tuple[str | None, ...] = (None, None)
    factors: tuple[str | None, ...] = (None, None, None)
    attributes: Mapping[str, str] = field(default_factory=dict)
    neuron_attributes: Mapping[str, str] = field(default_factory=dict)
    bypass: tuple[Mapping[str, str], ...] | None = None
    position_bias: str | None = None
    own_bias: Mapping[str, str] = field(default_factory=dict)
    native_pruned_heads: bool = False
    config_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cross_heads: tuple[Cut, ...] = ()
    cross_attributes: Mapping[str, str] = field(default_factory=dict)
    experts: tuple[Cut, ...] = ()
    expert_attributes: Mapping[str, str] = field(default_factory=dict)
    expert_neurons: tuple[Cut, ...] = ()
    expert_neuron_attributes: Mapping[str, str] = field(default_factory=dict)
    head_size: str = ""
    key_value_heads: str = "num_key_value_heads"
    refused: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, config: Any, version: str = MAJOR) -> "Architecture":
        """The entry as it is for a config in a major version of transformers: later variants override those before."""
        changes: dict[str, Any] = {}
        for condition, fields in self.variants.items():
            wanted = dict(each.split("=") for each in condition.split("&"))
            found = {n: version if n == "transformers" else str(getattr(config, n, None)) for n in wanted}
            changes |= fields if found == wanted else {}
        return replace(self, **changes) if changes else self

    @property
    def sublayers(self) -> list[Sublayer]:
        """In the order in which the residual stream meets them. Of a feed-forward layer with experts there are
        several, one for each kind of unit in it."""
        found: list[Sublayer] = []
        places: dict[str, int] = {}
        counts = (self.attributes, self.cross_attributes, self.neuron_attributes)
        for kind, counted in zip(SUBLAYERS, (*counts, self.expert_attributes, self.expert_neuron_attributes)):
            cuts, name = getattr(self, kind), SUBLAYERS[kind]
            if cuts:
                place = places.setdefault(name, len(places))
                bypass = self.bypass[place] if self.bypass else {}
                stream = (self.residual[place], self.factors[place]) if kind in DENSE else (None, None)
                found.append(Sublayer(kind, name, cuts, counted, *stream, bypass))
        return found
