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
"""Files, functions and classes of the package are short enough to be read at once."""

import ast

import pytest
from places import REPOSITORY


FILES = sorted((REPOSITORY / "optimum_camcut").rglob("*.py"))
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
LINES, OF_A_FUNCTION, METHODS = 400, 60, 20


def lines_of(function):
    """Without its docstring."""
    first, doc = function.body[0], ast.get_docstring(function)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if doc else 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_short(path):
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    functions = [(node.name, node.lineno, lines_of(node)) for node in nodes if isinstance(node, FUNCTION)]
    methods = [
        (node.name, node.lineno, sum(isinstance(each, FUNCTION) for each in node.body))
        for node in nodes
        if isinstance(node, ast.ClassDef)
    ]
    assert text.count("\n") <= LINES
    assert not [each for each in functions if each[-1] > OF_A_FUNCTION]
    assert not [each for each in methods if each[-1] > METHODS]
