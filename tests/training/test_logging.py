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
"""What the trainer says: the time of each phase, the plan in TensorBoard's own files, progress bars."""

import contextlib
import json
import logging
import re

import pytest
from marks import few
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import make_trainer, pruning
from workers import together

from optimum_camcut import find_groups
from optimum_camcut.planning.measure import count_parameters


SCORING_AND_CUT, TIMING = ("scoring by taylor", "planning and cutting"), "timing the dense and the pruned model"


class Records(logging.Handler):
    """What the package says at INFO."""

    def __enter__(self):
        self.said, self.logger = [], logging.getLogger("optimum_camcut")
        self.before = self.logger.level
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *error):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)

    def emit(self, record):
        self.said.append(record.getMessage())

    def phases(self):
        times = [re.fullmatch(r"(.*) took (\d+\.\d\d) s", message) for message in self.said]
        return [match[1] for match in times if match]


def events(folder):
    """The runs below a folder: name of the run -> tag -> steps and values; texts likewise."""
    runs = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        read = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
        read.Reload()
        run = runs.setdefault(str(path.parent.relative_to(folder)), {})
        for tag in read.Tags()["scalars"]:
            run.setdefault(tag, []).extend((event.step, event.value) for event in read.Scalars(tag))
        for tag in read.Tags()["tensors"]:
            run.setdefault(tag, []).extend(
                (event.step, event.tensor_proto.string_val[0].decode()) for event in read.Tensors(tag)
            )
    return runs


def pruning_tags(run):
    """`train/pruning/NAME` -> its only value, without texts."""
    values = {tag.removeprefix("train/pruning/"): found for tag, found in run.items() if "train/pruning/" in tag}
    assert all(len(found) == 1 for found in values.values())
    return {tag: found[0][1] for tag, found in values.items() if isinstance(found[0][1], float)}


# --- the time of each phase -----------------------------------------------------------------------------------------


@pytest.mark.report
@pytest.mark.parametrize(
    "changes, expected",
    few(
        [
            ({"dense_epochs": 1}, ["dense training", *SCORING_AND_CUT, "recovery training", TIMING]),
            ({"recovery": "none"}, [*SCORING_AND_CUT, TIMING]),
            ({"recovery": "reconstruct"}, [*SCORING_AND_CUT, "reconstruction", TIMING]),
            ({"rounds": 2}, [*SCORING_AND_CUT, "recovery training"] * 2 + [TIMING]),
        ],
        3,
        rows=True,
    ),
)
def test_every_phase_says_how_long_it_took(changes, expected, tmp_path):
    trainer = make_trainer(tmp_path, pruning(**changes))
    with Records() as records:
        trainer.train()
    assert records.phases() == expected


def test_the_steps_apart_say_it_too(tmp_path):
    trainer = make_trainer(tmp_path, pruning())
    with Records() as records:
        trainer.score()
        trainer.prune()
        trainer.train()
    assert records.phases() == [*SCORING_AND_CUT, "recovery training"]


# --- loggers --------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(
        tmp_path / "out", pruning(dense_epochs=1), report_to=["tensorboard"], eval_strategy="epoch", num_train_epochs=2
    )
    before = count_parameters(trainer.model)
    trainer.train()
    groups = find_groups(trainer.model)

    runs = events(tmp_path)  # here, too: nothing is written beside output_dir
    assert len(runs) == 2
    dense, pruned = sorted(runs, key=lambda name: not name.endswith("_dense"))
    assert dense == f"{pruned}/_dense" and pruned.startswith("out/runs/")
    assert [step for step, _ in runs[dense]["train/loss"]] == [2, 4, 6]
    assert [step for step, _ in runs[pruned]["train/loss"]] == [2, 4, 6, 8, 10, 12]
    assert not any("pruning" in tag for tag in runs[dense])

    logged = pruning_tags(runs[pruned])
    assert logged["parameters_before"] == before and logged["parameters"] == count_parameters(trainer.model)
    kept = {f"{group.kind}/{group.name.split('.')[1]}": group.size for group in groups}
    assert kept == {name: logged[name] for name in kept}
    assert logged["heads/all"] == 6 and logged["neurons/all"] == round(3 * 37 / 2)
    units = {"heads": (12, 4 * 32 * 8), "neurons": (111, 2 * 32)}  # how many, and the weights of each
    biases = {"heads": 3 * 8, "neurons": 1}
    cost = {kind: weights + biases[kind] for kind, (_, weights) in units.items()}
    left = sum(cost[kind] * logged[f"{kind}/all"] for kind in units)
    assert logged["sparsity"] == pytest.approx(1 - left / sum(cost[kind] * units[kind][0] for kind in units))
    assert [(6, pytest.approx(logged["dense_eval_loss"]))] == runs[dense]["eval/loss"]
    assert {step for step, _ in runs[pruned]["train/pruning/parameters"]} == {0}

    ((_, text),) = runs[pruned]["train/pruning/plan/text_summary"]
    assert str(trainer.pruning_plan) in text


def test_the_plan_is_in_the_history_once(tmp_path):
    """So that a checkpoint has it, and a run that goes on from there does not log it again."""

    def logged(history):
        return [entry for entry in history if "pruning/parameters" in entry]

    whole = make_trainer(tmp_path, pruning(), save_strategy="steps", save_steps=3, num_train_epochs=2)
    whole.train()
    (entry,) = logged(whole.state.log_history)
    assert entry["step"] == 0 and entry["pruning/heads/all"] == 6
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert logged(saved["log_history"]) == [entry]
    again = make_trainer(tmp_path, pruning(), save_strategy="steps", save_steps=3, num_train_epochs=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(again.state.log_history) == [entry]


@pytest.mark.parametrize("apart", [False, True], ids=["train", "steps apart"])
def test_a_cut_without_training_is_logged(apart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(tmp_path / "out", pruning(recovery="none"), report_to=["tensorboard"])
    trainer.prune() if apart else trainer.train()
    trainer.evaluate()
    ((name, run),) = events(tmp_path).items()
    assert pruning_tags(run)["heads/all"] == 6 and run["eval/loss"]
    assert name.startswith("out/runs/")


@pytest.mark.parametrize("recovery", ["none", "reconstruct", "finetune"])
def test_every_round_is_a_run_of_its_own(recovery, tmp_path, monkeypatch):
    """Also where nothing is trained in between, and after an evaluation; nothing is beside `output_dir`."""
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(
        tmp_path / "out", pruning(recovery=recovery, rounds=3), report_to=["tensorboard"], max_steps=1
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    runs = events(tmp_path)
    main = min(runs, key=len)
    assert main.startswith("out/runs/") and set(runs) == {main, f"{main}/_round-1", f"{main}/_round-2"}
    kept = [pruning_tags(runs[name])["heads/all"] for name in (f"{main}/_round-1", f"{main}/_round-2", main)]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 6 and kept[0] > 6
    assert [name for name, run in runs.items() if "eval/loss" in run] == [main] and len(runs[main]["eval/loss"]) == 2


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"granularity": ("layers",), "method": "random"}, {"attention/all", "feed_forward/all", "sparsity"}),
        ({"granularity": ("weights",), "method": "magnitude"}, {"weights/0", "weights/all", "sparsity"}),
    ],
)
def test_other_granularities(changes, expected, tmp_path):
    trainer = make_trainer(tmp_path, pruning(**changes, recovery="none"))
    before = count_parameters(trainer.model)
    trainer.train()
    (entry,) = trainer.state.log_history
    logged = {name.removeprefix("pruning/"): value for name, value in entry.items()}
    assert expected <= set(logged)
    assert logged["parameters_before"] == before
    zeros = sum(int((parameter == 0).sum()) for parameter in trainer.model.parameters())
    masked = zeros if changes["granularity"] == ("weights",) else 0
    assert logged["parameters"] == count_parameters(trainer.model) - masked < before
    assert 0.4 < logged["sparsity"] < 0.6


def test_only_the_main_process_writes(tmp_path):
    """Two processes: one set of files, the plan in it once."""
    for code, output in [worker.end() for worker in together(2, train_with_tensorboard, tmp_path)]:
        assert code == 0, output
    runs = [run for run in events(tmp_path).values() if any("pruning" in tag for tag in run)]
    assert len(runs) == 1 and pruning_tags(runs[0])["heads/all"] == 6
    said = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("said-*.json"))]
    assert sorted(said, key=len) == [[], [*SCORING_AND_CUT, "recovery training", TIMING]]


def train_with_tensorboard(folder):
    trainer = make_trainer(folder / "out", pruning(), report_to=["tensorboard"])
    with Records() as records:
        trainer.train()
    (folder / f"said-{trainer.args.process_index}.json").write_text(json.dumps(records.phases()))


# --- progress bars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disable", [False, True])
def test_progress_bars_obey_the_arguments(disable, tmp_path, monkeypatch, capsys):
    make_trainer(tmp_path, pruning(recovery="reconstruct"), disable_tqdm=disable).train()
    monkeypatch.setenv("CAMCUT_CACHE", str(tmp_path / "cache"))
    timed = pruning(recovery="none", budget="latency", sparsity=0.1, sequence_length=8, latency_batch_size=1)
    with contextlib.suppress(ValueError):  # whether a model this small can become faster is another matter
        make_trainer(tmp_path, timed, disable_tqdm=disable).train()
    shown = capsys.readouterr().err
    for bar in ("taylor:", "reconstruct:", "latency:"):
        assert (bar in shown) != disable
