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

import difflib
import re
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .entry import HEAD, QUERIES, UNIT, Architecture, Cut
from .families import albert, bert, distilbert, gpt2, llama, mpnet


STAND_INS = tuple(f"{what}{pair}" for what in ("input", "residual", "zeros") for pair in ("", " pair"))  # see `Bypass`
KINDS = ("heads", "neurons")
WIDTHS = (UNIT, HEAD, QUERIES)


class Table(UserDict[str, Architecture]):
    """`model_type` -> `Architecture`, whose fields are checked when an entry is added. What they say of a model is
    checked by `optimum_camcut.check_architecture`."""

    def __setitem__(self, model_type: str, entry: Architecture) -> None:
        """Raises `ValueError`: names the entry and the field that cannot be right."""
        check = _Check(model_type)
        check.need(isinstance(model_type, str), "its key", "the model_type of a config, a string", model_type)
        check.need(isinstance(entry, Architecture), "the entry", "an Architecture", entry)
        valid = isinstance(entry.layers, str) and re.fullmatch(r"\w+(\.(\w+|\{\}))*", entry.layers) is not None
        valid = valid and ".{}" in entry.layers
        expected = "a path with {} in the place of each index, such as 'encoder.layer.{}'"
        check.need(valid, "layers", expected, entry.layers)
        _check_cuts(check, entry)
        _check_paths(check, entry)
        if entry.bypass is not None:
            _check_bypass(check, entry, entry.bypass)
        if entry.position_bias is not None:
            check.path(entry.position_bias, "position_bias")
        valid = type(entry.native_pruned_heads) is bool
        check.need(valid, "native_pruned_heads", "True or False", entry.native_pruned_heads)
        _check_config_fields(check, entry.config_fields)
        super().__setitem__(model_type, entry)


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

    def path(self, value: Any, where: str) -> None:
        valid = isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*", value) is not None
        self.need(valid, where, "a path of names with dots between them", value)


def _check_cuts(check: _Check, entry: Architecture) -> None:
    for kind in KINDS:
        cuts, fields = getattr(entry, kind), f"{kind}[%d].%s"
        valid = isinstance(cuts, tuple) and len(cuts) > 1 and all(isinstance(cut, Cut) for cut in cuts)
        check.need(valid, kind, "a tuple of two or more Cut, the output projection last", cuts)
        for number, cut in enumerate(cuts):
            check.path(cut.module, fields % (number, "module"))
            check.choice(cut.axis, fields % (number, "axis"), ("out", "in"))
            check.choice(cut.width, fields % (number, "width"), WIDTHS)
            valid = type(cut.blocks) is int and cut.blocks > 0
            check.need(valid, fields % (number, "blocks"), "an integer of at least 1", cut.blocks)
        last = cuts[-1]
        check.need(last.axis == "in", fields % (len(cuts) - 1, "axis"), "'in', of the output projection", last.axis)


def _check_paths(check: _Check, entry: Architecture) -> None:
    valid = isinstance(entry.residual, tuple) and len(entry.residual) == 2
    check.need(valid, "residual", "two paths: of attention, of feed-forward", entry.residual)
    for number, module in enumerate(entry.residual):
        check.path(module, f"residual[{number}]")
    for name in ("attributes", "neuron_attributes"):
        values = getattr(entry, name)
        check.need(isinstance(values, Mapping), name, "a dict of attribute -> width", values)
        for attribute, width in values.items():
            check.path(attribute, f"a key of {name}")
            check.choice(width, f"{name}[{attribute!r}]", WIDTHS)


def _check_bypass(check: _Check, entry: Architecture, bypass: Any) -> None:
    valid = isinstance(bypass, tuple) and len(bypass) == 2 and all(isinstance(modules, Mapping) for modules in bypass)
    check.need(valid, "bypass", "a pair of dicts of module -> what stands in for it, or None", bypass)
    for number, (modules, kind) in enumerate(zip(bypass, KINDS)):
        where, output = f"bypass[{number}]", getattr(entry, kind)[-1].module
        for module, gives in modules.items():
            check.path(module, f"a key of {where}")
            check.choice(gives, f"{where}[{module!r}]", STAND_INS)
        covered = any(f"{output}.".startswith(f"{module}.") for module in modules)
        check.need(covered, where, f"of modules one of which is or holds the output projection {output!r}", modules)


def _check_config_fields(check: _Check, config_fields: Any) -> None:
    check.need(isinstance(config_fields, Mapping), "config_fields", "a dict of kind -> names", config_fields)
    for kind, names in config_fields.items():
        check.choice(kind, "a key of config_fields", KINDS)
        valid = isinstance(names, tuple) and bool(names) and all(isinstance(name, str) for name in names)
        check.need(valid, f"config_fields[{kind!r}]", "a tuple of names of the config's fields", names)


def unsupported_architecture(model_type: str) -> str:
    """What to tell of an architecture that has no entry."""
    return (
        f"the architecture {model_type!r} is not supported; supported are: {', '.join(sorted(ARCHITECTURES))}. "
        "The page 'Adding an architecture or a method' of optimum-camcut (docs/adding.md) shows how to add one."
    )


# One entry per `model_type`.
ARCHITECTURES = Table()
for family in (bert, distilbert, albert, mpnet, gpt2, llama):
    ARCHITECTURES.update(family.ENTRIES)
