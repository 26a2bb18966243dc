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
"""`latency_table`: how long attention and feed-forward layers of each size take on this device."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import constants
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architectures.groups import check_bare
from ..architectures.position_bias import bind_position_bias
from ..architectures.slices import Group
from ..architectures.structure import cut_groups, label_of, list_groups, sublayer_of
from ..config import PruningConfig
from ..utils.files import WriteError
from ..utils.processes import all_or_none
from ..utils.sharding import check_whole
from ..version import __version__
from .measure import keeping_memory, random_inputs, time_forward
from .times import LatencyTable


logger = logging.getLogger(__name__)

# Layers that are there while others are measured, at most: enough to tell from the rest of the model, and a third of
# the time of all twelve of a BERT.
LAYERS = 4
SIZES = 16  # heads, and neurons, to measure at, at most
ROUNDS = 5
WHOLE, BARE, PRUNED = "whole", "bare", "pruned"  # the model, without its sub-layers, and cut unevenly, as plans do:
PRUNED_TO = (1 / 6, 1 / 2, 1 / 3)  # to these fractions, layer by layer


def latency_table(
    model: PreTrainedModel,
    config: PruningConfig,
    *,
    cache_dir: str | Path | None = None,
    refresh: bool = False,
    disable_tqdm: bool = False,
) -> LatencyTable:
    """Measures how long the attention and the feed-forward layers of a model take by their numbers of heads and
    neurons, in place and on the device where the model is; or reads what was measured before.

    The whole model runs with some sub-layers of one size in it and the others left out, and once cut unevenly. All run
    in turn, several times, with the uncut model between them, so that whatever else the machine does slows all alike;
    the medians count. That takes the time of about 40 forward passes of a BERT of 12 layers, of more where there are
    fewer layers, once: the table is kept in a file, by all that it depends on.

    With several processes, call it in all of them: one measures, and all get its table.

    Args:
        model (`PreTrainedModel`): of a supported architecture, whole; it is not changed.
        config (`PruningConfig`): `latency_batch_size` and `sequence_length` to measure at; and `multiple_of`, since
            sizes that do not suit the hardware take longer.
        cache_dir (`str | Path`, *optional*): folder of the tables. Default: the environment's `CAMCUT_CACHE`, or
            `camcut` in `HF_HOME` (`~/.cache/huggingface`).
        refresh (`bool`): measure again, whatever the cache holds.
        disable_tqdm (`bool`): no progress bar.

    Raises:
        `ValueError`: the architecture is not supported, the model is sharded, or inputs for it cannot be made.
    """
    check_bare(model, "latency_table")
    check_whole(model, "measuring latency")
    random_inputs(model, 1, config.sequence_length)  # raises if none can be made
    conditions = _conditions(model, config)
    folder = Path(cache_dir or os.environ.get("CAMCUT_CACHE") or Path(constants.HF_HOME) / "camcut")
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"latency-{model.config.model_type}-{digest}.json"
    state = PartialState()
    found: list[Any] = [None]
    with all_or_none():
        if state.is_main_process:
            found = [None if refresh else _read(path, conditions)]
            if found[0] is None:
                table = _measure(model, config, conditions, disable_tqdm)
                found = [table.to_dict()]
                _write(path, table)
    if state.num_processes > 1:
        found = broadcast_object_list(found)
    table = LatencyTable.from_dict(found[0])
    logger.info("latency table (%s):\n%s", path, table)
    return table


def _read(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        table = LatencyTable.load(path)
    except (OSError, ValueError) as error:
        logger.warning("the latency table in %s cannot be used, and is measured again: %s", path, error)
        return None
    return table.to_dict() if table.conditions == conditions else None


def _write(path: Path, table: LatencyTable) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    except (OSError, WriteError) as error:
        logger.warning("the latency table could not be kept for the next time: %s", error)


def _conditions(model: PreTrainedModel, config: PruningConfig) -> dict[str, Any]:
    """All that the times depend on, as JSON types."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    # What shapes do not show: how often ALBERT calls a layer, the activation function, ...
    facts = {
        name: value
        for name, value in model.config.to_dict().items()
        if isinstance(value, int | float | str) and name not in ("_name_or_path", "transformers_version")
    }
    return {
        "device": device_name(model.device),
        "model": type(model).__name__,
        "shape": hashlib.sha256(json.dumps([shapes, facts], sort_keys=True).encode()).hexdigest()[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "float32_matmul": _float32_matmul(),
        "batch_size": config.latency_batch_size,
        "sequence_length": config.sequence_length,
        "multiple_of": config.multiple_of,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "optimum_camcut": __version__,  # which measures in another way, perhaps
    }


def check_measurable(model: PreTrainedModel) -> None:
    """Raises `ValueError` if the time of a model's layers is no function of their sizes."""
    if any(group.observed != "inputs" for group in list_groups(model)):
        raise ValueError("the time of layers with experts depends on where each token is sent: no latency table of it")


def _float32_matmul() -> str:
    """How exactly the device multiplies float32: TF32 is several times as fast."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # where the switches of each backend are set, this one may not be read
        return torch.backends.cuda.matmul.fp32_precision


def device_name(device: torch.device) -> str:
    """The name of the processor with the number of threads, or of the accelerator."""
    if device.type == "cpu":
        name = platform.processor() or platform.machine()
        information = Path("/proc/cpuinfo")
        if information.exists():
            lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
            name = lines[0].partition(":")[2].strip() if lines else name
        threads = torch.get_num_threads()
        return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return device.type


@torch.no_grad()
def _measure(
    model: PreTrainedModel, config: PruningConfig, conditions: Mapping[str, Any], disable_tqdm: bool
) -> LatencyTable:
    check_measurable(model)
    groups = [group for group in list_groups(model) if group.size]
    kinds: dict[str, list[Group]] = {}  # by label
    for group in groups:
        if group.kind != "layers":
            kinds.setdefault(label_of(group.name), []).append(group)
    live, grids = {}, {}  # of each kind, the layers that are measured, all of one size; and the sizes
    for kind, found in kinds.items():
        largest = max(group.size for group in found)
        live[kind] = [group.name for group in found if group.size == largest][:LAYERS]
        grids[kind] = _grid(largest, config.multiple_of if found[0].kind == "neurons" else None)
    # What is there in each copy to time, and how much of it: nothing, one kind at one size, and a whole pruned model.
    probes: dict[Any, dict[str, int]] = {PRUNED: {}, BARE: {}}
    for kind, found in kinds.items():
        probes |= {(kind, size): dict.fromkeys(live[kind], size) for size in grids[kind]}
        for number, group in enumerate(found):
            wanted = group.size * PRUNED_TO[number % len(PRUNED_TO)]
            fitting = [size for size in grids[kind] if size <= group.size]
            probes[PRUNED][group.name] = min(fitting, key=lambda size: abs(size - wanted), default=group.size)
    timed = _time_in_turn(model, groups, probes, config, disable_tqdm)
    total = statistics.median(timed[WHOLE])
    ratio = {probe: statistics.median(timed[probe]) for probe in probes}  # to the whole model
    shares = {}
    for kind, grid in grids.items():
        errors = [statistics.variance(timed[kind, size]) / ROUNDS for size in grid]
        smooth = _less_noise(grid, [ratio[kind, size] - ratio[BARE] for size in grid], statistics.fmean(errors))
        shares[kind] = {size: max(share, 0.0) / len(live[kind]) for size, share in zip(grid, smooth)}
    table = LatencyTable(
        conditions=dict(conditions),
        total=total,
        times=shares,
        sizes={group.name: group.size for found in kinds.values() for group in found},
        widths={kind: found[0].output.width for kind, found in kinds.items()},
    )
    # Together sub-layers take a little longer than one by one, in proportion or not: the table is scaled to give the
    # whole model's time, halfway between leaving all else as it was alone, and meeting the pruned model's time too.
    whole, pruned = (
        sum(table.seconds(label_of(name), size) for name, size in sizes.items())
        for sizes in (table.sizes, probes[PRUNED])
    )
    alone = (1 - ratio[BARE]) / (whole or 1.0)
    met = (1 - ratio[PRUNED]) / (whole - pruned) if whole > pruned else alone
    scale = total * min(max((alone + met) / 2, 0.5), 2.0, 1 / (whole or 1.0))  # noise must not turn it around
    times = {kind: {size: scale * share for size, share in points.items()} for kind, points in shares.items()}
    return dataclasses.replace(table, times=times)


def _time_in_turn(
    model: PreTrainedModel,
    groups: Sequence[Group],
    probes: Mapping[Any, Mapping[str, int]],
    config: PruningConfig,
    disable_tqdm: bool,
) -> dict[Any, list[float]]:
    """For every probe, one number a round: its time over that of the model. Under `WHOLE`, the model's, in seconds."""
    inputs = random_inputs(model, config.latency_batch_size, config.sequence_length)
    found: dict[Any, list[float]] = {probe: [] for probe in (WHOLE, *probes)}
    sized = {probe: sizes for probe, sizes in probes.items() if probe != PRUNED}
    step = -(-len(sized) // 3)
    with (
        keeping_memory(),
        tqdm(total=(ROUNDS + 1) * len(sized), desc="latency", disable=disable_tqdm, leave=False) as bar,
    ):
        for number in range(ROUNDS + 1):
            whole, pruned, seconds = [], [], {}
            for position, (probe, sizes) in enumerate(sized.items()):
                if position % step == 0:  # what all the others are measured by
                    whole.append(time_forward(model, inputs))
                    pruned.append(time_forward(_only(model, groups, probes[PRUNED]), inputs) / whole[-1])
                seconds[probe] = time_forward(_only(model, groups, sizes), inputs)
                bar.update()
            if number > 0:  # the first round warms up
                found[WHOLE] += whole
                found[PRUNED] += pruned
                for probe in sized:
                    found[probe].append(seconds[probe] / statistics.median(whole))
    return found


def _less_noise(sizes: Sequence[int], times: Sequence[float], variance: float) -> list[float]:
    """Draws times towards a line by as much of their distance from it as their variance explains (as the estimator of
    James and Stein does): a search for the best sizes would else go for those that were measured too fast."""
    if len(sizes) < 3:
        return list(times)
    line = np.polyval(np.polyfit(sizes, times, 1), sizes)
    distance = np.asarray(times) - line
    return (line + distance * max(1 - variance / max(float(np.mean(distance**2)), 1e-30), 0.0)).tolist()


def _grid(size: int, multiple: int | None) -> list[int]:
    """Sizes to measure up to the whole: of neurons, such as plans will have. Without a multiple to keep to, that is
    odd numbers, which many kernels take longer for, up to the one next to the whole."""
    points = {round(size * step / SIZES) for step in range(1, SIZES)} | {1}
    if multiple is None:
        points |= set(range(1, size)) if size <= SIZES else set()
    elif multiple == 1:
        points = {point - (point % 2 == 0) for point in points} | {size - 1}
    else:
        points = {multiple * max(round(point / multiple), 1) for point in points}
    return sorted(point for point in points | {size} if 0 < point <= size)


def _only(model: PreTrainedModel, groups: Sequence[Group], sizes: Mapping[str, int]) -> PreTrainedModel:
    """A copy of the model that shares its weights, with so many units of the named groups and without the other
    sub-layers. Those that cannot be left out keep one unit."""
    probe = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    parts = {sublayer_of(name) for name in sizes}
    removable = {group.name for group in groups if group.kind == "layers"}
    cuts: list[tuple[Group, Sequence[int]]] = []
    for group in groups:
        if group.kind == "layers":
            cuts.append((group, range(group.name in parts)))
        elif group.name in sizes or sublayer_of(group.name) not in removable:
            cuts.append((group, range(sizes.get(group.name, 1))))
    cut_groups(probe, [(group, units) for group, units in cuts if len(units) < group.size])
    # Which heads are kept makes no difference to the time.
    kept = {group.name: list(range(len(units))) for group, units in cuts if group.kind == "heads"}
    bind_position_bias(probe, kept)
    return probe
