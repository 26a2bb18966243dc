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
"""The model card of a pruned checkpoint: where it comes from, what was cut, what that gives, and how to load it."""

from __future__ import annotations

import functools
import logging
import os
import re
import weakref
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not listed there
from transformers import PreTrainedModel

from ..architectures.groups import WEIGHTS
from ..architectures.modeling_camcut import transformers_4_loads
from ..architectures.structure import is_cut
from ..architectures.vocabulary import VOCABULARY
from ..checkpoints.places import Place, in_folder, on_hub
from ..checkpoints.saving import CARD_NAME
from ..config import PruningConfig
from ..methods import TOKENS
from ..planning.measure import input_size
from ..planning.plan import PruningPlan, is_weight, layer_of
from ..surgery.masking import count_zeros
from ..utils.files import write_bytes, write_text
from .numbers import Metrics, compare_costs, compare_metrics, results_of, was_cut
from .plots import plot_head_importance, plot_kept
from .plots.kept import kept_counts


logger = logging.getLogger(__name__)

HEADS_NAME, KEPT_NAME = "pruning_heads.png", "pruning_kept.png"  # beside the card, as a push leaves subfolders behind
BEGIN, END = "<!-- optimum-camcut: begin -->", "<!-- optimum-camcut: end -->"
TAGS = ["optimum-camcut", "pruned"]
LICENSE = ("license", "license_name", "license_link")
WIDEST = 32  # characters of a figure
PICTURES = {HEADS_NAME: "The heads that every layer kept", KEPT_NAME: "The units that every layer kept"}

SENTENCES_NAME = "modules.json"  # in the folder of a `SentenceTransformer`
TOKENIZER = (
    "Its tokenizer has lost the same tokens, and numbers those that are left anew: take the one saved here, or "
    "`optimum_camcut.trim_tokenizer(tokenizer, model.pruning_plan)` of the base model's, never that itself."
)
PROCESSOR = "Pruning leaves the {} as it was: if none is saved here, take that of the base model."


def write_card(
    folder: str | Path,
    model: PreTrainedModel,
    location: str | None = None,
    revision: str | None = None,
    metrics: Metrics | None = None,
) -> None:
    """Writes `README.md`, or brings the part about pruning in an existing one up to date; the rest stays. Metadata
    that are there stay, too. Where matplotlib is installed, the pictures that it shows are written beside it.

    Args:
        folder: of the checkpoint.
        model: with its plan as `model.pruning_plan`.
        location: the id of the repository, or the name of the folder, that it will be loaded from. Default: the name
            of `folder`.
        revision: the branch, if it is not the main one.
        metrics: of the evaluation, by their names, of the `"dense"` and of the `"pruned"` model; of either only if it
            was measured.
    """
    path, metrics = Path(folder) / CARD_NAME, metrics or {}
    sentences = (Path(folder) / SENTENCES_NAME).exists()
    if path.exists():
        card = ModelCard.load(path)
    else:
        card = ModelCard.from_template(
            ModelCardData(library_name="transformers"), template_str="---\n{{ card_data }}\n---\n"
        )
        card.text = f"\n# Pruned {name_of(model)}\n"
    if sentences and card.data.library_name == "transformers":
        card.data.library_name = "sentence-transformers"
    location = location or Path(folder).resolve().name
    _complete(card.data, model, location, metrics.get("pruned", {}))
    place = on_hub(location, revision) if "/" in location else in_folder(location)
    pictures = draw_pictures(model.pruning_plan)
    for name, picture in pictures.items():
        beside = path.with_name(name)
        if not beside.exists() or beside.read_bytes() != picture:  # a plan is drawn alike every time
            write_bytes(beside, picture)
    section = f"{BEGIN}\n{pruning_section(model, place, metrics, pictures, sentences)}\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if pattern.search(card.text):
        card.text = pattern.sub(lambda _: section, card.text)
    else:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    write_text(path, str(card))


def _complete(data: ModelCardData, model: PreTrainedModel, location: str, metrics: Mapping[str, float]) -> None:
    """Adds what is known to the metadata, and takes the licence over from the base model."""
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    names = [name.removeprefix("eval_") for name in results_of(metrics) if not name.endswith("loss")]
    if names and data.metrics is None:
        data.metrics = names
    base, found = _base_model(model.config._name_or_path)
    if base is not None and base != location and data.base_model is None:
        data.base_model = base
    if data.license is None:
        for name in LICENSE:
            data[name] = found.get(name)


def _base_model(name: str) -> tuple[str | None, Mapping[str, Any]]:
    """The id of the model that this one was made of, and the metadata of its card. Of a model in a folder, which has
    no id, the id of its own base model."""
    if os.path.isdir(name):
        path = Path(name) / CARD_NAME
        data = _metadata(path) if path.exists() else {}
        return data.get("base_model"), data
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None, {}
    return name, _hub_metadata(name)


@functools.cache  # also that there are none: a run saves many times
def _hub_metadata(repo_id: str) -> Mapping[str, Any]:
    try:
        data = _metadata(hf_hub_download(repo_id, CARD_NAME, etag_timeout=3))
    except Exception as error:  # a model can be saved whatever the network says
        logger.info("the licence of %s cannot be looked up: %s", repo_id, error)
        return {}
    if isinstance(data.get("license_link"), str) and "://" not in data["license_link"]:
        data["license_link"] = f"{constants.ENDPOINT}/{repo_id}/blob/main/{data['license_link']}"
    return data


def _metadata(path: str | Path) -> dict[str, Any]:
    return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()


def draw_pictures(plan: PruningPlan | None) -> dict[str, bytes]:
    """File name -> PNG of the heads and of the units a layer that a plan keeps; none without matplotlib."""
    global _drawn
    if plan is None or set(plan.keep) - set(plan.sizes):
        return {}
    of_plan, pictures = _drawn
    if of_plan() is not plan:
        pictures = {}
        try:
            if any(name.endswith(".heads") for name in plan.keep):
                pictures[HEADS_NAME] = _png(plot_head_importance(None, plan))
            if kept_counts(plan):
                pictures[KEPT_NAME] = _png(plot_kept(plan))
        except ImportError as error:
            logger.debug("the card has no pictures: %s", error)
        except Exception as error:  # fonts, a user's settings: no reason to lose a checkpoint
            logger.warning("the card has no pictures: %r", error)
            pictures = {}
        _drawn = weakref.ref(plan), pictures
    return pictures


_drawn: tuple[Any, dict[str, bytes]] = (lambda: None, {})  # the last plan and its pictures: a run saves many times


def _png(figure: Any) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def pruning_section(
    model: PreTrainedModel, place: Place, metrics: Metrics, pictures: Collection[str] = (), sentences: bool = False
) -> str:
    """Markdown: method and size, dense against pruned, how to load it, and what is kept, with these pictures.

    Args:
        sentences: the model is that of a `SentenceTransformer`.
    """
    plan, lines = model.pruning_plan, ["## Pruning", ""]
    if plan is not None and plan.config is not None:
        lines += [recipe(plan, model), ""]
    if library := quantized_by(model):
        lines += [f"The weights were then quantized by `{library}`, which is needed to load them.", ""]
    rows = compare_costs(model) + compare_metrics(metrics)
    if rows:
        lines += ["| | dense | pruned | pruned / dense |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join([row.name, *row.cells()])} |" for row in rows]
        lines.append("")
    zeros = count_zeros(model) if plan is not None else {}  # parts of a composite model have plans of their own
    if zeros:
        lines += _masks(model, zeros)
    processor = "tokenizer" if getattr(model, "main_input_name", "input_ids") == "input_ids" else "processor"
    lines += [*_loading(model, place), "", *(_sentences(model, place) if sentences else ())]
    trimmed = plan is not None and VOCABULARY in plan.keep
    lines.append(TOKENIZER if trimmed else PROCESSOR.format(processor))
    lines += [line for name in pictures for line in ("", f"![{PICTURES[name]}]({name})")]
    return "\n".join([*lines, *_kept(model)])


def quantized_by(model: PreTrainedModel) -> str | None:
    """The library that the weights are quantized by, if they are."""
    config = getattr(model.config, "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, Mapping) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method)) if method is not None else None


def recipe(plan: PruningPlan, model: PreTrainedModel | None = None) -> str:
    """A sentence of Markdown on how a model was pruned, by a plan with a config. Without the model, inputs count as
    tokens."""
    config = plan.config
    assert config is not None, "a plan without a config does not say how"
    kinds, how = " and ".join(config.granularity), f"`{config.amount}`, `allocation={config.allocation!r}`"
    if config.sparsity is not None and WEIGHTS not in config.granularity:
        how += f" of the budget {_budget(config, model)}"
    how += f", left `exclude={list(config.exclude)}` whole" if config.exclude else ""
    how += f", `rounds={config.rounds}`" if config.rounds > 1 else ""
    how += f", `dense_epochs={config.dense_epochs}`, `rewind=True`" if config.rewind else ""
    how += ", of what earlier cuts had left" if plan.cut_before else ""
    beside = config.min_frequency is not None and not config.amount.startswith("min_frequency")
    how += f", `min_frequency={config.min_frequency}`" if beside else ""
    method = f"`{config.method}`"
    if VOCABULARY in config.granularity:
        kinds = kinds.replace(VOCABULARY, "tokens")
        method += f" (tokens with `{TOKENS}`)" if len(config.granularity) > 1 else ""
    return f"{kinds.capitalize()} were scored with {method} and removed at {how}."


def _budget(config: PruningConfig, model: PreTrainedModel | None) -> str:
    """What `sparsity` is a fraction of, with all that this was counted or measured at."""
    counted = f"{config.sequence_length} tokens"
    timed = input_size(model, config.sequence_length) if model is not None and config.budget == "latency" else counted
    measured = {"flops": f", at {counted}", "latency": f", at {config.latency_batch_size} x {timed}"}
    return f"`{config.budget}`{measured.get(config.budget, '')}"


def _masks(model: PreTrainedModel, zeros: dict[str, int]) -> list[str]:
    parameters, plan = sum(parameter.numel() for parameter in model.parameters()), model.pruning_plan
    masked = sum(plan.sizes[name] - len(units) for name, units in plan.keep.items() if is_weight(name))
    kept = {layer: count for layer, kind, count in plan.table() if kind == WEIGHTS}
    return [
        f"{masked:,} single weights of its linear layers are masked: they are exactly zero. Of {parameters:,} "
        f"parameters {parameters - masked:,} are kept, a compression of {parameters / (parameters - masked):.2f}. "
        + ("" if was_cut(model) else "It is a plain transformers checkpoint. ")
        + "`optimum_camcut.load_pruned` also reads the masks, which `CamCutTrainer` then keeps.",
        "",
        "| layer | weights kept | exact zeros |",
        "|---|---|---|",
        *(f"| {layer} | {kept[layer]} | {number} |" for layer, number in zeros.items()),
        "",
    ]


def _loading(model: PreTrainedModel, place: Place) -> list[str]:
    name, remote = name_of(model), is_cut(model.config)
    code = loading_code(model, place.arguments, getattr(model.config, "auto_map", None) or {})
    lines = ["```python", *code, "```", *(["", place.note] if place.note else [])]
    if not remote:
        return [*(_plain(model) if was_cut(model) else []), *lines]
    beyond = "Its sizes are not those that the config's own fields can say, so this checkpoint loads"
    if not is_of_transformers(model):
        return [f"{beyond} in this way:", "", *lines, "", "Never pass `ignore_mismatched_sizes`."]
    plain = f"lain `{name}.from_pretrained` fails"
    heads = transformers_4_loads(model.config)
    only = f"In transformers 5 a p{plain}; 4.57 reads `pruned_heads`" if heads else f"A p{plain}"
    return [
        f"{beyond} in one of two ways:",
        "",
        *lines,
        "",
        f"After `import optimum_camcut`, the classes of transformers and `pipeline` load it too. The second way runs "
        f"`modeling_camcut.py` of this repository. {only}; never pass `ignore_mismatched_sizes`.",
    ]


def _sentences(model: PreTrainedModel, place: Place) -> list[str]:
    option = ", trust_remote_code=True" if is_cut(model.config) else ""
    return [
        "It is the model inside of a `SentenceTransformer`, which loads with what comes behind it:",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        f"model = SentenceTransformer({place.arguments}{option})",
        "```",
        "",
    ]


def is_of_transformers(model: PreTrainedModel) -> bool:
    """Whether the model's class is one of transformers, which others find by its name."""
    known = getattr(transformers, name_of(model), None)
    return isinstance(known, type) and isinstance(model, known)


def loading_code(model: PreTrainedModel, arguments: str, auto_map: Mapping[str, str]) -> list[str]:
    """Python that loads a checkpoint of the model in the ways there are: two, or one for a class of the user's own
    that was cut, which needs the class and this package.

    Args:
        auto_map: of the config; see `saving.auto_map`.
    """
    name, remote = name_of(model), is_cut(model.config)
    lines = ["# with optimum-camcut", "from optimum_camcut import load_pruned"]
    if not is_of_transformers(model):
        lines += [f"model = load_pruned({arguments}, model_class={name})  # the class that it was saved as"]
        if remote:
            return lines
        return [
            *lines,
            "",
            "# with nothing but torch and transformers",
            f"model = {name}.from_pretrained({arguments})",
        ]
    auto, option = (_auto_class(model, auto_map), ", trust_remote_code=True") if remote else (name, "")
    return [
        *lines,
        f"model = load_pruned({arguments})",
        "",
        "# with nothing but torch and transformers",
        f"from transformers import {auto}",
        f"model = {auto}.from_pretrained({arguments}{option})",
    ]


def _kept(model: PreTrainedModel) -> list[str]:
    """A table with a figure of the heads, neurons and sub-layers that every layer kept."""
    plan = model.pruning_plan
    names = [name for name in plan.keep if not is_weight(name)] if plan is not None else []
    if not names:
        return []
    lines = [
        "",
        f"What is kept of the uncut model, █, and what was removed, ░; up to {WIDEST} units stand one by one.",
        "",
    ]
    lines += ["| layer | kind | kept | |", "|---|---|---|---|"]
    for name in names:
        units, size = plan.keep[name], plan.sizes.get(name)
        figure = "" if size is None else f"`{_figure(set(units), size)}`"
        kind, size = name.rpartition(".")[2], "?" if size is None else size
        lines.append(f"| {layer_of(name)} | {kind} | {len(units)} / {size} | {figure} |")
    return lines


def _figure(kept: set[int], size: int) -> str:
    if size > WIDEST:
        full = round(WIDEST * len(kept) / size)
        return "█" * full + "░" * (WIDEST - full)
    return "".join("█" if unit in kept else "░" for unit in range(size))


def name_of(model: PreTrainedModel) -> str:
    """Name of the model's transformers class."""
    return type(model).__name__.removeprefix("FSDP")  # a class that torch makes


def _plain(model: PreTrainedModel) -> list[str]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"This is a plain transformers checkpoint of {parameters:,} parameters: its config says all its sizes, and "
        "whatever reads such models loads it with no extra code. `load_pruned` also reads "
        "which units were kept; to prune it further, take that.",
        "",
    ]


def _auto_class(model: PreTrainedModel, auto_map: Mapping[str, str]) -> str:
    targets = {target.rpartition(".")[2]: auto for auto, target in auto_map.items()}
    return next((targets[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in targets), "AutoModel")
