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
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from . import entry, modeling_camcut, native_heads, position_bias
from .table import ARCHITECTURES


LICENSE = "# Copyright 2026 The optimum-camcut authors. Licensed under the Apache License, Version 2.0.\n"
WIDTH = 108  # of an entry's lines, less the names before them


def modeling_source(*model_types: str) -> str:
    """The text of `modeling_camcut.py` for these architectures. It needs torch and transformers alone, and is the same
    for all checkpoints of an architecture.

    It is put together of modules of this package. Their docstrings are cut down to the first paragraph.
    """
    entries = {model_type: ARCHITECTURES[model_type] for model_type in sorted(model_types)}
    native = [native_heads] if any(each.native_pruned_heads for each in entries.values()) else []
    shared = [position_bias] if any(each.position_bias is not None for each in entries.values()) else []
    types, loader, *others = map(_body, (entry, modeling_camcut, *native, *shared))
    code = "\n\n".join([types, f"ARCHITECTURES = {_literal(entries)}\n", loader, *others])
    doc = f'"""{modeling_camcut.__doc__}"""\n'
    return f"{LICENSE}{doc}\n{_imports(code)}\n\n{code}"


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
    for module in (entry, modeling_camcut, native_heads, position_bias):
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
    """An entry as Python; what has its default value is left out."""
    inner = indent + 4
    if isinstance(value, str):
        return json.dumps(value)
    if dataclasses.is_dataclass(value):
        default = {
            f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            for f in dataclasses.fields(value)
        }
        parts = [f"{name}={_literal(each, inner)}" for name, each in vars(value).items() if each != default[name]]
        opening, closing = f"{type(value).__name__}(", ")"
    elif isinstance(value, Mapping):
        parts = [f"{json.dumps(name)}: {_literal(each, inner)}" for name, each in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, tuple):
        parts, opening, closing = [_literal(each, inner) for each in value], "(", ",)" if len(value) == 1 else ")"
    else:
        return repr(value)
    line = f"{opening}{', '.join(parts)}{closing}"
    if indent and len(line) + indent <= WIDTH and "\n" not in line:
        return line
    return opening + "\n" + "".join(f"{' ' * inner}{part},\n" for part in parts) + " " * indent + closing[-1]
