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
"""`PruningConfig`: how to score, how much to cut, and how to recover."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .methods import KIND_SCORERS, SCORERS, TOKENS, WEIGHT_SCORERS, get_scorer, scorers_of
from .utils.fields import check_choice, check_fields, check_value, read_exclude, read_min_units
from .utils.files import read_json, shown, write_json
from .utils.hub import make_repo, push


CONFIG_NAME = "pruning_config.json"

# What the two fields take, and hold as tuples. `HfArgumentParser` reads the types of fields, and knows lists alone.
if TYPE_CHECKING:
    Kinds: TypeAlias = Sequence[str]  # a text is one, too
    Entries: TypeAlias = Iterable[str | int] | None
else:
    Kinds, Entries = list[str], list[str] | None

CHOICES = {
    "granularity": ("heads", "neurons", "experts", "layers", "vocabulary", "weights"),
    "budget": ("params", "flops", "latency"),
    "allocation": ("per_kind", "global", "uniform", "search"),
    "layer_unit": ("sublayer", "block"),
    "noise_scale": ("relative", "absolute"),
    "recovery": ("finetune", "reconstruct", "reconstruct+finetune", "none"),
}
COUNTS = ("num_samples", "smooth_samples", "rounds", "multiple_of", "sequence_length", "latency_batch_size")
NOISE = {"smooth_samples": 2, "smooth_examples": 512, "noise_std": 0.1, "noise_scale": "relative"}
METHODS = "Default: smooth_cut; for the vocabulary alone frequency"
MIN_UNITS = 1  # of a kind of which nothing is said
PAPER_NOISE = {"smooth_samples": 10, "noise_std": 1e-3, "noise_scale": "absolute"}


@dataclass
class PruningConfig:
    """Everything that decides how a model is pruned. Each field is a command-line flag under `HfArgumentParser`.

    Args:
        method: how units are scored: `cam_cut`, `smooth_cut`, `smooth_cam_cut`, `taylor`, `fisher`, `activation`,
            `magnitude` or `random`; for heads and neurons also `obs`, `flap`, `wanda_sp`; for whole blocks also
            `block_influence`; for experts also `reap`; for the vocabulary alone `frequency`, `magnitude` or `random`
            (beside other kinds it goes by `frequency`, whatever these go by); for single weights `cam_cut`,
            `smooth_cut`, `smooth_cam_cut`, `magnitude`, `gradient`, `snip`, `wanda` or `random`. Default:
            `smooth_cut`; for the vocabulary alone `frequency`.
        granularity: what is removed: `"heads"`, `"neurons"`, `"experts"` with their rows of the router, `"layers"`
            (whole sub-layers) or several of them, but not both experts and neurons, which may be inside of them.
            `"layers"` with others removes sub-layers first, down to the square root of the fraction to keep, and then
            as much of the units in the sub-layers left as brings the whole to the target. The budget is then that of
            the sub-layers. `"vocabulary"`, alone or with others, removes tokens with their rows in the embeddings; it
            loses the same fraction of its parameters as the other kinds, whatever `allocation` says, and goes in one
            cut. Or `"weights"`, alone: single weights and biases of the linear layers below the task head
            are set to zero and stay so, as in the DeepCuts paper; the model does not become smaller or faster.
        sparsity: fraction of the budget to remove, between 0 and 1. Give this or `compression`, or for the vocabulary
            alone `min_frequency`. Either counts from the
            model as it is: of one that was pruned before, from what is left.
        compression: parameters of the whole model over parameters kept, above 1. Give this or `sparsity`.
        budget: what `sparsity` is a fraction of: the prunable `"params"` or `"flops"`, which differ only where kinds
            are weighed against each other; or `"latency"`, the time of a forward pass of the whole model, as
            `latency_table` measured it on the device (0.5: twice as fast).
        allocation: `"per_kind"` ranks all heads of the model together and all neurons together and removes the same
            fraction of each; `"global"` ranks heads and neurons together by score per cost; `"uniform"` removes the
            same fraction in every layer (of single weights: of every weight matrix and every bias). There, and with
            `budget="latency"`, neurons make up for the rounding to whole heads. Sub-layers are always ranked over the
            whole model, by score per cost. `"search"`, of heads and neurons alone, ranks within a layer by score, and
            chooses how much each layer keeps of each by what the whole model then gives; see `search_plan`.
        layer_unit: what `"layers"` removes at a time: a `"sublayer"`, or both of a `"block"`.
        num_samples: how many training examples to score on; tokens are counted in all of them.
        smooth_samples: noisy passes of the smooth methods. Default: 2; for single weights 10, as in the paper.
        smooth_examples: how many of the `num_samples` examples the smooth methods score on, spread evenly over them;
            a rebuild and a search read all of them. Default: 512; for single weights all.
        noise_std: standard deviation of their Gaussian noise on the output of every linear layer below the task head.
            Default: 0.1; for single weights 1e-3, as in the paper.
        noise_scale: `"relative"` to that output's, or `"absolute"`. Default: relative; for single weights absolute.
        dropout: score with dropout on. Default: off; for single weights on in `CamCutTrainer`, as in the paper's code,
            and in `score_groups` if the model is in training mode.
        shift: added to the mean output by `cam_cut` and `smooth_cam_cut` on single weights (the paper's is 10); other
            methods have no mean output to shift, and heads and neurons take 0 only.
        rounds: cut in this many rounds of score, cut and recover, by a cubic schedule: after round r of n,
            1 - (1 - r/n)³ of what is to go is gone.
        rewind: return to the initial weights before the recovery (the lottery-ticket recipe); needs `dense_epochs`.
        recovery: what follows the cut in `CamCutTrainer.train`: `"finetune"` for `num_train_epochs`, `"reconstruct"`
            (least squares, without labels), one after the other as `"reconstruct+finetune"`, or `"none"`.
        dense_epochs: epochs of ordinary training before the model is scored.
        distill_weight: weight in the recovery loss, between 0 and 1, of the distance to the dense model: that of the
            predictions and, layer by layer, of the hidden states.
        distill_temperature: softens the predictions of both.
        distill_top_k: compare so many of the dense model's likeliest classes, and all others as one: of a large
            vocabulary this takes a fraction of the memory. Default: all.
        lora_rank: fine-tune LoRA adapters of this rank on all linear layers of the blocks, merged at the end.
        min_units: heads, and neurons, that every layer keeps at least, if its sub-layer stays: one number for both, or
            one for each kind, `{"heads": 1, "neurons": 64}` or, as on the command line, `"heads=1,neurons=64"` (a
            kind that is not named keeps 1).
        multiple_of: keep a multiple of this many neurons in every layer (8 or 64 suit most hardware).
        sequence_length: tokens per example assumed by `budget="flops"` and `budget="latency"`, and in the latency that
            a trainer reports.
        latency_batch_size: examples at once assumed by `budget="latency"` and in that report.
        seed: draws the scoring examples and the noise.
        exclude: what stays whole: numbers of layers from 0 (`0` or `"0"`), and shell patterns of group names, in which
            `*` stands for dots too (`"layer.0.*"`, `"*.heads"`; of single weights
            `"*.encoder.layer.*.output.dense.weight"`). A sub-layer that is named keeps its heads and neurons, and one
            that holds heads or neurons that are named is not removed. `sparsity` and `compression` still count what is
            excluded, so that numbers compare: the rest loses more.
        min_frequency: tokens that the text holds less often go, also where the budget would keep them: with 1, those
            that it never holds. What other text is written by, and special tokens, stay. Needs `"vocabulary"`, scored
            by `frequency`.

    Raises:
        `ValueError`: a value out of range; the message names the field and what it expects.
    """

    method: str = field(
        default=None,  # type: ignore[assignment]  # until `__post_init__`
        metadata={"help": f"How units are scored: {', '.join(SCORERS | KIND_SCORERS | WEIGHT_SCORERS)}. {METHODS}."},
    )
    granularity: Kinds = field(
        default_factory=lambda: ["heads", "neurons"],
        metadata={"help": "What is removed: heads, neurons, layers, vocabulary or several; or weights."},
    )
    sparsity: float | None = field(default=None, metadata={"help": "Fraction of the budget to remove."})
    compression: float | None = field(default=None, metadata={"help": "All parameters over parameters kept."})
    budget: str = field(
        default="params", metadata={"help": "What sparsity is a fraction of: params, flops or latency."}
    )
    allocation: str = field(default="per_kind", metadata={"help": "per_kind, global, uniform or search."})
    layer_unit: str = field(default="sublayer", metadata={"help": "What layers removes: a sublayer or a block."})
    num_samples: int = field(default=2048, metadata={"help": "Training examples to score on."})
    smooth_samples: int | None = field(default=None, metadata={"help": "Noisy passes of the smooth methods."})
    smooth_examples: int | None = field(default=None, metadata={"help": "Examples that the smooth methods score on."})
    noise_std: float | None = field(default=None, metadata={"help": "Standard deviation of their noise."})
    noise_scale: str | None = field(default=None, metadata={"help": "Noise relative to each output, or absolute."})
    dropout: bool | None = field(default=None, metadata={"help": "Score with dropout on."})
    shift: float = field(default=0.0, metadata={"help": "Added to mean outputs by cam_cut on single weights."})
    rounds: int = field(default=1, metadata={"help": "Rounds of score, cut and recover."})
    rewind: bool = field(default=False, metadata={"help": "Return to the initial weights before recovering."})
    recovery: str = field(
        default="finetune", metadata={"help": "finetune, reconstruct, reconstruct+finetune or none."}
    )
    dense_epochs: float = field(default=0.0, metadata={"help": "Epochs of ordinary training before scoring."})
    distill_weight: float = field(
        default=0.0, metadata={"help": "Weight of the dense model's predictions and hidden states."}
    )
    distill_temperature: float = field(default=2.0, metadata={"help": "Temperature of that term."})
    distill_top_k: int | None = field(default=None, metadata={"help": "Compare the likeliest classes alone."})
    lora_rank: int | None = field(default=None, metadata={"help": "Fine-tune LoRA adapters, merged at the end."})
    min_units: int | str | dict[str, int] | None = field(
        default=MIN_UNITS,
        metadata={"help": "Heads, and neurons, that every layer keeps: a number, or heads=1,neurons=64."},
    )
    multiple_of: int = field(default=1, metadata={"help": "Keep a multiple of this many neurons in a layer."})
    sequence_length: int = field(default=128, metadata={"help": "Tokens of an example: for flops, latency, blocks."})
    latency_batch_size: int = field(default=8, metadata={"help": "Examples at once for the budget latency."})
    seed: int = field(default=0, metadata={"help": "Draws the scoring examples and the noise."})
    exclude: Entries = field(
        default=None,
        metadata={"help": "What stays whole: numbers of layers, and patterns of group names ('*.heads')."},
    )
    min_frequency: int | None = field(default=None, metadata={"help": "Tokens that the text holds less often go."})

    def __post_init__(self) -> None:
        self.granularity = kinds = self._read_granularity()
        for name, default in (PAPER_NOISE if "weights" in kinds else NOISE).items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.method is None:
            self.method = TOKENS if kinds == ("vocabulary",) else "smooth_cut"
        for name in CHOICES:
            check_choice(name, kinds if name == "granularity" else (getattr(self, name),), CHOICES[name])
        self._check_method()
        self._check_amounts()
        self._check_vocabulary()
        self.min_units = read_min_units(MIN_UNITS if self.min_units is None else self.min_units, kinds)
        self.exclude = read_exclude(self.exclude)
        self._check_numbers()
        self._check_recovery()
        enough = self.min_frequency is not None and kinds == ("vocabulary",)
        if sum(v is not None for v in (self.sparsity, self.compression)) not in (1, 1 - enough):
            got = f"got sparsity={shown(self.sparsity)} and compression={shown(self.compression)}"
            raise ValueError(f"give exactly one of sparsity and compression, or min_frequency for tokens alone; {got}")

    def _read_granularity(self) -> tuple[str, ...]:
        """The kinds, also from a single one."""
        try:
            kinds = (self.granularity,) if isinstance(self.granularity, str) else tuple(self.granularity)
        except TypeError:
            kinds = ()
        if not kinds:
            raise ValueError(
                f"granularity should be one or more of {CHOICES['granularity']}, got {shown(self.granularity)}"
            )
        check_choice("granularity", kinds, CHOICES["granularity"])
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"granularity should name each kind once, got {shown(kinds)}")
        if "weights" in kinds and len(kinds) > 1:
            raise ValueError(f"granularity 'weights' stands alone, got {list(kinds)}; cut first, then mask the rest")
        if {"experts", "neurons"} <= set(kinds):
            raise ValueError(f"neurons may be inside of experts: take one of the two, got granularity {list(kinds)}")
        return kinds

    def _check_method(self) -> None:
        """The method, and the budget."""
        if not isinstance(self.method, str):
            known = ", ".join(scorers_of(self.granularity))
            raise ValueError(f"method should be one of {known}; got {shown(self.method)}")
        if get_scorer(self.method, self.granularity).source == "stream" and self.layer_unit != "block":
            raise ValueError(f"method {self.method!r} scores whole blocks: set layer_unit='block'")
        if self.budget == "latency" and self.compression is not None:
            raise ValueError(
                "compression counts parameters; with budget='latency' give sparsity, the fraction of the time to save"
            )
        if self.budget == "latency" and "weights" in self.granularity:
            raise ValueError("masked weights take as long as any: budget='latency' is for heads, neurons and layers")
        if self.allocation == "search" and set(self.granularity) - {"heads", "neurons"}:
            raise ValueError(f"allocation='search' is for heads and neurons; got granularity {list(self.granularity)}")
        if self.budget != "params" and "experts" in self.granularity:
            raise ValueError(
                f"fewer experts save no {self.budget}: each token is sent to as many; use budget='params'"
            )

    def _check_amounts(self) -> None:
        """How much to remove, and by what."""
        if self.sparsity is not None:
            self._check("sparsity", float, lambda v: 0 < v < 1, "a number between 0 and 1, both excluded")
        if self.compression is not None:
            self._check("compression", float, lambda v: v > 1, "a number above 1")
        for name in COUNTS:
            self._check(name, int, lambda v: v >= 1, "an integer of at least 1 and below 2**63")

    def _check_vocabulary(self) -> None:
        """What the vocabulary can be cut by."""
        kinds = tuple(self.granularity)
        if self.min_frequency is not None:
            self._check("min_frequency", int, lambda v: v >= 1, "an integer of at least 1, or None")
            if "vocabulary" not in kinds or (kinds == ("vocabulary",) and self.method != TOKENS):
                raise ValueError(
                    f"min_frequency counts tokens: it needs granularity 'vocabulary' and method={TOKENS!r}; got "
                    f"granularity {list(kinds)} and method={self.method!r}"
                )
        if "vocabulary" in kinds and self.budget != "params":
            raise ValueError(f"tokens count by their parameters alone: use budget='params', got {self.budget!r}")
        if "vocabulary" in kinds and self.rounds > 1:
            raise ValueError(f"the vocabulary goes in one cut, as its counts do not change: got rounds={self.rounds}")

    def _check_numbers(self) -> None:
        """What scoring and training go by."""
        self._check("seed", int, lambda v: 0 <= v < 2**32, "an integer of at least 0 and below 2**32")
        for name in ("noise_std", "dense_epochs"):
            self._check(name, float, lambda v: v >= 0, "a number of at least 0")
        self._check("distill_weight", float, lambda v: 0 <= v <= 1, "a number between 0 and 1")
        for name in ("distill_top_k", "lora_rank", "smooth_examples"):
            if getattr(self, name) is not None:
                self._check(name, int, lambda v: v >= 1, "an integer of at least 1, or None")
        self._check("distill_temperature", float, lambda v: v > 0, "a number above 0")
        self._check("rewind", bool, lambda v: True, "True or False")
        if self.dropout is not None:
            self._check("dropout", bool, lambda v: True, "True, False or None")
        weights = "weights" in self.granularity
        zero = "a number" if weights else "0 for heads and neurons: it applies to single weights"
        self._check("shift", float, lambda v: v == 0 or weights, zero)

    def _check_recovery(self) -> None:
        """What goes together of recovery, rewinding and distillation."""
        if self.rewind and self.dense_epochs == 0:
            raise ValueError("rewind=True returns to the weights before the dense epochs; set dense_epochs above 0")
        alone: dict[Any, str] = {
            ("weights",): "after masking single weights",
            ("vocabulary",): "where tokens alone go",
        }
        if self.rebuilds and self.granularity in alone:
            use = f"{alone[tuple(self.granularity)]} use 'finetune' or 'none'"
            raise ValueError(f"recovery={self.recovery!r} is for units; {use}")
        if self.rewind and self.rebuilds and self.finetunes:
            raise ValueError(
                "rewind=True trains the initial weights again, which a rebuild would change first; use "
                f"recovery='finetune', got {self.recovery!r}"
            )
        for name in ("distill_weight", "lora_rank"):
            if getattr(self, name) and not self.finetunes:
                expected = "recovery='finetune' and 'reconstruct+finetune'"
                raise ValueError(f"{name} applies to {expected}, got recovery={self.recovery!r}")
        if self.distill_top_k and not self.distill_weight:
            raise ValueError("distill_top_k would have no effect: set distill_weight above 0")
        if self.lora_rank and ("weights" in self.granularity or self.rewind):
            raise ValueError(
                "lora_rank adds to weights that stay: not to single weights that are masked, or to rewind"
            )

    @property
    def left_whole(self) -> tuple[str, ...]:
        """What `exclude` names, as texts."""
        return tuple(map(str, self.exclude or ()))

    def least_units(self, kind: str) -> int:
        """What `min_units` says of a kind."""
        least: Any = self.min_units  # as it was read: a number, or one by kind
        return least.get(kind, MIN_UNITS) if isinstance(least, Mapping) else least

    def _check(self, name: str, kind: type, valid: Callable[[Any], bool], expected: str) -> None:
        check_value(name, getattr(self, name), kind, valid, expected)

    @property
    def rebuilds(self) -> bool:
        """Whether the recovery reconstructs."""
        return "reconstruct" in self.recovery.split("+")

    @property
    def finetunes(self) -> bool:
        """Whether the recovery trains."""
        return "finetune" in self.recovery.split("+")

    @property
    def amount(self) -> str:
        """What to remove, as a text: `"sparsity=0.5"`, say."""
        if self.sparsity is None and self.compression is None:
            return f"min_frequency={self.min_frequency}"
        return f"sparsity={self.sparsity}" if self.sparsity is not None else f"compression={self.compression}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        lists = {"granularity": list(self.granularity), "exclude": list(self.left_whole) or None}
        return dataclasses.asdict(self) | lists

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruningConfig:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: an unknown field, or a value out of range.
        """
        check_fields(cls, values)
        return cls(**values)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `pruning_config.json` into a folder, made if need be."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_json(Path(save_directory) / CONFIG_NAME, self.to_dict())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Uploads `pruning_config.json` and returns the commit's address.

        Args:
            repo_id: `"user/name"`; made if need be.
            commit_message: default: "Upload pruning config".
            private: whether a repository that is made is private.
            token: default: the one that `hf auth login` stored.
            revision: branch to push to; made if need be.
            create_pr: open a pull request in place of a commit.
        """
        repo_id = make_repo(repo_id, private, token, revision, create_pr)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(folder, repo_id, commit_message or "Upload pruning config", token, revision, create_pr)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **hub_kwargs: Any) -> PruningConfig:
        """Reads `pruning_config.json` from a folder or a Hub repository.

        Args:
            name_or_path: the folder, or the id of the repository.
            hub_kwargs: passed to `huggingface_hub.hf_hub_download` (`revision`, `token`, ...).

        Raises:
            `FileNotFoundError`: the folder has no such file.
            `ValueError`: the file holds something else.
        """
        path = Path(name_or_path) / CONFIG_NAME
        if not Path(name_or_path).is_dir():
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(str(name_or_path), CONFIG_NAME, **hub_kwargs)
        return cls.from_dict(read_json(path))
