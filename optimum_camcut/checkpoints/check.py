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
"""`check_architecture`: whether the entry of an architecture is right, by what a model of it computes when cut."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.entry import STACKED, Sublayer
from ..architectures.experts import WithoutExperts
from ..architectures.groups import PrunableGroup, check_bare, find_groups, possible_kinds
from ..architectures.structure import Block, blocks_of, check_supported, label_of
from ..planning.plan import PruningPlan
from ..surgery.cut import apply_plan
from ..utils.copies import copy_model
from ..utils.logs import silenced
from ..utils.sharding import check_whole
from .agreement import check_agreement, first_blocks
from .paths import check_batch, check_paths, wrong
from .saving import auto_map


logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest output, in float32
NOISE = 0.1  # of the spread of each parameter: what starts at zero would hide what was forgotten
SCRIPT = """
import sys
sys.modules["optimum_camcut"] = None  # the file beside the weights has to do
import torch, transformers
folder, auto = sys.argv[1:]
batch = torch.load(folder + "/batch.pt")
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    output = model(**batch)
torch.save(output.logits if hasattr(output, "logits") else output[0], folder + "/output.pt")
"""


def check_architecture(model: PreTrainedModel, batch: Mapping[str, Any], *, reload: bool = True) -> None:
    """Checks the entry of a model's architecture in `ARCHITECTURES`: that all it names is in the model and has the
    size that it should have; that each output of a linear map changes the unit that the entry gives it to, and no
    other; that the model cut by heads, by neurons, by whole sub-layers where the entry has
    `bypass`, and by all of these computes what the model computes with the removed units at zero; that the modules of
    `residual` read what the layers' outputs are added to; and that a process with nothing but torch and transformers
    loads what was cut and computes the same.

    It works on copies, in float32 and on the model's device; the model stays as it is. Take a small one: a copy or
    two of it are in memory, and one is written to a temporary folder.

    Args:
        model (`PreTrainedModel`): whole, and with two or more heads and blocks.
        batch (`Mapping[str, Any]`): keywords of its forward, tensors on its device; labels are left out.
        reload (`bool`): also load it in a new process, which takes most of the time.

    Raises:
        `TypeError`: not a transformers model itself, or a batch of something else than tensors by name.
        `ValueError`: the architecture has no entry, or it is wrong; names the entry and the field. Or the model was
            cut already.
    """
    check_entry(model, batch, reload, check_agreement)


def check_entry(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    reload: bool,
    agreement: Callable[[PreTrainedModel, Mapping[str, Any]], int] | None = None,
) -> None:
    """`check_architecture`, where the machine has found the entry without asking it once more whether it agrees."""
    check_bare(model, "check_architecture")
    check_whole(model, "check_architecture")
    check_batch(batch)
    check_supported(model)
    if getattr(model, "pruning_plan", None) is not None:
        raise ValueError("check_architecture takes a model that was not cut; load or make it anew")
    with torch.no_grad(), silenced("optimum_camcut.surgery.cut"):
        check_paths(model)
        batch = _without_pairs({name: value for name, value in batch.items() if not name.startswith("label")})
        dense = copy_model(model).float().eval()
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(0)
            for parameter in dense.parameters():
                spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
                parameter.add_(torch.randn_like(parameter) * (NOISE * spread.nan_to_num() + 0.02))
        maps = agreement(dense, batch) if agreement else 0
        cut = _check_units(dense, batch)
        check_residual(dense, batch)
        if "layers" in possible_kinds(dense):
            _check_layers(dense, batch)
            blocks = blocks_of(dense)
            last = {block.name.partition("layer.")[0]: block for block in blocks}
            emptied = {f"{block.name}.{part.name}": () for block in last.values() for part in _removable(dense, block)}
            if len(blocks) > len(last):
                cut = _cut(dense, {**(cut.pruning_plan.keep if cut else {}), **emptied}, "bypass")
        if reload and cut is not None:
            _check_reload(cut, batch)
    logger.info(
        "the entry %r is right: %s cut against masked%s%s%s",
        model.config.model_type,
        ", ".join(possible_kinds(model)),
        " alone and together" if len(possible_kinds(model)) > 1 else "",
        f", {maps} linear maps changed output by output" if agreement else "",
        ", loaded in a new process" if reload and cut is not None else "; not loaded in a new process",
    )


def _check_units(dense: PreTrainedModel, batch: Mapping[str, Any]) -> PreTrainedModel | None:
    """Compares cuts by heads, by neurons and by both with masks; returns the last, or None where no unit can go."""
    kinds = [kind for kind in possible_kinds(dense) if kind != "layers"]
    if not kinds:
        return None
    groups = find_groups(dense, kinds)
    keep: dict[str, list[int]] = {}
    labels = {label_of(group.name): 0 for group in groups}
    for group in [group for group in groups if group.size > 1]:  # not alike in the layers, which may share something
        labels[label_of(group.name)] += 1
        keep[group.name] = _some(group, more=labels[label_of(group.name)] % 2 == 1)
    for label in labels:
        of_label = {name: units for name, units in keep.items() if label_of(name) == label}
        if not of_label:
            raise ValueError(f"the model has one of {label!r} in every layer: take one with more to check its entry")
        cut = _compare(dense, groups, of_label, batch, label)
    if "expert_neurons" in labels:  # which are not cut together with the experts
        keep = {name: units for name, units in keep.items() if label_of(name) != "experts"}
    return _compare(dense, groups, keep, batch, " and ".join(labels)) if len(labels) > 1 else cut


def _removable(model: PreTrainedModel, block: Block) -> list[Sublayer]:
    parts = {part.name: part for part in reversed(block.sublayers(model)) if part.bypass}
    return list(reversed(parts.values()))


def _without_pairs(batch: dict[str, Any]) -> dict[str, Any]:
    """Three rows in place of two: blocks would take one tensor of two rows for the pair that attention gives."""
    rows = {name: len(value) for name, value in batch.items() if isinstance(value, Tensor) and value.dim()}
    if max(rows.values(), default=0) != 2:
        return batch
    return {name: torch.cat([value, value[:1]]) if rows.get(name) == 2 else value for name, value in batch.items()}


def _some(group: PrunableGroup, more: bool) -> list[int]:
    """Some units of a group, neither the first alone nor the last, so that an order that is wrong shows."""
    if group.experts:
        each = group.size // group.experts
        first = min(1, each - STACKED)
        return [unit for unit in range(group.size) if first <= unit % each < first + STACKED]
    order = sorted(range(group.size), key=lambda unit: (unit % 3 != 1, -unit))
    return sorted(order[: max(len([unit for unit in order if unit % 3 == 1]), group.fewest, 1) + more])


def _cut(dense: PreTrainedModel, keep: Mapping[str, Sequence[int]], field: str) -> PreTrainedModel:
    cut = copy_model(dense)
    try:
        return apply_plan(cut, PruningPlan(keep))
    except (AttributeError, IndexError, RuntimeError) as error:
        raise wrong(dense, field, f"leads to an error when cut: {type(error).__name__}: {error}") from error


def _compare(
    dense: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    keep: Mapping[str, Sequence[int]],
    batch: Mapping[str, Any],
    field: str,
) -> PreTrainedModel:
    """The cut model; it computes what the uncut one does with the inputs of its output projections at zero where the
    units are gone."""
    cut = _cut(dense, keep, field)
    with ExitStack() as stack:
        for group in groups:
            if group.name in keep:
                gone = sorted(set(range(group.size)) - set(keep[group.name]))
                stack.enter_context(_without(dense, group, gone))
        expected = _output(dense, batch)
    try:
        got = _output(cut, batch)
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise wrong(
            dense,
            field,
            f"misses something: the cut model does not run ({type(error).__name__}: {error}); look for a linear map "
            "of the block that is not named, and for an attribute that counts units",
        ) from error
    what = (
        "misses something: the cut model computes something else than the uncut one with the removed units at zero; "
        "look for a linear map that is not named, or cut in the wrong way, and for an attribute that counts units "
        "(`attributes`, `neuron_attributes`)"
    )
    _check_same(dense, got, expected, field, what)
    if _same(_output(dense, batch), expected):
        raise wrong(
            dense,
            field,
            "cannot be checked: without its units the model computes the same. Is the last map of the entry the "
            "output projection, and does the batch reach it?",
        )
    return cut


@contextmanager
def _without(model: PreTrainedModel, group: PrunableGroup, gone: Sequence[int]) -> Iterator[None]:
    """A model in which units are at zero, or are experts that no token is sent to."""
    if group.observed == "routing":
        with WithoutExperts([(model.get_submodule(group.output.module), gone)]):
            yield
        return
    if group.observed == "inside":
        weight = model.get_parameter(group.output.module)
        before, each = weight.clone(), group.size // group.experts
        for unit in gone:
            weight[unit // each].select(int(group.output.axis) - 1, unit % each).zero_()
        yield
        weight.copy_(before)
        return
    features = group.output.index(group.size, gone)

    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].index_fill(-1, features.to(inputs[0].device), 0), *inputs[1:]

    handle = model.get_submodule(group.output.module).register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def check_residual(dense: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """A projection's output is added to what the module of `residual` reads: where it is what that lacks of the first
    token's, all tokens leave the block alike, whatever norms come behind."""
    for block in first_blocks(dense):
        for number, part in enumerate(block.entry.sublayers):
            if part.residual is not None and part in block.sublayers(dense):
                _check_reads(dense, block, part, f"residual[{number}]", batch)


def _check_reads(dense: PreTrainedModel, block: Block, part: Sublayer, field: str, batch: Mapping[str, Any]) -> None:
    reads: list[Tensor] = []
    output = part.cuts[-1].module

    def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        reads.append(args[0])  # as `reconstruct` takes it

    def lack(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        factor = block.find(dense, part.factor) if part.factor else None
        factor = 1.0 if factor is None else factor
        return ((reads[-1].flatten(0, -2)[0] - reads[-1]) / factor).view_as(result)

    def nothing(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return torch.zeros_like(result)

    with ExitStack() as stack:
        module = dense.get_submodule(f"{block.path}.{part.residual}")
        stack.callback(module.register_forward_pre_hook(read).remove)
        parts = block.sublayers(dense)
        for other in parts[parts.index(part) :]:  # those behind it may read the same stream
            stacked = other.kind in ("experts", "expert_neurons")
            path = other.cuts[0].module.rpartition(".")[0] if stacked else other.cuts[-1].module
            module = dense.get_submodule(f"{block.path}.{path}")
            stack.callback(module.register_forward_hook(lack if other == part else nothing).remove)
        try:
            left: Tensor | None = _streams(dense, block, {}, batch)["out"].flatten(0, -2)
        except (AttributeError, IndexError, RuntimeError):  # it runs later, or reads something of another shape
            left = None
    what = (
        f"is {part.residual!r}, which does not read the residual stream that the output of {output} is added to; name "
        "the norm that reads it, or in post-norm blocks the first linear map that does. Where a norm or a factor "
        "stands between that output and the sum, or where both layers of a block read the same stream, none is "
        "right: say None"
    )
    _check_same(dense, left, None if left is None else left[:1].expand_as(left), field, what)


def _check_layers(dense: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """Without a sub-layer the residual stream passes unchanged, from where that reads it to where the next one does;
    without all of them, through the block."""
    for block in first_blocks(dense):
        parts = _removable(dense, block)
        if [part.name for part in parts] != list(dict.fromkeys(part.name for part in block.entry.sublayers)):
            continue
        first = int(parts[0].kind == "heads")  # attention, if any, reads what enters the block
        reads = {n: part.residual for n, part in enumerate(parts) if n >= first and part.residual is not None}
        for number, gone in enumerate([[part] for part in parts] + [parts] * (len(parts) > 1)):
            before, behind = (0, len(parts)) if gone is parts else (number, number + 1)
            field = "bypass" if gone is parts else f"bypass[{number}]"
            cut = _cut(dense, {f"{block.name}.{part.name}": [] for part in gone}, field)
            seen = {n: path for n, path in reads.items() if parts[n] not in gone}
            try:
                streams = _streams(cut, block, seen, batch)
                whole = _streams(dense, block, reads, batch)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise wrong(dense, field, f"does not run: {type(error).__name__}: {error}") from error
            got, expected = streams.get(behind, streams["out"]), whole.get(before, streams["in"])
            got = got.reshape(expected.shape)  # some flatten all tokens
            if (before and before not in whole) or (behind < len(parts) and behind not in streams):
                continue  # no module reads the stream there
            names = " and ".join(part.name.replace("_", "-") for part in gone)
            what = (
                f"does not pass the residual stream on unchanged where {names} is gone; look at what stands in for "
                "each module, for a norm that stays, and at `residual`"
            )
            _check_same(dense, got, expected, field, what)


def _streams(
    model: PreTrainedModel, block: Block, reads: Mapping[int, str], batch: Mapping[str, Any]
) -> dict[Any, Tensor]:
    """What enters a block and leaves it at its first call, and what modules in it read if they are called, by their
    numbers."""
    found: dict[Any, Tensor] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault("in", args[0] if args else kwargs["hidden_states"])

    def leave(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        found.setdefault("out", result[0] if isinstance(result, tuple | list) else result)

    def reader(number: int) -> Callable[..., None]:
        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.setdefault(number, next(iter((*args, *kwargs.values()))))

        return read

    with ExitStack() as stack:
        body = model.get_submodule(block.path)
        stack.callback(body.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(body.register_forward_hook(leave).remove)
        for number, path in reads.items():
            module = model.get_submodule(f"{block.path}.{path}")
            stack.callback(module.register_forward_pre_hook(reader(number), with_kwargs=True).remove)
        _output(model, batch)
    return found


def _check_reload(cut: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """A new process without this package loads the cut model and computes the same."""
    targets = {target.rpartition(".")[2]: auto for auto, target in auto_map(cut).items()}
    auto = targets.get(type(cut).__name__)
    if auto is None:
        raise ValueError(
            f"no AutoModel class of transformers makes a {type(cut).__name__}, so nothing but optimum-camcut could "
            f"load it; take one of {', '.join(sorted(targets))}"
        )
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        torch.save({name: _on_cpu(value) for name, value in batch.items()}, Path(folder) / "batch.pt")
        # Modules of checkpoints are kept by transformers; these should not be there for good.
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(folder) / "modules"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", SCRIPT, folder, auto]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise wrong(cut, "the checkpoint", f"does not load in a process without this package: {run.stderr[-999:]}")
        got = torch.load(Path(folder) / "output.pt")
    expected = _output(cut.cpu(), {name: _on_cpu(value) for name, value in batch.items()})
    _check_same(cut, got, expected, "the checkpoint", "computes something else when it is loaded in another process")


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


@torch.no_grad()
def _output(model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    output = model(**batch)
    output = output["logits"] if isinstance(output, Mapping) and "logits" in output else output[0]
    return output if isinstance(output, Tensor) else output[-1]  # of several feature maps the last


def _same(got: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1e-6)
    return got.shape == expected.shape and bool((got - expected).abs().max() <= TOLERANCE * scale)


def _check_same(model: PreTrainedModel, got: Tensor | None, expected: Tensor | None, field: str, what: str) -> None:
    if got is None or expected is None or not _same(got, expected):
        raise wrong(model, field, what)
