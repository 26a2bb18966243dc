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
"""Any number of processes: the same scores and plans."""

import functools
import json

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from datasets import Dataset
from models import tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments
from workers import together

from optimum_camcut import CamCutTrainer, PruningConfig, find_groups, make_plan, score_groups
from optimum_camcut.scoring import SCORERS, WEIGHT_SCORERS
from optimum_camcut.scoring.sums import RunningSums


LENGTHS = {"uneven": (4, 4, 3, 5, 4, 2, 1), "fewer than processes": (3,)}  # examples in each batch
CASES = [
    *((("heads", "neurons"), method, False) for method in [*SCORERS, "flap", "wanda_sp", "obs"]),
    (("layers",), "block_influence", False),
    *((("heads", "layers"), method, False) for method in ("cam_cut", "smooth_cut")),
    *((("weights",), method, False) for method in WEIGHT_SCORERS),
    *((("weights",), method, True) for method in ("snip", "smooth_cam_cut")),  # with dropout
]


def name_of(case):
    return "-".join(["+".join(case[0]), case[1], *(["dropout"] if case[2] else [])])


def score_all(folder):
    """Scores by every method, and writes scores and plans of this process."""
    state, scores, plans, reductions = PartialState(), {}, {}, []
    forward, reduce = DistributedDataParallel.forward, dist.all_reduce

    def count(tensor, *args, **kwargs):
        reductions.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    def refuse(*args, **kwargs):
        raise AssertionError("scoring needs no synchronisation of gradients")

    dist.all_reduce, DistributedDataParallel.forward = count, refuse
    for length, sizes in LENGTHS.items():
        batches = [tiny_batch(batch_size=size, seed=seed) for seed, size in enumerate(sizes)]
        for case in CASES:
            granularity, method, dropout = case
            model = tiny_model("bert", hidden_dropout_prob=0.3)
            config = PruningConfig(
                method=method,
                granularity=granularity,
                sparsity=0.5,
                smooth_samples=2,
                dropout=dropout or None,
                seed=7,
                layer_unit="block" if method == "block_influence" else "sublayer",
            )
            groups = find_groups(model, granularity)
            reductions.clear()
            found = score_groups(model, groups, batches, config, disable_tqdm=True)
            assert len(reductions) <= 2  # that all are well, and the sums
            key = f"{length} {name_of(case)}"
            scores |= {f"{key} {name}": values for name, values in found.items()}
            plans[key] = make_plan(found, groups, config).to_dict()["keep"]
    DistributedDataParallel.forward, dist.all_reduce = forward, reduce
    for length in (13, 2):
        rows = [tiny_batch(batch_size=1, seed=seed, padding=False) for seed in range(length)]
        data = Dataset.from_list([{key: value[0].tolist() for key, value in row.items()} for row in rows])
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=2, report_to=[], disable_tqdm=True, max_steps=1, save_strategy="no"
        )
        trainer = CamCutTrainer(
            tiny_model("bert"), arguments, train_dataset=data, pruning_config=PruningConfig(sparsity=0.5, rounds=2)
        )
        scores |= {f"trainer {length} {name}": values for name, values in trainer.score().items()}
        plans[f"trainer {length}"] = trainer.prune().to_dict()["keep"]
        assert all(value.device.type == "cpu" for value in trainer.model.state_dict().values())
    scores |= score_and_evaluate_ignored(folder)
    save_file(scores, f"{folder}/{state.num_processes}-{state.process_index}.safetensors")
    with open(f"{folder}/{state.num_processes}-{state.process_index}.json", "w") as file:
        json.dump(plans, file)


def score_and_evaluate_ignored(folder):
    """With batches in which no label counts: every process skips others, and the loss of evaluation is their mean."""
    batch = tiny_batch(batch_size=12, padding=False)
    ids = batch["input_ids"].tolist()
    labels = [[-100] * len(row) if number // 2 in (1, 4) else row for number, row in enumerate(ids)]
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    config = PruningConfig(method="taylor", sparsity=0.5)
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    model = tiny_model("bert", "MaskedLM")
    model.accepts_loss_kwargs = False  # else Trainer multiplies BERT's mean loss by the number of processes
    trainer = CamCutTrainer(model, arguments, eval_dataset=data, pruning_config=config)
    batches = [{name: torch.tensor(values) for name, values in data[i : i + 2].items()} for i in range(0, 12, 2)]
    trainer.get_scoring_dataloader = lambda: batches
    found = {f"trainer ignored {name}": values for name, values in trainer.score().items()}
    return {**found, "trainer ignored loss": torch.tensor([trainer.evaluate()["eval_loss"]])}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """For a number of processes, what each of them found."""
    folder = tmp_path_factory.mktemp("processes")

    @functools.cache
    def run(number):
        for worker in together(number, score_all, str(folder)):
            code, output = worker.end(200)
            assert code == 0, output
        names = [folder / f"{number}-{index}" for index in range(number)]
        return [
            (load_file(f"{name}.safetensors"), json.loads(name.with_suffix(".json").read_text())) for name in names
        ]

    return run


@pytest.mark.parametrize(
    "number", [pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)]
)
def test_the_same_scores_and_plans(results, number):
    [(scores, plans)] = results(1)
    assert len(plans) == 2 * len(CASES) + 2
    for found, planned in results(number):
        assert planned == plans
        assert found.keys() == scores.keys()
        for name, values in found.items():
            # Within the rounding of float32: 2**-24 of each value, and again when it is rounded.
            torch.testing.assert_close(values, scores[name], rtol=2**-23, atol=0)


def test_the_methods_differ(results):
    """So that equal results do not come from comparing nothing."""
    [(_, plans)] = results(1)
    for length in LENGTHS:
        of_units = [json.dumps(plans[f"{length} heads+neurons-{method}"]) for method in SCORERS]
        assert len(set(of_units)) >= len(of_units) - 1  # taylor and fisher agree on one batch
        of_weights = [json.dumps(plans[f"{length} {name_of(case)}"]) for case in CASES if case[0] == ("weights",)]
        assert len(set(of_weights)) == len(of_weights)


@pytest.mark.parametrize(("compact", "bits"), [(False, 50), (True, 27)])
def test_the_order_of_the_additions_hardly_matters(compact, bits):
    """So that processes which add up in another order rank single weights the same."""
    batches = list(torch.rand(64, 300, 70) ** 8)  # of many magnitudes
    exact, sums = sum(batch.double() for batch in batches), []
    for order in (batches, batches[::-1], batches[::2] + batches[1::2]):
        running = RunningSums()
        running.reserve_rows("w", batches[0], compact)
        for batch in order:
            rows = [slice(0, 100), slice(100, 300)]
            running.add_rows("w", [(each, batch[each].clone()) for each in rows])
        total = running.values["w"].double() + running.values.get("w.lost", torch.zeros(())).double()
        torch.testing.assert_close(total, exact, rtol=2.0**-bits, atol=0)
        sums.append(running.reduce_rows(torch.device("cpu"))["w"])
    torch.testing.assert_close(sums[0], exact.float(), rtol=2**-23, atol=0)
    assert (sums[0] != sums[1]).double().mean() < 0.1  # rounded to float32, most are the same bits
    assert (sum(batches) != sum(batches[::-1])).double().mean() > 0.5  # as plain float32 is not
