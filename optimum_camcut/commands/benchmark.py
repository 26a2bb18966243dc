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
"""`optimum-cli camcut benchmark`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from ..reporting.tables import as_text
from ..utils.files import write_json
from .command import Command
from .job import check_model
from .options import MODEL, REPEATS, Option
from .output import check_file, quiet


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BenchmarkCommand(Command):
    COMMAND = CommandInfo(name="benchmark", help="Time pruned models in turn with the dense one.")
    DESCRIPTION = """
Times a dense model and pruned ones in turn, over batch sizes and sequence lengths, on the device that there is; with
the throughput, the memory of the weights and activations, and the speed-up over the dense model.

  optimum-cli camcut benchmark --dense M --pruned O1 O2 --batch_sizes 1 8 --sequence_lengths 64 128
"""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return (
            Option("dense", "The model to compare with: a folder or a Hub id.", required=True),
            Option("pruned", "The others.", many=True, required=True),
            MODEL[-1],
            Option("batch_sizes", "Examples at once.", [1, 8], int, many=True, least=1),
            Option("sequence_lengths", "Tokens in each, or frames of sound.", [128], int, many=True, least=1),
            REPEATS,
            Option("output", "JSON file to write the measurements to."),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        output = Path(arguments.output) if arguments.output else None
        if output is not None:
            check_file(output, arguments.overwrite)
        for name in (arguments.dense, *arguments.pruned):
            check_model(name)
        quiet(arguments.verbose)

        import torch

        from ..planning.measure import input_size, longest_input
        from ..tasks.models import load_model

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        names = list(dict.fromkeys([arguments.dense, *arguments.pruned]))
        models = {name: load_model(name, dtype=getattr(torch, arguments.dtype)).to(device) for name in names}
        for length in arguments.sequence_lengths:
            for name, model in models.items():
                longest = longest_input(model, length)
                if length > longest:
                    raise ValueError(f"{name} takes {longest} tokens at most, not {length} (--sequence_lengths)")
        lengths = arguments.sequence_lengths
        if len({input_size(model, length) for model in models.values() for length in (1, 2)}) == 1:  # images, say
            if "sequence_lengths" in arguments.given:
                raise ValueError(
                    f"{arguments.dense} says itself how large its inputs are: leave --sequence_lengths out"
                )
            lengths = lengths[:1]
        rows = [
            row
            for length in lengths
            for batch in arguments.batch_sizes
            for row in _measure(models, batch, length, arguments.repeats)
        ]
        if output is not None:
            conditions = {"device": str(device), "dtype": arguments.dtype, "threads": torch.get_num_threads()}
            write_json(output, {**conditions, "torch": torch.__version__, "repeats": arguments.repeats, "rows": rows})
        print(as_text(_table(rows)))


def _measure(models: Mapping[str, PreTrainedModel], batch: int, length: int, repeats: int) -> list[dict[str, Any]]:
    """What each model takes at one size of the input. The first is the dense one."""
    from ..planning.measure import count_flops, count_parameters, input_size, measure_latency, peak_memory

    times = measure_latency(models, batch, length, repeats)
    dense = times[next(iter(models))]
    return [
        {
            "model": name,
            "batch_size": batch,
            "sequence_length": length,
            "input_size": input_size(model, length),
            "parameters": count_parameters(model),
            "flops": count_flops(model, batch, length),
            "memory": peak_memory(model, batch, length),
            "latency": times[name].median,
            "latency_low": times[name].low,
            "latency_high": times[name].high,
            "throughput": batch / times[name].median,
            "speedup": dense.median / times[name].median,
        }
        for name, model in models.items()
    ]


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """What was measured as text, with titles."""
    lines = [["model", "batch", "input", "params (M)", "FLOPs (G)", "MB", "ms", "quartiles", "1/s", "speed-up"]]
    for row in rows:
        lines.append(
            [
                row["model"],
                str(row["batch_size"]),
                row["input_size"],
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['flops'] / 1e9:.3f}",
                f"{row['memory'] / 1e6:.1f}",
                f"{1e3 * row['latency']:.2f}",
                f"{1e3 * row['latency_low']:.2f} to {1e3 * row['latency_high']:.2f}",
                f"{row['throughput']:.1f}",
                f"{row['speedup']:.2f}x",
            ]
        )
    return lines
