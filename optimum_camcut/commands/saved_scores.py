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
"""Scores in a file, with what they depend on: they stand in for those that a job would compute, and for no others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import NOISE, PruningConfig
from ..methods import get_scorer
from ..utils.fields import differences
from ..utils.files import replacing
from .job import Job, dataset_name
from .options import DATA, SCORING_FIELDS


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..scoring.loop import Scores


SCORES_NAME, SUMMARY_NAME = "scores.safetensors", "scores.md"
ADVICE = "score again with optimum-cli camcut score"
# Which examples there are; how many go through the model at once counts for some methods only.
DATA_FIELDS = tuple(option.name for option in DATA if option.name != "batch_size")


@dataclass(frozen=True)
class Origin:
    """What scores depend on.

    Args:
        settings (`Mapping[str, Any]`): fields of `PruningConfig`.
        model (`Mapping[str, Any]`): its name, its class, the dtype, and a number for its weights.
        data (`Mapping[str, Any]`): the flags that name them.
        examples (`int`, *optional*): a number for those scored on; None if the method reads none.
        batch_size (`int`, *optional*): of each batch, where the scores depend on it: of single weights, and by smooth
            methods, whose noise goes by the number of the batch. Else None.
    """

    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    examples: int | None
    batch_size: int | None = None

    @classmethod
    def of(cls, job: Job, arguments: argparse.Namespace) -> Origin:
        """What scores of a model as it is would depend on."""
        config, examples, batch_size = job.trainer.pruning_config, None, None
        scorer = get_scorer(config.method, config.granularity)
        if scorer.source != "weights":
            rows = list(job.trainer.get_scoring_dataloader().dataset)
            examples = job.task.digest(rows)
            if scorer.smooth or "weights" in config.granularity:
                batch_size = job.trainer.args.per_device_train_batch_size
        return cls(
            {name: value for name, value in config.to_dict().items() if name in SCORING_FIELDS},
            identify(job.model, arguments.model),
            {
                **{name: getattr(arguments, name) for name in DATA_FIELDS},
                # which texts are cut into blocks of
                "sequence_length": arguments.sequence_length if job.task.packs else None,
            },
            examples,
            batch_size,
        )


def identify(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """What tells a model from others."""
    from ..scoring.sums import digest

    dtype = str(model.dtype).removeprefix("torch.")
    weights = digest(dict(model.named_parameters()))
    return {"name": name, "class": type(model).__name__, "dtype": dtype, "weights": weights}


@dataclass(frozen=True)
class SavedScores:
    """Scores and what they depend on, in a safetensors file with a tensor a group."""

    path: Path
    values: Scores
    origin: Origin

    def save(self) -> None:
        from safetensors.torch import save_file

        tensors = {name: values.contiguous() for name, values in self.values.items()}
        with replacing(self.path) as partial:
            save_file(tensors, partial, {"origin": json.dumps(asdict(self.origin))})

    @classmethod
    def load(cls, path: str) -> SavedScores:
        """Reads a file that `save` wrote, or that in a folder.

        Raises:
            `ValueError`: there is none, or it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path) / SCORES_NAME if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise ValueError(f"there are no scores in {file}; optimum-cli camcut score writes some")
        try:
            with safe_open(file, "pt") as stored:
                values = {name: stored.get_tensor(name) for name in stored.keys()}
                origin = Origin(**json.loads((stored.metadata() or {})["origin"]))
            PruningConfig(**origin.settings, sparsity=0.5)
        except (KeyError, SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no scores that can be used ({error!r}): {ADVICE}") from error
        return cls(file, values, origin)

    def check_settings(self, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` if flags that were given ask for other scores."""
        settings = self.origin.settings
        scorer = get_scorer(settings["method"], settings["granularity"])
        unread = set() if scorer.smooth else set(NOISE)
        unread |= set() if scorer.source == "stream" else {"layer_unit"}
        if scorer.source == "weights":
            unread |= {"num_samples"} if scorer.name == "random" else {"num_samples", "seed"}
        asked = {name: given[name] for name in settings if name in given and name not in unread}
        made = {name: settings[name] for name in asked}
        if "granularity" in asked and sorted(asked["granularity"]) == sorted(made["granularity"]):
            asked["granularity"] = made["granularity"]
        different = differences(made, asked)
        if different:
            raise ValueError(f"the scores in {self.path} are by other settings: {different}. Leave these, or {ADVICE}")

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises `ValueError` if the scores are of another model."""
        self.check_identity(identify(model, name))

    def check_identity(self, now: Mapping[str, Any]) -> None:
        """Raises `ValueError` if the scores are of another model than one that `identify` told."""
        made, name = self.origin.model, now["name"]
        if {**made, "name": name} != now:
            other = "is another" if made["dtype"] == now["dtype"] else "differs in its --dtype"
            if {**made, "weights": None} == {**now, "weights": None}:
                raise ValueError(
                    f"the scores in {self.path} are of {_told(made)}, but its weights have changed since: {ADVICE}"
                )
            raise ValueError(
                f"the scores in {self.path} are of {_told(made)}; {_told(now)} {other}. Name the former, or {ADVICE}"
            )

    def check(self, job: Job, arguments: argparse.Namespace) -> None:
        """Raises `ValueError` unless the scores are those that a job would compute."""
        self.check_model(job.model, arguments.model)
        made, now = self.origin, Origin.of(job, arguments)
        if made.examples != now.examples:
            asked = {name: now.data.get(name) for name in made.data}  # an older file knows less
            different = differences(made.data, asked) or f"the rows of {dataset_name(arguments)} have changed"
            raise ValueError(
                f"the scores in {self.path} are by other examples: {different}. Give the same data, or {ADVICE}"
            )
        if made.batch_size != now.batch_size:
            size = made.batch_size or "another number of"
            raise ValueError(
                f"the scores in {self.path} are by batches of {size} examples, and these have {now.batch_size}, which "
                f"gives others of the method {now.settings['method']!r}. Give the same --batch_size, or {ADVICE}"
            )


def _told(model: Mapping[str, Any]) -> str:
    return f"{model['name']} ({model['class']}, {model['dtype']})"


def scores_table(scores: Scores) -> list[list[str]]:
    """Of every group, its units, its scores and the units that would go first."""
    lines = [["group", "units", "lowest", "median", "highest", "lowest first"]]
    for name, values in scores.items():
        flat = values.flatten().float()
        # Of equal ones a plan keeps the earlier.
        first = (flat.numel() - 1 - flat.flip(0).argsort(stable=True)[:6]).tolist()
        numbers = [flat.min(), flat.median(), flat.max()] if flat.numel() else []
        cells = [f"{number:.3g}" for number in map(float, numbers)] or ["-"] * 3
        lines.append(
            [name, str(flat.numel()), *cells, " ".join(map(str, first)) + (" ..." if flat.numel() > 6 else "")]
        )
    return lines
