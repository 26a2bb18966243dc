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
"""The model card of a pruned checkpoint: what was cut, and how to load it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from .files import write_text
from .groups import WEIGHTS
from .masking import count_zeros
from .modeling_camcut import RECORD
from .plan import is_weight


CARD_NAME = "README.md"
BEGIN, END = "<!-- optimum-camcut: begin -->", "<!-- optimum-camcut: end -->"
TAGS = ["optimum-camcut", "pruned"]


def write_card(folder: str | Path, model: PreTrainedModel) -> None:
    """Writes `README.md`, or brings the part about pruning in an existing one up to date; the rest stays.

    Args:
        folder: of the checkpoint.
        model: with its plan as `model.pruning_plan`.
    """
    path = Path(folder) / CARD_NAME
    if path.exists():
        card = ModelCard.load(path)
    else:
        card = ModelCard.from_template(
            ModelCardData(library_name="transformers"), template_str="---\n{{ card_data }}\n---\n"
        )
        card.text = f"\n# Pruned {type(model).__name__}\n"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    section = f"{BEGIN}\n{pruning_section(model)}\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if pattern.search(card.text):
        card.text = pattern.sub(lambda _: section, card.text)
    else:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    write_text(path, str(card))


def pruning_section(model: PreTrainedModel) -> str:
    """Markdown: method and size, how to load it, and a table of what is kept."""
    plan, lines = model.pruning_plan, ["## Pruning", ""]
    if plan is not None and plan.config is not None:
        config, kinds = plan.config, " and ".join(plan.config.granularity)
        recipe = f"`{config.amount}`, `allocation={config.allocation!r}`"
        recipe += f", `rounds={config.rounds}`" if config.rounds > 1 else ""
        recipe += f", `dense_epochs={config.dense_epochs}`, `rewind=True`" if config.rewind else ""
        lines += [f"{kinds.capitalize()} were scored with `{config.method}` and removed at {recipe}.", ""]
    zeros = count_zeros(model)
    if zeros:
        lines += _masks(model, zeros)
    if getattr(model.config, RECORD, None) is not None:
        lines += _loading(model)
    elif not zeros:
        lines += _plain(model)
    table = [row for row in plan.table() if row[1] != WEIGHTS] if plan is not None else []
    if table:
        lines += ["", "| layer | kind | kept |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines)


def _masks(model: PreTrainedModel, zeros: dict[str, int]) -> list[str]:
    parameters, plan = sum(parameter.numel() for parameter in model.parameters()), model.pruning_plan
    masked = sum(plan.sizes[name] - len(units) for name, units in plan.keep.items() if is_weight(name))
    kept = {layer: count for layer, kind, count in plan.table() if kind == WEIGHTS}
    return [
        f"{masked:,} single weights of its linear layers are masked: they are exactly zero. Of {parameters:,} "
        f"parameters {parameters - masked:,} are kept, a compression of {parameters / (parameters - masked):.2f}. "
        + ("" if getattr(model.config, RECORD, None) is not None else "It is a plain transformers checkpoint. ")
        + "`optimum_camcut.load_pruned` also reads the masks, which `CamCutTrainer` then keeps.",
        "",
        "| layer | weights kept | exact zeros |",
        "|---|---|---|",
        *(f"| {layer} | {kept[layer]} | {number} |" for layer, number in zeros.items()),
        "",
    ]


def _loading(model: PreTrainedModel) -> list[str]:
    name, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    return [
        f"This checkpoint has {parameters:,} parameters; layers differ in size, so it loads in one of two ways:",
        "",
        "```python",
        f"# with nothing but torch and transformers: {_auto_class(model)} runs modeling_camcut.py of this repository",
        f"from transformers import {_auto_class(model)}",
        f'model = {_auto_class(model)}.from_pretrained("path-or-id", trust_remote_code=True)',
        "",
        "# with optimum-camcut, without remote code",
        "from optimum_camcut import load_pruned",
        'model = load_pruned("path-or-id")',
        "```",
        "",
        f"A plain `{name}.from_pretrained` fails with a size mismatch; never pass `ignore_mismatched_sizes`.",
    ]


def _plain(model: PreTrainedModel) -> list[str]:
    name, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    return [
        f"This is a plain transformers checkpoint of {parameters:,} parameters: all its layers have the same size, "
        f'as its config says. `{name}.from_pretrained("path-or-id")` loads it with no extra code, and so does '
        "whatever reads such models. `optimum_camcut.load_pruned` also reads which units were kept, to prune further.",
    ]


def _auto_class(model: PreTrainedModel) -> str:
    targets = {target.rpartition(".")[2]: auto for auto, target in (model.config.auto_map or {}).items()}
    return targets.get(type(model).__name__, "AutoModel")
