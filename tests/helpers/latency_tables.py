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
"""Latency tables by hand."""

from optimum_camcut import LatencyTable


def table_of(groups, heads=None, neurons=None, rest=10.0, **conditions):
    """Seconds for so many heads or neurons, as functions; by default with a part that does not grow."""
    functions = {"heads": heads or (lambda n: 1 + 2.5 * n), "neurons": neurons or (lambda n: 1 + 0.02 * n)}
    sizes = {g.name: g.size for g in groups if g.kind in functions}
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in sizes)
    largest = {kind: max(size for name, size in sizes.items() if name.endswith(kind)) for kind in kinds}
    grid = {k: sorted({*range(1, n + 1, max(n // 12, 1)), n}) for k, n in largest.items()}
    times = {kind: {size: functions[kind](size) for size in points} for kind, points in grid.items()}
    widths = {g.kind: g.output.width if g.slices else 1 for g in groups if g.kind in functions}
    total = rest + sum(functions[name.rpartition(".")[2]](size) for name, size in sizes.items())
    return LatencyTable(conditions, total, times, sizes, widths)
