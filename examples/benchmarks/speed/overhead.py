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

Both train the same model, in the shape of MiniLM-L6, on the same batches in turn; what counts is the time from the
first step to the last.

    python examples/benchmarks/speed/overhead.py --output overhead.json
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from common import build, clock, in_turn, parse, parser, report, spread
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from optimum_camcut import CamCutTrainer, PruningConfig


MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class Steps(TrainerCallback):
    """The time from the first step of the first loop to the end of its last, without what comes before and after."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start, self.seconds = options, None, None

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.start is None:
            self.start = clock(self.options)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seconds is None and state.global_step == state.max_steps:
            self.seconds = clock(self.options) - self.start


def train(trainer_class: type[Trainer], data: Dataset, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """One epoch of dense training; returns its seconds."""
    arguments = TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        bf16=options.dtype == "bfloat16",
    )
    keywords = {}
    if trainer_class is CamCutTrainer:
        keywords["pruning_config"] = PruningConfig("random", sparsity=0.5, dense_epochs=1, recovery="none")
    model = build(options, **MINILM).float()  # with bf16, the trainer computes in it and keeps float32 weights
    trainer = trainer_class(model=model, args=arguments, train_dataset=data, **keywords)
    steps = Steps(options)
    trainer.add_callback(steps)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"steps": steps.seconds}


def main() -> None:
    made = parser(__doc__, rounds=7)
    made.add_argument("--steps", type=int, default=20)
    options = parse(made, batch_size=2, tokens=8, steps=2)

    ids = torch.randint(1000, 30000, (options.steps * options.batch_size, options.tokens))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 2).tolist()})
    classes = {each.__name__: each for each in (Trainer, CamCutTrainer)}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {name: lambda each=each: train(each, data, options, folder) for name, each in classes.items()}
        times = in_turn(options, tasks)
    rows = [
        {
            "trainer": name,
            "milliseconds_per_step": spread(times[f"{name}/steps"], scale=1e3 / options.steps),
            "to_trainer": spread(times[f"{name}/steps"], times["Trainer/steps"]),
        }
        for name in classes
    ]
    report(options, rows)


if __name__ == "__main__":
    main()
