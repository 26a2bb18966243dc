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
"""Perplexity that LoRA regains in little time: a language model is cut, rebuilt and trained on, all in one
`CamCutTrainer.train()`, with the dense model as its teacher.

    python examples/benchmarks/recover_language_model.py --model smollm2=HuggingFaceTB/SmolLM2-135M-Instruct \
        --keep 0.8 0.5 --steps 200 --output O.json

Scored, rebuilt and trained on WikiText-2's validation text, measured on its test text, as `real_models.py text` does;
but for the scores, in windows of `--train_window` tokens. Every model, size and sample is one run in the output file;
what is there is not run again. `--tables` only prints the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from typing import Any

from real_models import Scored, named_path, share_of
from real_tasks import Text
from study import add, add_arguments, find, header, line, make_parser, read
from transformers import TrainerCallback, TrainingArguments, set_seed

from optimum_camcut import CamCutTrainer


KEY = ("model", "method", "allocation", "keep", "seed")  # of a run


class Rebuilt(TrainerCallback):
    """Measures the model when it has been cut and rebuilt, and when that was."""

    def __init__(self, task: Text) -> None:
        self.task = task

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.found = self.task.measure(model)
        self.start = time.perf_counter()


def run(scored: Scored, short: Text, keep: float, options: argparse.Namespace) -> dict[str, Any]:
    """Cuts, rebuilds and trains once."""
    task = scored.task
    set_seed(scored.seed)
    config = scored.config(
        keep,
        allocation=options.allocation,
        recovery="reconstruct+finetune",
        num_samples=short.rebuild_samples,
        lora_rank=options.lora_rank,
        distill_weight=options.distill_weight,
        distill_top_k=options.distill_top_k,
    )
    rebuilt = Rebuilt(task)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=options.steps // 10,
            lr_scheduler_type="cosine",
            weight_decay=0.0,
            save_strategy="no",
            report_to="none",
            seed=scored.seed,
        )
        trainer = CamCutTrainer(
            model=copy.deepcopy(task.model),
            args=arguments,
            train_dataset=[{"input_ids": window, "labels": window} for window in short.windows["validation"]],
            pruning_config=config,
            callbacks=[rebuilt],
        )
        trainer.scores = scored.scores
        trainer.train()
        minutes = (time.perf_counter() - rebuilt.start) / 60
    model = trainer.model.eval()
    share, trained = share_of(model, scored.all_groups), task.measure(model)
    return {"of_layers": share, "rebuilt": rebuilt.found, "trained": trained, "training_minutes": round(minutes, 1)}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown, one a model: perplexity by what was done, for each share of heads and neurons that is kept."""
    parts = []
    for model in dict.fromkeys(run["model"] for run in runs):
        own = [run for run in runs if run["model"] == model]
        fractions = sorted({run["keep"] for run in own}, reverse=True)
        parts.append(header(f"{model}: perplexity, dense {own[0]['dense']['perplexity']:.1f}", fractions))
        for stage, label in (("rebuilt", "rebuilt"), ("trained", "and LoRA")):
            cells = [[run[stage]["perplexity"] for run in own if run["keep"] == keep] for keep in fractions]
            parts.append(line(label, cells, 1))
        minutes = [[run["training_minutes"] for run in own if run["keep"] == keep] for keep in fractions]
        parts.append(line("minutes of training", minutes, 0) + "\n")
    return "\n".join(parts)


def run_all(options: argparse.Namespace) -> None:
    names = ("steps", "batch_size", "learning_rate", "lora_rank", "distill_weight", "distill_top_k", "train_window")
    settings = {name: getattr(options, name) for name in names}
    for name, path in options.model:
        keys = [
            dict(zip(KEY, (name, options.method, options.allocation, keep, seed)))
            for seed in options.seeds
            for keep in options.keep
        ]
        missing = [key for key in keys if not find(read(options.output), **key)]
        if not missing:
            continue
        task = Text(path, options)
        short = copy.copy(task)
        short.rebuild_samples = task.rebuild_samples * task.window // options.train_window
        short.window = options.train_window
        short.prepare()
        scored: dict[int, Scored] = {}
        for key in missing:
            seed = key["seed"]
            scored[seed] = scored.get(seed) or Scored(task, options.method, seed)
            result = {**key, **task.settings(), **settings, "dense": task.dense}
            result |= run(scored[seed], short, key["keep"], options)
            print(json.dumps(result), flush=True)
            add(options.output, result, KEY)


def main() -> None:
    parser = make_parser(__doc__)
    add_arguments(parser, model={"type": named_path, "nargs": "+", "metavar": "NAME=PATH", "help": "folder or Hub id"})
    parser.add_argument("--data", help="folder with wiki.valid.raw and wiki.test.raw, in place of the Hub")
    add_arguments(parser, method="obs", allocation="global", keep=[0.8, 0.7, 0.5], seeds=[1])
    parser.add_argument("--window", type=int, default=2048, help="tokens of an example, to score and to measure")
    parser.add_argument("--train_window", type=int, default=512, help="to rebuild from and to train on")
    add_arguments(parser, num_samples={"default": 16, "help": "windows to score on"}, examples=8)
    parser.add_argument("--rebuild_samples", type=int, default=16, help="windows to rebuild from: as many tokens")
    add_arguments(parser, batch_size=1, learning_rate=3e-4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--distill_weight", type=float, default=0.5)
    parser.add_argument("--distill_top_k", type=int, default=50)
    add_arguments(parser, "tables", output={"required": True})
    options = parser.parse_args()
    if not options.tables:
        if not options.model:
            parser.error("--model is required")
        run_all(options)
    print(table(read(options.output)))


if __name__ == "__main__":
    main()
