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
"""The modeling file that a checkpoint carries: what loads it, and the entry of its own architecture."""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PretrainedConfig

from . import layer_config, modeling_camcut, native_heads, own_bias, position_bias
from .entry import SUBLAYERS, Architecture
from .recipes import recipe_of
from .table import ARCHITECTURES


LICENSE = "# Copyright 2026 The optimum-camcut authors. Licensed under the Apache License, Version 2.0.\n"
WIDTH = 108  # of a recipe's lines, less the names before them
OLD, NEW = "4", "5"  # versions of transformers: modules may have other names in the old one
IN_OLD = " in transformers 4"
ONE = "recipe_of: Callable[..., Any] = lambda config: RECIPES[config.model_type]  # by the name of a stack\n"
OF_VERSION = f'''def recipe_of(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """What is cut in each stack of blocks, by the name of the stack."""
    old = transformers.__version__.startswith("4.") and config.model_type + {json.dumps(IN_OLD)} in RECIPES
    return RECIPES[config.model_type + {json.dumps(IN_OLD)} * old]
'''


def modeling_source(*configs: PretrainedConfig) -> str:
    """The text of `modeling_camcut.py` for models of these configs. It needs torch and transformers alone, and is the
    same for all checkpoints of an architecture, or of the same variant of one.

    It is put together of modules of this package. Their docstrings are cut down to the first paragraph, and one empty
    line stands between functions.
    """
    recipes: dict[str, Any] = {}
    for config in sorted(configs, key=lambda each: each.model_type):
        recipes[config.model_type], old = recipe_of(config, NEW), recipe_of(config, OLD)
        recipes |= {config.model_type + IN_OLD: old} if old != recipes[config.model_type] else {}
    entries = [ARCHITECTURES[config.model_type] for config in configs]
    stacks = [each for e in entries for each in ([e] if isinstance(e, Architecture) else e.values())]
    recipe_stacks = [stack for recipe in recipes.values() for stack in recipe.values()]
    needed = {
        native_heads: any(each.native_pruned_heads for each in stacks),
        position_bias: any("position_bias" in stack for stack in recipe_stacks),
        own_bias: any("own_bias" in stack for stack in recipe_stacks),
        layer_config: ".config." in json.dumps(recipes),
    }
    loader, *others = map(_body, (modeling_camcut, *(module for module, wanted in needed.items() if wanted)))
    code = "\n\n".join([_table(recipes), loader, *others])
    doc = f'"""{modeling_camcut.__doc__}"""\n'
    return f"{LICENSE}{doc}\n{_imports(code)}\n" + re.sub("\n{3,}", "\n\n", code)


def _table(recipes: Mapping[str, Any]) -> str:
    """The recipes, and what chooses among them."""
    kinds = {kind for recipe in recipes.values() for stack in recipe.values() for kind in stack}
    parts = {kind: part for kind, part in SUBLAYERS.items() if kind in kinds}
    found = f"SUBLAYERS = {_literal(parts, 1)}\nRECIPES = {_literal(recipes)}\n"
    return found + (OF_VERSION if any(name.endswith(IN_OLD) for name in recipes) else ONE)


def _source(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def _end(statement: ast.stmt) -> int:
    """The number of its last line."""
    assert statement.end_lineno is not None  # of what was parsed, there is one
    return statement.end_lineno


@functools.cache  # a run saves many times
def _body(module: ModuleType) -> str:
    """The source of a module behind its imports, with short docstrings."""
    lines = _source(module).splitlines(keepends=True)
    tree = ast.parse("".join(lines))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        doc, statement = ast.get_docstring(node, clean=False), node.body[0]
        if doc is not None and "\n\n" in doc:
            first, last = statement.lineno - 1, _end(statement)
            short = f'{" " * statement.col_offset}"""{doc.partition(chr(10) * 2)[0]}"""\n'
            lines[first:last] = [short, *[""] * (last - first - 1)]
    start = max(_end(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return "".join(lines[start:]).strip() + "\n"


@functools.cache
def _imports(code: str) -> str:
    """What the modules import from elsewhere, as far as the code uses it."""
    whole: set[str] = set()
    names: dict[str, set[str]] = {}
    for module in (modeling_camcut, native_heads, position_bias, own_bias, layer_config):
        for node in ast.parse(_source(module)).body:
            if isinstance(node, ast.Import):
                whole |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                names.setdefault(node.module, set()).update(alias.name for alias in node.names)
    used = set(re.findall(r"\w+", code))
    lines = {name: f"import {name}" for name in sorted(whole & used)}
    for origin, found in sorted(names.items()):
        wanted = sorted(found & used, key=lambda name: (name != name.upper(), name.lower()))
        if wanted:
            lines[f"{origin} "] = f"from {origin} import {', '.join(wanted)}"
    own = [line for name, line in lines.items() if re.split(r"\W", name)[0] in sys.stdlib_module_names]
    return "\n".join([*own, "", *(line for line in lines.values() if line not in own)]) + "\n"


def _literal(value: Any, indent: int = 0) -> str:
    """A recipe as Python."""
    inner = indent + 4
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        parts = [f"{_literal(name)}: {_literal(each, inner)}" for name, each in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, tuple):
        parts, opening, closing = [_literal(each, inner) for each in value], "(", ",)" if len(value) == 1 else ")"
    else:
        return repr(value)
    line = f"{opening}{', '.join(parts)}{closing}"
    if indent and len(line) + indent <= WIDTH and "\n" not in line:
        return line
    return opening + "\n" + "".join(f"{' ' * inner}{part},\n" for part in parts) + " " * indent + closing[-1]
