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
"""`ARCHITECTURES`: the entry of every architecture that can be cut, checked when it is added."""

import dataclasses
import difflib
import re
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .entry import GROUP, HEAD, QUERIES, SUBLAYERS, UNIT, Architecture, Cut
from .families import (
    albert,
    bart,
    bert,
    bloom,
    deberta,
    distilbert,
    gpt2,
    gpt_neox,
    llama,
    mixtral,
    mobilebert,
    modernbert,
    mpnet,
    opt,
    swin,
    t5,
    vit,
    wav2vec2,
)


# See `Bypass`.
STAND_INS = tuple(f"{what}{more}" for what in ("input", "residual", "zeros") for more in ("", " pair", " triple"))
KINDS = tuple(SUBLAYERS)
WIDTHS = (UNIT, HEAD, QUERIES, GROUP)
Entry = Architecture | Mapping[str, Architecture]


class Table(UserDict[str, Entry]):
    """`model_type` -> `Architecture`, or where there are several stacks of blocks, the name of each -> `Architecture`.
    Fields are checked when an entry is added. What they say of a model is checked by
    `optimum_camcut.check_architecture`."""

    def __init__(self) -> None:
        super().__init__()
        self.derived: dict[str, Any] = {}  # model_type -> what the entry was derived from

    def __delitem__(self, model_type: str) -> None:
        super().__delitem__(model_type)
        self.derived.pop(model_type, None)

    def __setitem__(self, model_type: str, entry: Entry) -> None:
        """Raises `ValueError`: names the entry and the field that cannot be right."""
        check = _Check(model_type)
        check.need(isinstance(model_type, str), "its key", "the model_type of a config, a string", model_type)
        stacks = {"": entry} if isinstance(entry, Architecture) else entry
        expected = "an Architecture, or a dict of the name of a stack of blocks -> Architecture"
        check.need(isinstance(stacks, Mapping) and bool(stacks), "the entry", expected, entry)
        for stack, each in stacks.items():
            check.need(isinstance(each, Architecture), "the entry", expected, entry)
            valid = isinstance(stack, str) and (stack.isidentifier() if stacks is entry else not stack)
            check.need(valid, "the name of a stack", "one word", stack)
            _check_entry(_Check(f"{model_type}:{stack}" if stack else model_type), each)
        self.derived.pop(model_type, None)
        super().__setitem__(model_type, entry if isinstance(entry, Architecture) else dict(entry))


@dataclass(frozen=True)
class _Check:
    """What is asked of the fields of one entry."""

    model_type: str

    def need(self, valid: bool, where: str, expected: str, got: Any, known: Sequence[str] = ()) -> None:
        if not valid:
            near = difflib.get_close_matches(str(got), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"the entry {self.model_type!r} of ARCHITECTURES: {where} should be {expected}; got {got!r:.200}{hint}"
            )

    def choice(self, value: Any, where: str, known: Sequence[str]) -> None:
        expected = "one of " + ", ".join(map(repr, known))
        self.need(isinstance(value, str) and value in known, where, expected, value, known)

    def width(self, value: Any, where: str) -> None:
        """Of a unit: one of the widths, or a sum of multiples of them."""
        parts = value.split(" + ") if isinstance(value, str) else [value]
        names = [re.sub(r"^\d+ \* ", "", part) if isinstance(part, str) else part for part in parts]
        expected = (
            f"one of {', '.join(map(repr, WIDTHS))}, or a sum of multiples, such as '3 * head' or 'queries + 2 * head'"
        )
        for name in names:
            self.need(isinstance(name, str) and name in WIDTHS, where, expected, value, WIDTHS)

    def path(self, value: Any, where: str) -> None:
        valid = isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*", value) is not None
        self.need(valid, where, "a path of names with dots between them", value)


def _check_entry(check: _Check, entry: Architecture) -> None:
    valid = isinstance(entry.layers, str) and re.fullmatch(r"\w+(\.(\w+|\{(stage)?\}))*", entry.layers) is not None
    valid = valid and ".{}" in entry.layers
    expected = "a path with {} in the place of each index, such as 'encoder.layer.{}'"
    check.need(valid, "layers", expected, entry.layers)
    _check_cuts(check, entry)
    _check_paths(check, entry)
    if entry.bypass is not None:
        _check_bypass(check, entry, entry.bypass)
    if entry.position_bias is not None:
        valid = isinstance(entry.position_bias, str)
        valid = valid and re.fullmatch(r"\w+(\.\w+)*(:\w+(,\w+)*)?", entry.position_bias) is not None
        expected = "a path of names with dots between them, or with the name of an argument behind a colon"
        check.need(valid, "position_bias", expected, entry.position_bias)
    valid = type(entry.native_pruned_heads) is bool
    check.need(valid, "native_pruned_heads", "True or False", entry.native_pruned_heads)
    _check_config_fields(check, entry.config_fields)
    _check_refused(check, entry)
    check.need(isinstance(entry.variants, Mapping), "variants", "a dict of condition -> fields", entry.variants)
    known = [each.name for each in dataclasses.fields(Architecture) if each.name != "variants"]
    for condition, changes in entry.variants.items():
        valid = isinstance(condition, str) and re.fullmatch(r"\w+=[\w-]+(&\w+=[\w-]+)*", condition) is not None
        check.need(valid, "a key of variants", "a field of the config and its value, 'field=value'", condition)
        check.need(isinstance(changes, Mapping), f"variants[{condition!r}]", "a dict of the fields", changes)
        for name in changes:
            check.choice(name, f"a key of variants[{condition!r}]", known)
        _check_entry(_Check(f"{check.model_type}, {condition}"), dataclasses.replace(entry, **changes, variants={}))


def _kinds(entry: Architecture) -> list[str]:
    return [kind for kind in KINDS if getattr(entry, kind)]


def _sublayers(entry: Architecture) -> dict[str, str]:
    """Each sub-layer that an entry names, with the first kind of its units."""
    found: dict[str, str] = {}
    for kind in _kinds(entry):
        found.setdefault(SUBLAYERS[kind], kind)
    return found


def _check_cuts(check: _Check, entry: Architecture) -> None:
    check.need(bool(_kinds(entry)), "heads and neurons", "maps that can be cut, of one of them at least", ())
    for kind in KINDS:
        cuts, fields = getattr(entry, kind), f"{kind}[%d].%s"
        valid = isinstance(cuts, tuple) and len(cuts) != 1 and all(isinstance(cut, Cut) for cut in cuts)
        check.need(valid, kind, "a tuple of two or more Cut, the output projection last", cuts)
        for number, cut in enumerate(cuts):
            check.path(cut.module, fields % (number, "module"))
            if type(cut.axis) is not int:
                check.choice(cut.axis, fields % (number, "axis"), ("out", "in"))
            for width in (cut.width, *cut.fused, *([cut.rest] if cut.rest else [])):
                check.width(width, fields % (number, "width"))
            valid = type(cut.blocks) is int and cut.blocks > 0
            check.need(valid, fields % (number, "blocks"), "an integer of at least 1", cut.blocks)
        if cuts:
            last, where = cuts[-1], fields % (len(cuts) - 1, "axis")
            if kind == "expert_neurons":
                for number, cut in enumerate(cuts):
                    each = fields % (number, "stacked")
                    check.need(cut.stacked and type(cut.axis) is int, each, "True, with an axis in numbers", cut)
            elif kind == "experts":
                check.need(last.axis == "out", where, "'out', of the router", last.axis)
            else:
                check.need(last.axis == "in", where, "'in', of the output projection", last.axis)
            plain = (last.blocks, last.fused, last.rest, last.optional) == (1, (), "", False)
            plain = plain and " + " not in last.width
            check.need(plain, f"{kind}[{len(cuts) - 1}]", "an output projection of one width, not optional", last)


def _check_paths(check: _Check, entry: Architecture) -> None:
    parts = [name.replace("_", "-") for name in _sublayers(entry)]
    valid = isinstance(entry.residual, tuple) and len(entry.residual) == len(parts)
    count = ("one path", "two paths", "three paths")[len(parts) - 1]
    check.need(valid, "residual", f"{count}: of {', of '.join(parts)}", entry.residual)
    for number, module in enumerate(entry.residual):
        if module is not None:
            check.path(module, f"residual[{number}]")
    check.need(isinstance(entry.factors, tuple) and len(entry.factors) >= len(parts), "factors", count, entry.factors)
    for number, path in enumerate(entry.factors):
        if path is not None:
            check.path(path, f"factors[{number}]")
    check.need(isinstance(entry.own_bias, Mapping), "own_bias", "a dict of module -> embedding", entry.own_bias)
    for module in entry.own_bias:
        check.path(module, "a key of own_bias")
    names = [each.name for each in dataclasses.fields(Architecture) if each.name.endswith("attributes")]
    for name in names:
        values = getattr(entry, name)
        check.need(isinstance(values, Mapping), name, "a dict of attribute -> width", values)
        for attribute, width in values.items():
            check.path(attribute, f"a key of {name}")
            check.width(width, f"{name}[{attribute!r}]")
    if entry.head_size != "":
        check.path(entry.head_size, "head_size")


def _check_bypass(check: _Check, entry: Architecture, bypass: Any) -> None:
    parts = _sublayers(entry)
    valid = isinstance(bypass, tuple) and len(bypass) == len(parts)
    valid = valid and all(isinstance(modules, Mapping) for modules in bypass)
    expected = "a dict of module -> what stands in for it, for each sub-layer, or None"
    check.need(valid, "bypass", expected, bypass)
    for number, (modules, kind) in enumerate(zip(bypass, parts.values())):
        where, output = f"bypass[{number}]", getattr(entry, kind)[-1].module
        for module, gives in modules.items():
            check.path(module, f"a key of {where}")
            check.choice(gives, f"{where}[{module!r}]", STAND_INS)
        covered = not modules or any(f"{output}.".startswith(f"{module}.") for module in modules)
        check.need(covered, where, f"of modules one of which is or holds the output projection {output!r}", modules)


def _check_refused(check: _Check, entry: Architecture) -> None:
    check.need(isinstance(entry.refused, Mapping), "refused", "a dict of kind -> the reason", entry.refused)
    for kind, reason in entry.refused.items():
        check.choice(kind, "a key of refused", KINDS)
        check.need(isinstance(reason, str) and bool(reason), f"refused[{kind!r}]", "the reason, in words", reason)


def _check_config_fields(check: _Check, config_fields: Any) -> None:
    check.need(isinstance(config_fields, Mapping), "config_fields", "a dict of kind -> names", config_fields)
    for kind, names in config_fields.items():
        check.choice(kind, "a key of config_fields", KINDS)
        valid = isinstance(names, tuple) and bool(names) and all(isinstance(name, str) for name in names)
        check.need(valid, f"config_fields[{kind!r}]", "a tuple of names of the config's fields", names)


def unsupported_architecture(model_type: str, why: str = "") -> str:
    """What to tell of an architecture that has no entry."""
    listed = len(ARCHITECTURES) - len(ARCHITECTURES.derived)
    near = ", ".join(map(repr, difflib.get_close_matches(model_type, ARCHITECTURES, n=3, cutoff=0.8)))
    return (
        f"the architecture {model_type!r} is not supported: it has no entry in ARCHITECTURES"
        f"{f', and {why}' if why else ''}. {listed} types have one (docs/models.md)"
        f"{f'; of names like this: {near}' if near else ''}. "
        "The page 'Adding an architecture or a method' of optimum-camcut (docs/adding.md) shows how to add one."
    )


# One entry per `model_type`.
ARCHITECTURES = Table()
ENCODERS = (bert, distilbert, albert, mpnet, deberta, modernbert, mobilebert)
DECODERS = (gpt2, gpt_neox, bloom, opt, llama, mixtral)
for family in (*ENCODERS, *DECODERS, bart, t5, vit, swin, wav2vec2):
    ARCHITECTURES.update(family.ENTRIES)
