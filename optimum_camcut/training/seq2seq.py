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
"""`CamCutSeq2SeqTrainer`, and one that does not prune."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from transformers import Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput

from .trainer import CamCutTrainer


class WholeSeq2SeqTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that measures every row once, in the order of the rows. The one of transformers also gathers
    what several processes repeat to fill their last batch, and sorts by length if training does."""

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        """That of `torch.utils.data.DataLoader`."""

    def evaluation_loop(self, *positional: Any, **keywords: Any) -> EvalLoopOutput:
        gather = self.accelerator.gather_for_metrics
        if "use_gather_object" in inspect.signature(gather).parameters:
            gather = functools.partial(gather, use_gather_object=self.args.eval_use_gather_object)
        self.gather_function = gather
        return super().evaluation_loop(*positional, **keywords)


class CamCutSeq2SeqTrainer(CamCutTrainer, WholeSeq2SeqTrainer):
    """`CamCutTrainer` that evaluates what the model generates, as `Seq2SeqTrainer` does.

    Args:
        args (`Seq2SeqTrainingArguments`): with `predict_with_generate`.
        positional, kwargs: those of `CamCutTrainer`.
    """
