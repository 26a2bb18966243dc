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
"""The table of models in docs/models.md says what the tests of each type have shown.

`CAMCUT_WRITE_DOCS=1` writes it anew.
"""

import os
import re
from pathlib import Path

import pytest
from types_of_models import ONLY_5, TYPES, VARIANTS, config_of, model_of

from optimum_camcut.architectures.entry import kind_of
from optimum_camcut.architectures.groups import possible_kinds
from optimum_camcut.architectures.recipes import stacks_of
from optimum_camcut.architectures.table import ARCHITECTURES


PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- the table, written by tests/docs/test_models_table.py -->", "<!-- the end of the table -->"


def row(name: str) -> str:
    model, config = model_of(name), config_of(name)
    stacks, kinds = stacks_of(config), possible_kinds(model)
    plain = {kind_of(kind) for kind in set.intersection(*(set(entry.config_fields) for entry in stacks.values()))}
    shared = any(cut.width.startswith("queries") for entry in stacks.values() for cut in entry.heads)
    heads = "by key-value head" if shared else "yes"
    cells = [
        name,
        heads if "heads" in kinds else "no",
        "yes" if "neurons" in kinds else "no",
        "yes" if "experts" in kinds else "-",
        "yes" if "layers" in kinds else "no",
        " and ".join(kind for kind in ("heads", "neurons", "experts") if kind in plain and kind in kinds) or "-",
        "-" if name in ONLY_5 else "yes",
        "yes",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.once
def test_the_table_of_models():
    names = sorted(name for name in TYPES if name not in VARIANTS)
    head = [
        "| type | heads | neurons | experts | layers | plain shape | 4.57 | 5.x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table = "\n".join([BEGIN, *head, *map(row, names), END])
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    if os.environ.get("CAMCUT_WRITE_DOCS"):
        PAGE.write_text(before + table + rest.partition(END)[2])
    assert table in PAGE.read_text()
    for page in (PAGE.parent.parent / "README.md", PAGE.parent / "index.md"):
        assert re.findall(r"(\d+) types", page.read_text()) == [str(len(ARCHITECTURES))]
