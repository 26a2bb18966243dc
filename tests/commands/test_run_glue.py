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
"""`examples/run_glue.py` as users run it: in real processes under `accelerate launch`, and on every kind of task."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from optimum_camcut import PruningPlan, load_pruned


REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "examples" / "run_glue.py"
SAMPLE = REPOSITORY / "examples" / "data"


def command(model_path, output, data=SAMPLE, task="qnli", **flags):
    flags = {
        "model_name_or_path": model_path,
        "task_name": task,
        "dataset_path": data,
        "output_dir": output,
        "max_seq_length": 32,
        "max_train_samples": 83,  # no number of processes divides it
        "max_eval_samples": 41,
        "method": "smooth_cut",
        "sparsity": 0.5,
        "num_samples": 61,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        **flags,
    }
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def launch(processes, arguments):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={processes}"]
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    launcher += ["--multi_gpu"]  # the way to several processes on one machine, with or without a GPU
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


def test_one_and_two_processes_make_the_same_plan(model_path, tmp_path, monkeypatch):
    plans = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        if processes == 1:
            monkeypatch.setattr(sys, "argv", ["run_glue.py", *command(model_path, output)])
            runpy.run_path(str(SCRIPT), run_name="__main__")
        else:
            launch(processes, command(model_path, output))
        steps = json.loads((output / "trainer_state.json").read_text())["global_step"]
        assert steps == {1: 11, 2: 6}[processes]  # 83 examples in batches of 8 a process
        plans.append(PruningPlan.load(output))
        model = load_pruned(output)
        assert model.pruning_plan == plans[-1] and model.config.num_labels == 2
        results = json.loads((output / "all_results.json").read_text())
        assert 0 <= results["eval_accuracy"] <= 1 and results["eval_samples"] == 41
    assert plans[0] == plans[1]
    kept = [len(units) for name, units in plans[0].keep.items() if name.endswith("heads")]
    assert sum(kept) == 6


TASKS = {
    "sst2": (["sentence"], [0, 1], {"eval_accuracy"}),
    "cola": (["sentence"], [0, 1], {"eval_matthews_correlation"}),
    "mrpc": (["sentence1", "sentence2"], [0, 1], {"eval_accuracy", "eval_f1"}),
    "qqp": (["question1", "question2"], [0, 1], {"eval_accuracy", "eval_f1"}),
    "rte": (["sentence1", "sentence2"], [0, 1], {"eval_accuracy"}),
    "wnli": (["sentence1", "sentence2"], [0, 1], {"eval_accuracy"}),
    "stsb": (["sentence1", "sentence2"], [0.4, 3.2, 5.0], {"eval_pearson", "eval_spearmanr"}),
    "mnli": (["premise", "hypothesis"], [0, 1, 2], {"eval_accuracy", "eval_accuracy_mm"}),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_task(task, model_path, tmp_path, monkeypatch):
    columns, labels, metrics = TASKS[task]
    words = ["what", "is", "the", "first", "city", "of", "name", "year"]
    rows = [
        {
            **{column: " ".join(words[(i + j + k) % 8] for k in range(3 + i % 4)) for j, column in enumerate(columns)},
            "label": labels[i % len(labels)],
            "idx": i,
        }
        for i in range(40)
    ]
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    for split in ("train", *splits):
        (tmp_path / "data" / task).mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / task / f"{split}.parquet"))
    flags = command(model_path, tmp_path / "out", tmp_path / "data", task, method="taylor", granularity="neurons")
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert metrics <= set(results)
    model = load_pruned(tmp_path / "out")
    assert model.config.num_labels == (1 if task == "stsb" else len(labels))
    assert sum(len(units) for units in model.pruning_plan.keep.values()) == 56


def test_without_a_pruning_flag_it_fine_tunes(model_path, tmp_path, monkeypatch):
    flags = command(model_path, tmp_path / "out")
    for name in ("--method", "--sparsity", "--num_samples"):
        index = flags.index(name)
        del flags[index : index + 2]
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not (tmp_path / "out" / "pruning_plan.json").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
