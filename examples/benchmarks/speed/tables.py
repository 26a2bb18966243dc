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
"""The table of a benchmark's figures. Without torch, which takes seconds to import."""

from __future__ import annotations

from typing import Any


def as_text(result: dict[str, Any]) -> str:
    """A heading and a table in Markdown."""
    settings = result["settings"]
    shown = ("rounds", "batch_size", "tokens", "dtype", "cpu_time", "quick")
    given = {name: settings[name] for name in shown if settings.get(name) and not isinstance(settings[name], list)}
    said = ", ".join(f"{name} {value}" for name, value in given.items())
    shown = table(result["rows"])
    return f"## {result['benchmark']}\n\n{result['device']}; {said}; median (lowest to highest)\n\n{shown}\n"


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown; a column for everything that any row has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_cell(value['median'])} ({_cell(value['low'])} to {_cell(value['high'])})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
