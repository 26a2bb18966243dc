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
"""What a cut of the vocabulary means for a trainer: its tokenizer, and the numbers in its data."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..architectures.groups import PrunableGroup, find_groups, inner_model
from ..architectures.vocabulary import VOCABULARY
from ..planning.measure import longest_input
from ..planning.plan import PruningPlan
from ..scoring.batches import Batch, MappedBatches
from ..scoring.tokens import writes_tokens
from ..surgery.cut import positions_of
from ..surgery.vocabulary import check_generation
from ..vocabulary.numbers import Renumbering
from ..vocabulary.pieces import Pieces
from ..vocabulary.trim import check_trimmable, trimmed
from .sampling import scoring_dataloader
from .wrapping import bare_model


if TYPE_CHECKING:
    from transformers import Trainer as CamCutTrainer  # the one of this package, which imports this module

logger = logging.getLogger(__name__)

AT_ONCE = 256  # rows whose tokens are counted at once
COUNTED = ("input_ids", "attention_mask", "labels", "decoder_input_ids", "decoder_attention_mask")


def check_tokenizer(trainer: CamCutTrainer, model: nn.Module) -> None:
    """Raises `TypeError` or `ValueError` if a trainer has no tokenizer that can lose tokens, or its model names some
    in a way that they cannot be numbered anew in."""
    if trainer.processing_class is None:
        raise ValueError(
            "granularity 'vocabulary' trims the tokenizer with the model: give it to the trainer, "
            "processing_class=tokenizer, which also saves it beside the model"
        )
    Pieces.of(trainer.processing_class)
    if trainer.is_fsdp_enabled:
        raise ValueError("the vocabulary is not cut under FSDP, which shards the embeddings: cut it under DDP")
    check_generation(inner_model(model))


def needed_groups(trainer: CamCutTrainer) -> list[PrunableGroup]:
    """The groups of a trainer's model. Of tokens, also those are needed that its tokenizer cannot do without.

    Raises:
        `ValueError`: it cannot lose the others.
    """
    groups = find_groups(trainer.model, trainer.pruning_config.granularity)
    return [
        dataclasses.replace(
            group, needed=sorted({*group.needed, *check_trimmable(trainer.processing_class, group.size)})
        )
        if group.kind == VOCABULARY
        else group
        for group in groups
    ]


def token_batches(trainer: CamCutTrainer) -> Iterator[Batch]:
    """The tokens of all training examples, as they are before a collator masks some of them: `(1, tokens)` a batch. Of
    a stream, as many examples as are scored."""
    dataset, config = trainer.train_dataset, trainer.pruning_config
    count = len(dataset) if isinstance(dataset, Sized) else config.num_samples
    first = next(iter(dataset), None) if dataset is not None else None
    if not isinstance(first, Mapping) or "input_ids" not in first:  # it is tokenized on the way
        yield from scoring_dataloader(trainer, dataclasses.replace(config, num_samples=max(count, 1)))
        return
    numbers, writes = trainer.run.renumbering, writes_tokens(inner_model(bare_model(trainer)))
    rows = (row if numbers is None else numbers.example(row, sys.maxsize) for row in islice(iter(dataset), count))
    while chunk := list(islice(rows, AT_ONCE)):
        names = [name for name in COUNTED if (writes or name != "labels") and all(name in row for row in chunk)]
        batch = {
            name: torch.tensor([[number for row in chunk for number in _numbers(row[name])]], dtype=torch.int64)
            for name in names
            if not isinstance(chunk[0][name], float)
        }
        yield batch if numbers is None else numbers.batch(batch)


def _numbers(value: Any) -> list[int]:
    """The numbers in lists, arrays or tensors, one after the other."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [] if value is None else [int(value)]


def trim_for(trainer: CamCutTrainer, model: nn.Module, plan: PruningPlan) -> Callable[[], None]:
    """Before a cut: trims the tokenizer, if tokens go. Gives what is to be done after it: the trainer gets that
    tokenizer, and its data the numbers that the model then takes."""
    group = find_groups(model, (VOCABULARY,))[0] if VOCABULARY in plan.keep else None
    if group is None or len(plan.keep[VOCABULARY]) == group.size:
        return lambda: None
    before, keep = trainer.run.renumbering, positions_of(group, plan.keep[VOCABULARY])
    tokenizer, rows = trainer.processing_class, group.size
    if before is not None:  # the data still have the numbers from before an earlier cut
        tokenizer, keep, rows = before.tokenizer, [before.keep[position] for position in keep], before.rows
    new, inner = trimmed(tokenizer, keep, rows), inner_model(model)
    numbers = Renumbering(tokenizer, keep, rows, writes_tokens(inner), bool(inner.config.is_encoder_decoder))
    longest = longest_input(inner, sys.maxsize)

    def put() -> None:
        trainer.processing_class = trainer.callback_handler.processing_class = new
        vars(trainer).pop("_eval_dataloaders", None)  # of persistent workers, which read by the old numbers
        if trainer.tokenize_again(tokenizer, new):
            trainer.run.renumbering = None
            return
        collator, trainer.run.renumbering = trainer.data_collator, numbers
        inside = collator.collator if isinstance(collator, SpellingCollator) else collator
        trainer.data_collator = SpellingCollator(inside, numbers, longest)

    return put


@dataclasses.dataclass
class SpellingCollator:
    """A collator that gets examples without tokens that are gone.

    Args:
        collator: may put examples of one length together, and no others: then it gets them as they are.
        numbers (`Renumbering`): says which are gone.
        longest (`int`): tokens that the model takes.
    """

    collator: Any
    numbers: Renumbering
    longest: int

    def __call__(self, examples: Any) -> Any:
        spelled = [self.numbers.example(example, self.longest) for example in examples]
        if all(new is old for new, old in zip(spelled, examples)):
            return self.collator(examples)
        try:
            return self.collator(spelled)
        except (RuntimeError, TypeError, ValueError):
            return self.collator(examples)


def scoring_batches(trainer: CamCutTrainer) -> Any:
    """What a trainer scores and rebuilds on, by the numbers that its model takes."""
    batches, renumbering = trainer.get_scoring_dataloader(), trainer.run.renumbering
    return batches if renumbering is None else MappedBatches(batches, renumbering.batch)


def renumbered(trainer: CamCutTrainer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch by the numbers that the trainer's model takes."""
    run = trainer.run
    if run.renumbering is None or not isinstance(inputs, Mapping):
        return inputs
    run.gone = run.gone + run.renumbering.count_gone(inputs)  # on its device
    found = run.renumbering.batch(inputs)
    model = inner_model(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if "labels" in found and "decoder_input_ids" in found and shift is not None and found is not inputs:
        found["decoder_input_ids"] = shift(labels=found["labels"])  # of numbers that the collator gave it
    return found


def tell_gone(trainer: CamCutTrainer, what: str) -> None:
    """Says how many tokens were read as others since the last time."""
    gone, trainer.run.gone = trainer.run.gone.to(trainer.args.device, torch.int64), torch.zeros(())
    gone = int(trainer.accelerator.reduce(gone))  # of all processes
    if gone and trainer.is_world_process_zero():
        logger.warning(
            "%s read %d tokens that are gone, each as the longest token left that it begins with; the trimmed "
            "tokenizer writes them out. For the exact figures, encode the text by trainer.processing_class, for the "
            "saved model, or override tokenize_again",
            what,
            gone,
        )


class RenumbersTokens(Trainer):
    """`Trainer` whose data keep the tokens that they were made with, when those of its model go. Collators and
    functions that look at tokens work on as before: batches get the new numbers behind them, and what is generated
    gets the old ones."""

    run: Any

    def tokenize_again(self, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> bool:
        """Called when the vocabulary has been cut. Override it to put data encoded by the trimmed tokenizer in the
        place of `train_dataset` and `eval_dataset`, and a collator that pads with its numbers in that of
        `data_collator`; and return True. Otherwise, tokens get their new numbers batch by batch. Those that are gone
        are written out by others in each example; where that cannot be (places in the text are labels, an example has
        several texts, or columns of which it is not known what they stand for, or the collator takes examples of one
        length alone), each is read as the longest token left that it begins with.

        Args:
            before, after: the tokenizer that the trainer was given, and the trimmed one.

        Returns:
            Whether the data are encoded anew.
        """
        return False

    def _prepare_inputs(self, inputs: Any) -> Any:
        """That of `Trainer`, with the tokens' new numbers."""
        return renumbered(self, super()._prepare_inputs(inputs))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Any, Any]:
        """That of `Trainer`, with what is generated as the data number it."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        return loss, *old_numbers(self, inputs, logits, labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """That of `Trainer`; says how many tokens are gone."""
        before, self.run.gone = self.run.gone, torch.zeros(())
        output = super().evaluation_loop(*args, **kwargs)
        tell_gone(self, "evaluation")
        self.run.gone = before
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """That of `Trainer`; says the same."""
        self.run.gone = torch.zeros(())
        output = super()._inner_training_loop(*args, **kwargs)
        tell_gone(self, "training")
        return output


def old_numbers(trainer: CamCutTrainer, inputs: Mapping[str, Any], logits: Any, labels: Any) -> tuple[Any, Any]:
    """What was generated, and its labels, by the numbers of the data."""
    numbers = trainer.run.renumbering
    if numbers is None or not isinstance(logits, Tensor) or logits.is_floating_point() or not numbers.writes:
        return logits, labels
    given = inputs.get("labels")
    labels = None if labels is None else numbers.back(labels)
    if isinstance(labels, Tensor) and isinstance(given, Tensor):
        labels[..., : given.shape[-1]] = given.to(labels.device)
    return numbers.back(logits), labels
