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
"""Prune half of a real model's heads and neurons, and compare it with the dense one. `make demo` runs this.

The model is all-MiniLM-L6-v2 from the package index, or the path or Hub id in the environment variable
`CAMCUT_DEMO_MODEL`; the task is question answering as entailment (QNLI), on the small sample in `examples/data`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset
from fetch_model import fetch_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from optimum_camcut import CamCutTrainer, PruningConfig, load_pruned
from optimum_camcut.measure import count_flops, count_parameters, measure_latency


DATA = Path(__file__).resolve().parent / "data" / "qnli"
OUTPUT = Path(__file__).resolve().parents[1] / "outputs" / "demo"
DENSE, PRUNED, MEASUREMENTS = OUTPUT / "dense", OUTPUT / "pruned", OUTPUT / "measurements.json"
DENSE_EPOCHS, RECOVERY_EPOCHS = 3, 2
BATCH_SIZE, SEQUENCE_LENGTH = 8, 128  # of the latency measurement


def load_data(tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        return tokenizer(rows["question"], rows["sentence"], truncation=True, max_length=SEQUENCE_LENGTH)

    files = {split: str(DATA / f"{split}.parquet") for split in ("train", "validation")}
    data = load_dataset("parquet", data_files=files)
    return data.map(tokenize, batched=True, remove_columns=["question", "sentence", "idx"])


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


def training_arguments(epochs: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(OUTPUT / "training"),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=1e-4,
        warmup_steps=20,
        logging_steps=50,
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to="none",
        seed=0,
    )


def prune() -> None:
    """Fine-tune, score, prune, recover; save the dense and the pruned model."""
    name = os.environ.get("CAMCUT_DEMO_MODEL") or fetch_model()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    if tokenizer.pad_token is None:  # decoders are trained without one
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    data = load_data(tokenizer)
    common = {
        "model": model,
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "processing_class": tokenizer,
        "compute_metrics": accuracy,
    }

    print(f"\n[1/3] Fine-tuning {name} on QNLI")
    trainer = Trainer(args=training_arguments(DENSE_EPOCHS), **common)
    trainer.train()
    trainer.save_model(str(DENSE))

    print("\n[2/3] Scoring with Smooth-Cut, pruning half of the heads and of the neurons, recovering")
    config = PruningConfig(
        method="smooth_cut",
        sparsity=0.5,
        allocation="per_kind",
        num_samples=512,
        smooth_samples=5,
        recovery="finetune",
    )
    trainer = CamCutTrainer(args=training_arguments(RECOVERY_EPOCHS), pruning_config=config, **common)
    trainer.train()
    trainer.save_model(str(PRUNED))


def measure() -> None:
    """Reload both models and measure them side by side."""
    models = {
        "dense": AutoModelForSequenceClassification.from_pretrained(DENSE),
        "pruned": load_pruned(str(PRUNED)),
    }
    # Before any evaluation, which moves a model to the accelerator if there is one.
    latencies = measure_latency(models, batch_size=BATCH_SIZE, sequence_length=SEQUENCE_LENGTH, repeats=20)
    tokenizer = AutoTokenizer.from_pretrained(DENSE)
    validation = load_data(tokenizer)["validation"]
    measurements = {}
    for (name, model), folder in zip(models.items(), (DENSE, PRUNED), strict=True):
        measurements[name] = {
            "parameters": count_parameters(model),
            "embedding_parameters": count_parameters(model.get_input_embeddings()),
            "flops": count_flops(model, batch_size=1, sequence_length=SEQUENCE_LENGTH),
            "latency": latencies[name].median,
            "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        }
        trainer = Trainer(model, training_arguments(0), processing_class=tokenizer, compute_metrics=accuracy)
        measurements[name]["accuracy"] = trainer.evaluate(validation)["eval_accuracy"]
    MEASUREMENTS.write_text(json.dumps(measurements, indent=2))


def table(measurements: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[str, Callable[[dict[str, Any]], float], str]] = [
        ("parameters (M)", lambda of: of["parameters"] / 1e6, ".2f"),
        ("  without word embeddings (M)", lambda of: (of["parameters"] - of["embedding_parameters"]) / 1e6, ".2f"),
        (f"FLOPs, 1 x {SEQUENCE_LENGTH} tokens (G)", lambda of: of["flops"] / 1e9, ".2f"),
        (f"CPU latency, {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens (ms)", lambda of: of["latency"] * 1e3, ".1f"),
        ("size on disk (MB)", lambda of: of["bytes"] / 1e6, ".1f"),
        ("accuracy, 400 rows of QNLI (%)", lambda of: of["accuracy"] * 100, ".1f"),
    ]
    width = max(len(label) for label, _, _ in rows)
    lines = [f"{'':{width}} {'dense':>10} {'pruned':>10} {'pruned/dense':>14}"]
    lines.append("-" * len(lines[0]))
    for label, value, style in rows:
        dense, pruned = value(measurements["dense"]), value(measurements["pruned"])
        lines.append(f"{label:{width}} {dense:>10{style}} {pruned:>10{style}} {pruned / dense:>14.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune half of a real model and compare it with the dense one.")
    parser.add_argument("--measure", action="store_true", help="only measure the models that an earlier run saved")
    if parser.parse_args().measure:
        measure()
        return
    start = time.perf_counter()
    prune()
    print("\n[3/3] Reloading both models in a new process and measuring them")
    subprocess.run([sys.executable, __file__, "--measure"], check=True)
    print(f"\n{table(json.loads(MEASUREMENTS.read_text()))}\n")
    print(f"Saved in {PRUNED}; {time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
