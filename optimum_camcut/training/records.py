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
"""What is known of the weights in memory: where they were saved, and what was measured of them. Card and report tell
it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..checkpoints.checkpoint import PrunedCheckpoint
from ..checkpoints.places import Place, first_with_plan, in_folder, on_hub
from ..planning.plan import PLAN_NAME, PruningPlan
from ..reporting.card import write_card
from .logs import read_state


if TYPE_CHECKING:
    from transformers import Trainer as CamCutTrainer  # the one of this package, which imports this module


def write_card_and_report(trainer: CamCutTrainer, folder: str) -> None:
    """Brings the part on pruning up to date, and the report if there is one, if the model is pruned. Metrics of
    other weights are left out."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero() and trainer.pruning_plan is not None and not isinstance(model, PreTrainedModel):
        trainer.pruning_plan.save(Path(folder))  # beside a state dict that fits once the plan is applied
        trainer.pruning_config.save_pretrained(folder)
    if trainer.is_world_process_zero() and isinstance(model, PrunedCheckpoint):
        write_card(folder, model, trainer.hub_model_id, trainer.args.hub_revision, metrics_of(trainer))
        trainer.run.report.update(partial(to_report, trainer))


def note_saved(trainer: CamCutTrainer, folder: str | Path) -> None:
    """The weights as they are were saved in a folder. The last one comes first."""
    trainer.run.saved.pop(Path(folder), None)
    trainer.run.saved = {Path(folder): weights_step(trainer), **trainer.run.saved}


def forget_weights(trainer: CamCutTrainer, resumed: str | None) -> None:
    """The weights are about to change.

    Args:
        resumed: the checkpoint that they come from, if any.
    """
    trainer.run.evaluations.forget()
    step = read_state(Path(resumed)).get("global_step") if resumed else None
    trainer.run.saved = {Path(resumed): step} if resumed and step is not None else {}
    trainer.run.best_loaded = False


def weights_step(trainer: CamCutTrainer) -> int:
    """That the weights have as they are."""
    return trainer.state.best_global_step if trainer.run.best_loaded else trainer.state.global_step


def to_report(trainer: CamCutTrainer) -> tuple[PreTrainedModel, Place | None, dict[str, dict[str, float]]]:
    """The model, where it can be loaded from, and what was measured."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.hub_model_id is not None:
        return model, on_hub(trainer.hub_model_id, trainer.args.hub_revision), metrics_of(trainer)
    folders = [folder for folder, step in trainer.run.saved.items() if step == weights_step(trainer)]
    places = [(each / PLAN_NAME, in_folder(each.as_posix(), "the training ran in")) for each in folders]
    return model, first_with_plan(model.pruning_plan, places), metrics_of(trainer)


def metrics_of(trainer: CamCutTrainer) -> dict[str, dict[str, float]]:
    return {"dense": trainer.run.evaluations.dense, "pruned": measured(trainer)}


def record(trainer: CamCutTrainer, metrics: Mapping[str, float]) -> None:
    """What was measured of the model as it is."""
    trainer.run.evaluations.record(trainer.state, plan_in_memory(trainer), metrics)


def measured(trainer: CamCutTrainer) -> dict[str, float]:
    return trainer.run.evaluations.current(trainer.state, plan_in_memory(trainer))


def plan_in_memory(trainer: CamCutTrainer) -> PruningPlan | None:
    """That of the model, which may have been cut by `apply_plan` outside of this trainer."""
    return getattr(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False), "pruning_plan", None)
