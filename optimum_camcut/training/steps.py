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
"""The steps of a run, from its first phase to its report: what `CamCutTrainer.train` and `prune` do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    PreTrainedModel,
    Trainer,
)
from transformers.trainer_utils import TrainOutput

from ..architectures.groups import WEIGHTS, PrunableGroup, find_groups, inner_model
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from ..methods import get_scorer, warn_without_rebuild
from ..planning.allocation import check_budget, make_plan
from ..planning.latency import latency_table
from ..planning.plan import PruningPlan
from ..reporting.report import uncut_scores
from ..scoring.loop import Scores, score_groups, scoring_parts
from ..search.search import search_plan
from ..surgery.cut import apply_plan
from ..surgery.rebuild import reconstruct
from ..utils.copies import copy_model
from ..utils.files import write_errors
from ..utils.sharding import gather, is_sharded
from ..vocabulary.pieces import with_tokenizer
from .checks import check_model, overrides, warn_of_float16
from .logs import (
    cut_figures,
    logged_dense_metrics,
    show_in_tensorboard,
    tensorboard_run,
    timed,
)
from .losses import scoring_loss
from .phases import DENSE, phase_arguments, phase_names, round_config
from .progress import load_teacher, remove_progress, save_teacher, scores_file, search_file
from .records import measured, to_report
from .resume import (
    phase_to_resume,
    remove_unfinished_checkpoints,
)
from .run_report import can_report
from .tokens import needed_groups, scoring_batches, token_batches, trim_for
from .wrapping import bare_model, free_training_state, gather_model, place_model, shard_model


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as CamCutTrainer  # the one of this package, which imports this module


def prepare(trainer: CamCutTrainer) -> None:
    """Finds out what cannot be done before there is anything to lose. The model is then whole on every process."""
    config = trainer.pruning_config
    has_data = trainer.train_dataset is not None or overrides(trainer, Trainer, "get_train_dataloader")
    if not has_data and (config.finetunes or config.dense_epochs):
        raise ValueError("train_dataset is None: there is nothing to train on")
    check_own_model(trainer)
    warn_without_rebuild(config.method, config.granularity, config.recovery)
    measure_latency(trainer)
    check_budget(needed_groups(trainer), config, trainer.latency_table)
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        shard_model(trainer)  # only the first process has read the weights: this spreads them
    gather_model(trainer)


def start_or_resume(trainer: CamCutTrainer, resume: str | bool | None) -> tuple[list[str], str | None]:
    """The phases to go through, and the checkpoint that the first of them goes on from. Clears the folder of what
    earlier runs have left half done."""
    config, phases = trainer.pruning_config, phase_names(trainer.pruning_config)
    trainer.run.root = root = Path(trainer.args.output_dir)
    pruned_before = getattr(inner_model(trainer.model), "pruning_plan", None) is not None
    first, checkpoint = phase_to_resume(resume, phases, root, config, pruned_before)
    trainer.accelerator.wait_for_everyone()  # all have looked before anything goes
    if trainer.is_world_process_zero():
        with write_errors(root, "Training would have nowhere to save to: choose another output_dir."):
            if not resume:
                remove_progress(root)
            for phase in phases:
                remove_unfinished_checkpoints(root / phase)
            config.save_pretrained(root)
    trainer.accelerator.wait_for_everyone()
    return phases[phases.index(first) :], checkpoint


def restore(trainer: CamCutTrainer, checkpoint: str) -> None:
    """Cuts the model as a checkpoint was cut, so that the checkpoint's weights fit."""
    if trainer.pruning_config.dense_epochs:
        trainer.run.evaluations.forget()  # of the model before these epochs
    plan = PruningPlan.load(checkpoint)
    cut_tokens(trainer, plan)
    if trainer.pruning_config.distill_weight > 0:
        trainer.dense_model = as_teacher(trainer, load_teacher(trainer.run.root, bare_model(trainer)))
    apply(trainer, plan)
    trainer.run.unlogged = None  # the history of the checkpoint has them
    trainer.run.evaluations.dense = logged_dense_metrics(Path(checkpoint)) or trainer.run.evaluations.dense


def score(trainer: CamCutTrainer) -> Scores:
    """Scores of all that the config names, each kind by its own examples."""
    config, model, scores = trainer.pruning_config, bare_model(trainer), Scores()
    for groups, own in scoring_parts(find_groups(model, config.granularity), config):
        source = get_scorer(own.method, own.granularity).source
        batches = {"weights": lambda: None, "tokens": lambda: token_batches(trainer)}
        dropout = WEIGHTS in own.granularity if own.dropout is None else own.dropout
        scores |= score_groups(
            model,
            groups,
            batches.get(source, lambda: scoring_batches(trainer))(),
            dataclasses.replace(own, dropout=dropout),
            loss_function=partial(scoring_loss, trainer),
            disable_tqdm=trainer.args.disable_tqdm,
            progress_file=None if source == "tokens" else trainer.run.progress_file,
        )
    return scores


def score_resumably(trainer: CamCutTrainer, phase: str) -> None:
    """Scores for a phase, unless there are scores from before the first."""
    if trainer.scores is not None:
        return
    trainer.run.progress_file = scores_file(trainer.run.root, phase)
    try:
        trainer.score()
    finally:
        trainer.run.progress_file = None


def cut(trainer: CamCutTrainer, phase: str, before: list[PrunableGroup], initial: PreTrainedModel | None) -> None:
    """Cuts what a round removes, and rebuilds if the config says so.

    Args:
        before: the groups that the run began with.
        initial: the model to rewind to, if any.
    """
    config = trainer.pruning_config
    with timed("planning and cutting", trainer.is_world_process_zero()):
        now = find_groups(trainer.model, config.granularity)
        if trainer.pruning_plan is None and not trainer.is_fsdp_enabled:
            trainer.run.report.plan_by_baselines(inner_model(bare_model(trainer)), now, config, trainer.latency_table)
        plan = plan_by_scores(trainer, round_config(config, phase, before, now, trainer.latency_table), phase)
        gather_model(trainer)
        cut_tokens(trainer, plan)
        if config.distill_weight > 0:
            keep_dense_model(trainer)  # before a rewind: the teacher is the trained model
        if initial is not None:
            rewound = copy_model(initial)
            if trainer.pruning_plan is not None:
                apply_plan(rewound, trainer.pruning_plan)
            trainer.model.load_state_dict(rewound.state_dict())
        # A rebuild follows the dense model; a round that trains, the model that it began with.
        keep_copy = config.finetunes and config.rebuilds
        started_with = copy_model(bare_model(trainer)) if keep_copy else None
        if set(plan.keep) != {VOCABULARY}:
            apply(trainer, plan)
    if config.rebuilds:
        rebuild(trainer, started_with or trainer.dense_model)


def finish(trainer: CamCutTrainer, folder: str) -> None:
    """Times the models and writes the report."""
    trainer.run.unfinished = False
    shard_model(trainer)
    if trainer.is_world_process_zero():
        remove_progress(trainer.run.root)
        config, model = (
            trainer.pruning_config,
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
        )
        if not isinstance(model, PreTrainedModel):
            return  # a report says how to load the model, which such a module's own code does
        report = trainer.run.report
        if report.times and WEIGHTS not in config.granularity and not trainer.is_fsdp_enabled and can_report():
            with timed("timing the dense and the pruned model", trainer.is_world_process_zero()):
                report.time(model, config, trainer.dense_model)
        report.write(folder, *to_report(trainer))


def plan_by_scores(trainer: CamCutTrainer, config: PruningConfig, phase: str | None = None) -> PruningPlan:
    """What to keep, by `trainer.scores`.

    Args:
        config: of this round.
        phase: of a run, whose search can be resumed.
    """
    measure_latency(trainer)
    groups = find_groups(bare_model(trainer), config.granularity)
    if VOCABULARY in config.granularity:
        trainer.scores = with_tokenizer(trainer.scores, trainer.processing_class)
    if config.allocation == "search":
        with timed("the search", trainer.is_world_process_zero()):
            plan = search_plan(
                bare_model(trainer),
                groups,
                trainer.scores,
                config,
                scoring_batches(trainer),
                latency=trainer.latency_table,
                progress_file=None if phase is None else search_file(trainer.run.root, phase),
                disable_tqdm=trainer.args.disable_tqdm,
            )
    else:
        plan = make_plan(trainer.scores, groups, config, latency=trainer.latency_table)
    trainer.run.report.scores = uncut_scores(trainer.scores, groups)
    return dataclasses.replace(plan, config=dataclasses.replace(trainer.pruning_config))


def measure_latency(trainer: CamCutTrainer) -> None:
    """Measures, once, what `budget="latency"` counts in; every process gets the table of the first."""
    if trainer.pruning_config.budget != "latency" or trainer.latency_table is not None:
        return
    model = bare_model(trainer)
    if trainer.is_fsdp_enabled:  # until it is sharded, the model is on the CPU
        model = gather(model) if is_sharded(model) else copy_model(model)
        if trainer.is_world_process_zero():  # the others measure nothing, and may not have the weights yet
            place_model(trainer, model)
    with timed("measuring latency", trainer.is_world_process_zero()):
        trainer.latency_table = latency_table(model, trainer.pruning_config, disable_tqdm=trainer.args.disable_tqdm)


def keep_dense_model(trainer: CamCutTrainer) -> None:
    """A copy of the model before its first cut; if it teaches, also on disk, for a run that is resumed."""
    if trainer.dense_model is not None:
        return
    trainer.dense_model = as_teacher(trainer, copy_model(bare_model(trainer)))
    if trainer.pruning_config.distill_weight > 0 and trainer.is_world_process_zero():
        save_teacher(trainer.run.root, trainer.dense_model)


def as_teacher(trainer: CamCutTrainer, model: PreTrainedModel) -> PreTrainedModel:
    """A model that is not trained, where it will compute."""
    place_model(trainer, model)
    return model.eval().requires_grad_(False)


def apply(trainer: CamCutTrainer, plan: PruningPlan) -> PruningPlan:
    """Cuts the model, and forgets what was known of its weights.

    Returns:
        `PruningPlan`: also of what earlier rounds have cut.
    """
    gather_model(trainer)
    config, model = trainer.pruning_config, bare_model(trainer)
    if set(plan.keep) != {VOCABULARY}:
        cut_tokens(trainer, plan)
        if config.recovery == "reconstruct" or config.distill_weight > 0:
            keep_dense_model(trainer)
    if getattr(inner_model(model), "pruning_plan", None) is None:
        trainer.run.evaluations.dense = measured(trainer)
    if trainer.run.groups_before is None:
        trainer.run.groups_before = find_groups(model, config.granularity)
    trainer.run.evaluations.forget()
    trainer.run.saved = {}
    put_tokenizer = trim_for(trainer, model, plan)  # which may fail: before anything is cut
    apply_plan(model, plan)
    trainer.model = trainer.model_wrapped = model
    put_tokenizer()
    free_training_state(trainer)
    trainer.scores, trainer.pruning_plan = None, inner_model(model).pruning_plan  # with what earlier rounds have cut
    now = find_groups(model, config.granularity)
    trainer.run.unlogged = cut_figures(
        trainer.pruning_plan,
        trainer.run.groups_before,
        now,
        config,
        trainer.latency_table,
        trainer.run.evaluations.dense,
    )
    return trainer.pruning_plan


def cut_tokens(trainer: CamCutTrainer, plan: PruningPlan) -> None:
    """Cuts the vocabulary alone, before all else: what teaches, or is rebuilt from, then reads the same tokens."""
    before = getattr(inner_model(bare_model(trainer)), "pruning_plan", None)
    if VOCABULARY in plan.keep and (before is None or before.keep.get(VOCABULARY) != plan.keep[VOCABULARY]):
        keep, sizes = {VOCABULARY: plan.keep[VOCABULARY]}, {VOCABULARY: plan.sizes[VOCABULARY]}
        apply(trainer, PruningPlan(keep, sizes, plan.model_type, plan.config))


def rebuild(trainer: CamCutTrainer, dense_model: PreTrainedModel) -> None:
    """Makes the cut model follow another one."""
    for model in (trainer.model, dense_model):
        place_model(trainer, model)
    with timed("reconstruction", trainer.is_world_process_zero()):
        reconstruct(
            trainer.model,
            dense_model,
            trainer.pruning_plan,
            scoring_batches(trainer),
            disable_tqdm=trainer.args.disable_tqdm,
        )


def log_plan(trainer: CamCutTrainer) -> None:
    """Logs a cut that is not logged yet, as `Trainer` logs its losses; TensorBoard shows the plan's table, too."""
    metrics, trainer.run.unlogged = trainer.run.unlogged, None
    if metrics is None:
        return
    trainer.log(metrics)
    show_in_tensorboard(trainer, "pruning/plan", trainer.pruning_plan)


def check_last_cut(trainer: CamCutTrainer) -> None:
    """A model that was cut in part must not train on as if it were done."""
    if trainer.run.half_cut:
        raise ValueError(
            "this trainer was stopped between its first cut and its last, so its model is neither whole nor as "
            "small as it should be. Make a new trainer with the model from before: train() starts anew, and "
            "train(resume_from_checkpoint=True) goes on from the last checkpoint"
        )


def check_own_model(trainer: CamCutTrainer) -> None:
    check_model(trainer, bare_model(trainer) if trainer.is_fsdp_enabled else trainer.model, trainer.pruning_config)


@contextmanager
def one_model(trainer: CamCutTrainer, trial: Any) -> Iterator[None]:
    """Calls `model_init` once: `Trainer.train` would call it again in every phase and lose the cut."""
    model_init = trainer.model_init
    if model_init is not None and trainer.pruning_plan is None:
        trainer.model = trainer.model_wrapped = trainer.call_model_init(trial)
        trainer._move_model_to_device(trainer.model, trainer.args.device)
    trainer.model_init = None
    try:
        yield
    finally:
        trainer.model_init = model_init


def run_phases(
    trainer: CamCutTrainer, resume: str | bool | None, fit: Callable[[str | bool | None], TrainOutput], fresh: bool
) -> TrainOutput:
    """Goes through the phases of a run up to its report.

    Args:
        resume: `resume_from_checkpoint` of `Trainer.train`.
        fit: that, of a checkpoint or None.
        fresh: `model_init` has just made the model.

    Returns:
        `TrainOutput`: of the last phase that trained; zero steps if none did.
    """
    config, run = trainer.pruning_config, trainer.run
    if config.finetunes or config.dense_epochs:
        warn_of_float16(trainer.model)
    if run.unfinished and config.dense_epochs and not fresh and not resume:
        logger.warning(
            "an earlier train() of this trainer was stopped before its first cut; this one begins with the dense "
            "epochs again, from the weights that the model has now. To go on from the last checkpoint, call "
            "train(resume_from_checkpoint=True)"
        )
    prepare(trainer)
    initial = copy_model(bare_model(trainer)) if config.rewind else None
    phases, checkpoint = start_or_resume(trainer, resume)
    run.unfinished = True
    before = find_groups(trainer.model, config.granularity)
    output = TrainOutput(0, 0.0, {})
    for phase in phases:
        resumed, checkpoint = checkpoint, None
        with tensorboard_run(trainer, phase), phase_arguments(trainer.args, config, phase):
            if phase == DENSE:
                output = fit(resumed)
                continue
            if resumed is not None:
                restore(trainer, resumed)
            else:
                score_resumably(trainer, phase)
                run.half_cut = True
                cut(trainer, phase, before, initial)
            run.half_cut = phase != phases[-1]
            if config.finetunes:
                output = fit(resumed)
            log_plan(trainer)  # has happened if the model was trained
    return output
