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
"""Tables of text: lines of cells, the titles first."""

from __future__ import annotations

from collections.abc import Sequence


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left, with a rule below the titles."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Markdown, the first and the last column to the left."""
    titles, *rest = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    rules = ["---", *["---:"] * (len(titles) - 2), "---"]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rules, *rest)) + "\n"
