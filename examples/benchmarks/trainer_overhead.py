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
"""What `CamCutTrainer` adds to the time of a training step: its dense epochs against those of `Trainer`.

Both train the same model on the same batches in turn; the ratio is of the time from the first step to the last.

    python examples/benchmarks/trainer_overhead.py --output trainer_overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from optimum_camcut import CamCutTrainer, PruningConfig


class Clock(TrainerCallback):
    """The time from the first step of the first loop to the end of its last, without what comes before and after."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.start, self.seconds = clock, None, None

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.start is None:
            self.start = self.clock()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seconds is None and state.global_step == state.max_steps:
            self.seconds = self.clock() - self.start


def train(pruned: bool, data: Dataset, options: argparse.Namespace, folder: str) -> float:
    """Seconds of one epoch of dense training."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertForSequenceClassification(config)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
    )
    keywords = {"pruning_config": PruningConfig("random", sparsity=0.5, dense_epochs=1, recovery="none")}
    trainer = (CamCutTrainer if pruned else Trainer)(
        model=model, args=arguments, train_dataset=data, **(keywords if pruned else {})
    )
    clock = Clock(time.process_time if options.cpu_time else time.perf_counter)
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cpu_time", action="store_true", help="count processor time, on a machine that is busy")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (options.steps * options.batch_size, options.tokens))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 2).tolist()})
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        train(True, data, options, folder)
        for number in range(options.rounds):
            order = (False, True) if number % 2 else (True, False)
            seconds = {pruned: train(pruned, data, options, folder) for pruned in order}
            ratios.append(seconds[True] / seconds[False])
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"CamCutTrainer / Trainer, {options.steps} dense steps: {statistics.median(ratios):.3f} ({spread})")
    if options.output:
        options.output.write_text(json.dumps({**vars(options), "output": None, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
