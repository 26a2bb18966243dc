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
"""Budgets: how near plans come to them, in parameters, in FLOPs and in the time that a table predicts."""

import dataclasses
import itertools
import json
import os
import re

import numpy as np
import pytest
import torch
from latency_tables import table_of
from marks import few
from models import ARCHITECTURES, tiny_batch, tiny_config, tiny_model
from trainers import Interrupt, make_trainer, pruning, same, weights
from transformers import AutoModelForSequenceClassification, ViTConfig, ViTForImageClassification
from workers import measure, together

from optimum_camcut import (
    LatencyTable,
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    latency_table,
    make_plan,
)
from optimum_camcut.architectures.slices import Slice
from optimum_camcut.planning.allocation import check_budget
from optimum_camcut.planning.costs import remaining_budget, unit_cost
from optimum_camcut.planning.latency import _conditions
from optimum_camcut.planning.measure import count_flops, count_parameters, measure_latency, random_inputs


KINDS = ("heads", "neurons", "layers")


SHAPES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
ALLOCATIONS = ("per_kind", "global", "uniform")


@pytest.fixture(scope="module")
def shapes():
    """The groups of real shapes. No weights: only what they cost matters."""
    with torch.device("meta"):
        models = {
            name: AutoModelForSequenceClassification.from_config(tiny_config("bert", **shape))
            for name, shape in SHAPES.items()
        }
    return {name: find_groups(model, KINDS) for name, model in models.items()}


def scores_of(groups, seed=0):
    """Skewed, and of different sizes in different layers, so that plans are uneven."""
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.rand(g.size, generator=generator) ** 4 * (0.2 + torch.rand((), generator=generator))
        for g in groups
    }


def counted(groups, plan):
    """The groups as they would be after the cut."""
    return [
        dataclasses.replace(g, size=len(plan.keep[g.name]), units=plan.keep[g.name])
        for g in groups
        if plan.keep.get(g.name)
    ]


# --- parameters and FLOPs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple_of", few([64, 1, 8]))
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("budget", ["params", "flops"])
@pytest.mark.parametrize("shape", SHAPES)
def test_real_shapes_come_within_two_percent_of_what_is_wanted(shapes, shape, budget, allocation, multiple_of):
    """Of what is to be left. `uniform` takes the same step in all layers, half of which may be more."""
    groups = [g for g in shapes[shape] if g.kind != "layers"]
    for percent in range(20, 86, 5):
        config = PruningConfig(
            sparsity=percent / 100,
            budget=budget,
            allocation=allocation,
            multiple_of=multiple_of,
            sequence_length=200,
            method="fisher",
        )
        plan = make_plan(scores_of(groups, percent), groups, config)
        wanted = 1 - config.sparsity
        step = multiple_of / groups[1].size / 2 if allocation == "uniform" else 0
        left = remaining_budget(groups, counted(groups, plan), config)
        assert left == pytest.approx(wanted, abs=max(0.02 * wanted, step)), percent


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_flops_are_those_at_the_sequence_length(allocation):
    """Counted in the model that is cut, at lengths where attention is a small and a large part."""
    for tokens in (4, 60):
        model = tiny_model("bert", hidden_size=64, num_attention_heads=16, intermediate_size=200)
        groups = find_groups(model)
        config = PruningConfig(
            sparsity=0.45, budget="flops", allocation=allocation, sequence_length=tokens, method="fisher"
        )
        before = count_flops(model, 1, tokens)
        apply_plan(model, make_plan(scores_of(groups), groups, config))
        prunable = tokens * sum(g.size * unit_cost(g, config) for g in groups)
        left = 1 - (before - count_flops(model, 1, tokens)) / prunable
        assert left == pytest.approx(0.55, rel=0.02)


def test_neurons_make_up_for_the_rounding_of_heads_in_every_layer():
    """Of 3 heads at 10 and 20 neurons at 1, half is 25 a layer: 2 heads, and so 5 neurons."""
    groups = [
        PrunableGroup(f"layer.{layer}.{kind}", kind, size, (), unit_parameters=cost)
        for layer in range(2)
        for kind, size, cost in (("heads", 3, 10), ("neurons", 20, 1))
    ]
    plan = make_plan(scores_of(groups), groups, PruningConfig(sparsity=0.5, allocation="uniform"))
    assert [len(units) for units in plan.keep.values()] == [2, 5, 2, 5]


# --- a table by hand ------------------------------------------------------------------------------------------------


def by_hand():
    """Two layers of 3 heads at 4, 6 and 8 seconds, and of 4 neurons at 1, 2, 3 and 4; 6 for all else: 30."""
    groups = [
        PrunableGroup(f"layer.{layer}.{kind}", kind, size, (Slice("", "in", 1),), unit_parameters=1)
        for layer in range(2)
        for kind, size in (("heads", 3), ("neurons", 4))
    ]
    table = LatencyTable(
        {},
        30.0,
        {"heads": {1: 4.0, 3: 8.0}, "neurons": {1: 1.0, 2: 2.0, 4: 4.0}},
        {g.name: g.size for g in groups},
        {"heads": 1, "neurons": 1},
    )
    return groups, table


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
def test_what_always_stays_counts_in_the_time(allocation):
    """24 of 30 seconds are to stay, of which layer 0 takes 12 and the rest of the model 6."""
    groups, table = by_hand()
    scores = scores_of(groups)
    config = PruningConfig(sparsity=0.2, budget="latency", allocation=allocation, exclude=[0])
    check_budget(groups, config, table)
    scores["layer.1.heads"][2] = torch.inf
    kept = make_plan(scores, groups, config, latency=table).keep
    assert (
        kept["layer.0.heads"] == (0, 1, 2) and kept["layer.0.neurons"] == (0, 1, 2, 3) and 2 in kept["layer.1.heads"]
    )
    cut = [dataclasses.replace(g, size=len(kept[g.name]), units=kept[g.name]) for g in groups]
    assert table.total_of(cut) <= 30 * 0.8 + 1 + 1e-9
    with pytest.raises(ValueError, match=r"the highest possible sparsity here is 0.2333 \(.*; 3 of 6 heads are excl"):
        check_budget(groups, dataclasses.replace(config, sparsity=0.4), table)  # 30 - 4 - 3


def test_infinity_does_not_spoil_the_search():
    """What else stays is what stays beside a unit that is the best by far."""
    groups, table = by_hand()
    config = PruningConfig(sparsity=0.25, budget="latency", allocation="global", method="fisher")
    scores = {g.name: torch.tensor([3.0, 9.0, 1.0, 2.0][: g.size]) for g in groups}
    best = make_plan(scores, groups, config, latency=table)
    assert any(1 < len(units) < g.size for g, units in zip(groups, best.keep.values()))
    scores["layer.0.heads"][1] = torch.inf
    assert make_plan(scores, groups, config, latency=table).keep == best.keep


def test_between_two_sizes_the_time_is_on_the_line():
    groups, table = by_hand()
    assert [table.seconds("heads", n) for n in (1, 2, 3)] == [4.0, 6.0, 8.0]
    assert table.price(groups[0]).tolist() == [4.0, 4.0, 6.0, 8.0]  # with no heads left, that of the smallest
    assert table.price(groups[1]).tolist() == [1.0, 1.0, 2.0, 3.0, 4.0]
    layer = PrunableGroup("layer.1.attention", "layers", 1, (Slice("", "in", 2),))  # two heads wide
    assert table.price(layer).tolist() == [0.0, 6.0]


def test_the_total_counts_what_is_there():
    groups, table = by_hand()
    assert table.total_of(groups) == 30.0
    assert table.total_of(groups[:1]) == 30.0 - 8.0  # heads are listed, and those of layer 1 are gone
    assert table.total_of(groups[::2]) == 30.0  # neurons are not listed at all, so nothing is known of a cut
    left = [dataclasses.replace(groups[0], size=2, units=(0, 2)), *groups[1:]]
    assert table.total_of(left) == 28.0
    layers = [
        PrunableGroup("layer.0.attention", "layers", 1, (Slice("", "in", 3),)),
        PrunableGroup("layer.1.feed_forward", "layers", 1, (Slice("", "in", 2),)),
    ]
    assert table.total_of(layers) == 6 + 8 + 2


def test_latency_by_hand():
    """Half of 30 seconds, 6 of them fixed, leaves 9 for layers that take at least 10; 0.45 leaves 10.5. What is
    nearest below is one unit of each."""
    groups, table = by_hand()
    scores = scores_of(groups)
    with pytest.raises(ValueError, match=r"the highest possible sparsity here is 0\.4666") as error:
        make_plan(scores, groups, PruningConfig(sparsity=0.5, budget="latency"), latency=table)
    highest = float(re.search(r"here is (\d\.\d+)", str(error.value))[1])
    for allocation in ALLOCATIONS:
        config = PruningConfig(sparsity=highest, budget="latency", allocation=allocation)
        plan = make_plan(scores, groups, config, latency=table)
        assert [len(units) for units in plan.keep.values()] == [1, 1, 1, 1]
        assert remaining_budget(groups, counted(groups, plan), config, table) == pytest.approx(16 / 30)
        with pytest.raises(ValueError, match="sparsity=0.6 cannot be reached"):
            check_budget(groups, dataclasses.replace(config, sparsity=0.6), table)
    plan = make_plan(scores, groups, PruningConfig(sparsity=0.2, budget="latency"), latency=table)
    heads, neurons = (sum(len(u) for n, u in plan.keep.items() if n.endswith(kind)) for kind in ("heads", "neurons"))
    assert (heads, neurons) == (4, 6)  # 0.7 of each would be 18: 12 for 4.2 heads, rounded, and 6 for 6 neurons


def test_a_plan_that_misses_its_time_says_so(caplog):
    """All takes 30 seconds, 9 of them fixed; with one of its two units, 10. There is nothing near 15."""
    groups = [PrunableGroup("layer.0.neurons", "neurons", 2, (Slice("", "in", 1),), unit_parameters=1)]
    table = LatencyTable({}, 30.0, {"neurons": {1: 1.0, 2: 21.0}}, {"layer.0.neurons": 2}, {"neurons": 1})
    for sparsity, said in ((0.5, True), (0.65, False)):
        caplog.clear()
        config = PruningConfig(sparsity=sparsity, budget="latency", allocation="per_kind")
        plan = make_plan(scores_of(groups), groups, config, latency=table)
        assert len(plan.keep["layer.0.neurons"]) == 1
        assert ("the plan takes 0.67 times the time that sparsity=0.5 leaves" in caplog.text) == said
    caplog.clear()
    check_budget(groups, dataclasses.replace(config, sparsity=0.5), table)
    assert not caplog.text


@pytest.mark.parametrize("multiple_of", few([64, 1]))
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_plans_meet_the_predicted_time(shapes, shape, allocation, multiple_of):
    """Also with times that jump up and down from size to size, as those of kernels do."""
    groups = [g for g in shapes[shape] if g.kind != "layers"]
    wavy = lambda n: 5 + 0.02 * n + 2 * np.sin(n / 100)  # noqa: E731
    for neurons, sparsity in itertools.product((None, wavy), (0.2, 0.45, 0.5, 0.7, 0.75)):
        table = table_of(groups, neurons=neurons, rest=3.0 * len(groups) / 2)
        config = PruningConfig(
            sparsity=sparsity, budget="latency", allocation=allocation, multiple_of=multiple_of, method="fisher"
        )
        plan = make_plan(scores_of(groups), groups, config, latency=table)
        left = remaining_budget(groups, counted(groups, plan), config, table)
        assert left == pytest.approx(1 - sparsity, rel=0.04 if allocation == "uniform" else 0.02)
        for g in groups:
            assert len(plan.keep[g.name]) == g.size or len(plan.keep[g.name]) % multiple_of == 0 or g.kind == "heads"
        kept = {
            kind: sum(len(plan.keep[g.name]) for g in groups if g.kind == kind)
            / sum(g.size for g in groups if g.kind == kind)
            for kind in ("heads", "neurons")
        }
        if allocation != "global" and neurons is None:
            assert kept["heads"] == pytest.approx(kept["neurons"], abs=0.1)
        if allocation == "uniform":
            assert len({len(plan.keep[g.name]) for g in groups}) <= 2


def test_global_finds_the_best_of_all_plans():
    """Against trying every combination of sizes, with times that do not grow evenly, nor always."""
    times = {"heads": {1: 4.0, 2: 9.0, 3: 8.0}, "neurons": {1: 2.0, 2: 2.5, 3: 6.0, 4: 5.5}}
    groups, table = by_hand()
    table = dataclasses.replace(table, times=times, total=33.0)
    for seed, sparsity in itertools.product(range(8), (0.1, 0.25, 0.4)):
        scores = scores_of(groups, seed)
        config = PruningConfig(sparsity=sparsity, budget="latency", allocation="global", method="fisher")
        plan = make_plan(scores, groups, config, latency=table)
        worth = {
            g.name: [0.0, *scores[g.name].sort(descending=True).values.double().cumsum(0).tolist()] for g in groups
        }
        best = 0.0
        for counts in itertools.product(*(range(1, g.size + 1) for g in groups)):
            spent = 6.0 + sum(times[g.kind][n] for g, n in zip(groups, counts))
            if spent <= 33.0 * (1 - sparsity) + 1e-9:
                best = max(best, sum(worth[g.name][n] for g, n in zip(groups, counts)))
        found = sum(worth[g.name][len(plan.keep[g.name])] for g in groups)
        assert found >= best - 1e-6
        left = table.total_of(counted(groups, plan))
        assert left <= 33.0 * (1 - sparsity) * (1 + 1e-3)


def test_global_prefers_what_saves_more_time(shapes):
    """Equal scores: where heads are expensive for what they are worth, heads go, and the other way round."""
    groups = [g for g in shapes["minilm"] if g.kind != "layers"]
    scores = {g.name: torch.full((g.size,), 1.0 / g.size) for g in groups}
    config = PruningConfig(sparsity=0.4, budget="latency", allocation="global", method="fisher")
    kept = {}
    for slow, functions in {
        "heads": {"heads": lambda n: 100.0 * n, "neurons": lambda n: 0.1 * n},
        "neurons": {"heads": lambda n: 1.0 * n, "neurons": lambda n: 1.0 * n},
    }.items():
        plan = make_plan(scores, groups, config, latency=table_of(groups, **functions))
        kept[slow] = {
            kind: sum(len(plan.keep[g.name]) for g in groups if g.kind == kind) for kind in ("heads", "neurons")
        }
    assert kept["heads"]["heads"] < 40 and kept["heads"]["neurons"] == 6 * 1536
    assert kept["neurons"]["neurons"] < 6 * 1000 and kept["neurons"]["heads"] == 72


@pytest.mark.parametrize("kinds", [("heads",), ("neurons",)])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_one_kind_alone_pays_for_the_whole_model(shapes, kinds, allocation):
    """A tenth of the whole model's time, out of heads or out of neurons alone; the other half of it stays."""
    groups = [g for g in shapes["bert-base"] if g.kind != "layers"]
    table, chosen = table_of(groups), [g for g in groups if g.kind in kinds]
    config = PruningConfig(sparsity=0.1, budget="latency", granularity=kinds, allocation=allocation, method="fisher")
    plan = make_plan(scores_of(chosen), chosen, config, latency=table)
    left = remaining_budget(chosen, counted(chosen, plan), config, table)
    assert left == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="the highest possible sparsity here is"):
        check_budget(chosen, dataclasses.replace(config, sparsity=0.9), table)


@pytest.mark.parametrize("granularity", [("layers",), KINDS])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_layers_go_by_their_predicted_time(shapes, granularity, allocation):
    groups = [g for g in shapes["bert-base"] if g.kind in granularity]
    table = table_of(shapes["bert-base"])
    config = PruningConfig(
        sparsity=0.5, budget="latency", granularity=granularity, allocation=allocation, method="fisher"
    )
    plan = make_plan(scores_of(groups), groups, config, latency=table)
    left = remaining_budget(groups, counted(groups, plan), config, table)
    gone = [g.name for g in groups if g.kind == "layers" and not plan.keep[g.name]]
    assert gone and left == pytest.approx(0.5, abs=0.01 if len(granularity) > 1 else 0.03)


def test_a_plan_within_a_plan(shapes):
    """Cut twice by the same table, each time to 0.7 of what there is then."""
    groups = [g for g in shapes["minilm"] if g.kind != "layers"]
    table, config = table_of(groups), PruningConfig(sparsity=0.3, budget="latency")
    once = counted(groups, make_plan(scores_of(groups), groups, config, latency=table))
    twice = counted(once, make_plan(scores_of(once), once, config, latency=table))
    assert remaining_budget(groups, once, config, table) == pytest.approx(0.7, rel=0.01)
    assert remaining_budget(groups, twice, config, table) == pytest.approx(0.49, rel=0.01)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_latency_needs_a_table_of_this_model_and_this_config(shapes):
    groups = [g for g in shapes["minilm"] if g.kind != "layers"]
    scores, config = scores_of(groups), PruningConfig(sparsity=0.5, budget="latency", latency_batch_size=4)
    with pytest.raises(ValueError, match=re.escape("make_plan(scores, groups, config, latency=latency_table(model,")):
        make_plan(scores, groups, config)
    with pytest.raises(ValueError, match="budget='latency' needs the times"):
        remaining_budget(groups, groups, config)
    table = table_of(groups, batch_size=8, sequence_length=128)
    with pytest.raises(ValueError, match="wants the latency at 4 x 128 tokens, but the table was measured with batch"):
        make_plan(scores, groups, config, latency=table)
    other = table_of([g for g in shapes["minilm"] if g.name.startswith("layer.0.") and g.kind != "layers"])
    with pytest.raises(ValueError, match=r"has 12 units in 'layer.1.heads', but the latency table lacks it"):
        make_plan(scores, groups, config, latency=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": ("weights",)}, "masked weights take as long as any"),
        ({"sparsity": None, "compression": 2.0}, "compression counts parameters; with budget='latency' give sparsity"),
    ],
)
def test_what_latency_does_not_go_with(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(
            **{"method": "snip" if "granularity" in changes else "fisher", "sparsity": 0.5, **changes},
            budget="latency",
        )


def test_a_table_is_json(tmp_path):
    _, table = by_hand()
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    for broken in (
        {"total": 0.0},
        {"total": float("nan")},
        {"times": {"heads": {"1": 1.0}}},
        {"times": None},
        {"sizes": {"layer.0.heads": 5, "layer.0.neurons": 1}},
        {"widths": {}},
    ):
        with pytest.raises(ValueError, match="a latency table should hold a total in seconds"):
            LatencyTable.from_dict({**table.to_dict(), **broken})
    with pytest.raises(ValueError, match="unknown LatencyTable fields"):
        LatencyTable.from_dict({**table.to_dict(), "more": 1})


def test_a_table_prints():
    _, table = by_hand()
    lines = str(table).splitlines()
    assert lines[1] == "whole model 30000.000" and lines[-1] == "all else 6000.000"
    assert "2 attention sub-layers 16000.000; one of them by its heads:" in lines
    assert "       4   4000.000" in lines


# --- measured -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_rounds(monkeypatch):
    """Of timing: for what does not depend on how exact it is."""
    monkeypatch.setattr("optimum_camcut.planning.latency.ROUNDS", 2)


def config_of(**changes):
    return PruningConfig(
        **{"sparsity": 0.3, "budget": "latency", "latency_batch_size": 2, "sequence_length": 8, **changes}
    )


@pytest.mark.usefixtures("two_rounds")
@pytest.mark.parametrize(
    "architecture", few(["bert", "llama", *(name for name in ARCHITECTURES if name not in ("bert", "llama"))], 2)
)
def test_every_architecture_is_measured(architecture, tmp_path):
    model = tiny_model(architecture)
    before, modules = weights(model), [*model.modules()]
    table = latency_table(model, config_of(), cache_dir=tmp_path, disable_tqdm=True)
    assert same(weights(model), before) and modules == [*model.modules()]
    groups = find_groups(model)
    assert table.sizes == {g.name: g.size for g in groups}
    assert sorted(table.times) == ["heads", "neurons"] and table.total > 0
    assert list(table.times["heads"]) == [1, 2, 3, 4]
    assert {1, 36, 37} <= set(table.times["neurons"])
    assert table.total_of(groups) == table.total
    assert table.conditions["batch_size"] == 2 and table.conditions["sequence_length"] == 8


def test_what_a_table_is_kept_by(monkeypatch):
    """Also by how exactly float32 is multiplied, where torch lets that be asked, and by the version that measures."""
    model, config = tiny_model("bert"), config_of()
    keys = [_conditions(model, config)]
    keys += [
        _conditions(*other)
        for other in (
            (model, dataclasses.replace(config, latency_batch_size=3)),
            (model, dataclasses.replace(config, sequence_length=9)),
            (model, dataclasses.replace(config, multiple_of=8)),
            (tiny_model("bert", intermediate_size=40), config),
            (tiny_model("bert", hidden_act="relu"), config),
            (tiny_model("bert").to(torch.bfloat16), config),
            (tiny_model("bert", attn_implementation="eager"), config),
        )
    ]
    for target, value in (
        ("torch.get_float32_matmul_precision", lambda: "high"),
        ("optimum_camcut.planning.latency.__version__", "another"),
    ):
        assert _conditions(model, config_of()) == keys[0]
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            keys.append(_conditions(model, config_of()))

    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr("torch.get_float32_matmul_precision", mixed)
    keys.append(_conditions(model, config_of()))
    assert len({json.dumps(key) for key in keys}) == len(keys) == 11


@pytest.mark.usefixtures("two_rounds")
def test_measuring_once(tmp_path, caplog):
    """The second time the file is read, unless what it depends on is different, or it is broken."""
    model, config = tiny_model("bert"), config_of()
    table = latency_table(model, config, cache_dir=tmp_path, disable_tqdm=True)
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text()) == table.to_dict()
    marked = {**table.to_dict(), "total": 12345.0}
    file.write_text(json.dumps(marked))
    assert latency_table(tiny_model("bert", seed=1), config, cache_dir=tmp_path).total == 12345.0
    assert latency_table(model, dataclasses.replace(config, sparsity=0.9, seed=3), cache_dir=tmp_path).total == 12345.0
    other = dataclasses.replace(config, sequence_length=9)
    assert latency_table(model, other, cache_dir=tmp_path, disable_tqdm=True).total != 12345.0
    assert len([*tmp_path.iterdir()]) == 2
    assert latency_table(model, config, cache_dir=tmp_path, refresh=True, disable_tqdm=True).total != 12345.0
    file.write_text("{")
    assert latency_table(model, config, cache_dir=tmp_path, disable_tqdm=True).total != 12345.0
    assert "cannot be used, and is measured again" in caplog.text


@pytest.mark.usefixtures("two_rounds")
def test_where_tables_are_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CAMCUT_CACHE", str(tmp_path / "own"))
    table = latency_table(tiny_model("bert"), config_of(), disable_tqdm=True)
    [file] = (tmp_path / "own").iterdir()
    assert file.name.startswith("latency-bert-") and LatencyTable.load(file) == table
    (tmp_path / "file").write_text("")
    latency_table(tiny_model("bert"), config_of(), cache_dir=tmp_path / "file" / "x", disable_tqdm=True)
    assert "the latency table could not be kept for the next time" in caplog.text


@pytest.mark.usefixtures("two_rounds")
def test_sizes_are_measured_as_plans_will_have_them(tmp_path):
    model = tiny_model("bert", intermediate_size=256)
    by_eight = latency_table(model, config_of(multiple_of=8), cache_dir=tmp_path, disable_tqdm=True)
    assert all(size % 8 == 0 for size in by_eight.times["neurons"])
    freely = latency_table(model, config_of(), cache_dir=tmp_path, disable_tqdm=True)
    assert {size for size in freely.times["neurons"] if size % 2 == 0} == {256}
    assert 10 < len(by_eight.times["neurons"]) < 20 and 10 < len(freely.times["neurons"]) < 20


def test_a_pruned_model_is_measured_too(tmp_path):
    """Layers of different sizes, and some that are gone."""
    model = tiny_model("mpnet")
    keep = {"layer.0.heads": [1, 3], "layer.1.attention": [], "layer.2.feed_forward": [], "layer.0.neurons": range(5)}
    apply_plan(model, PruningPlan(keep))
    table = latency_table(model, config_of(), cache_dir=tmp_path, disable_tqdm=True)
    assert table.sizes == {"layer.0.heads": 2, "layer.0.neurons": 5, "layer.1.neurons": 37, "layer.2.heads": 4}
    assert max(table.times["heads"]) == 4 and max(table.times["neurons"]) == 37
    with torch.no_grad():
        model(**tiny_batch())


@pytest.mark.long
def test_a_larger_layer_takes_longer(tmp_path):
    """By so much that no other work on the machine can hide it."""
    model = tiny_model(
        "bert", hidden_size=64, intermediate_size=4096, num_attention_heads=4, max_position_embeddings=128
    )
    config = config_of(latency_batch_size=8, sequence_length=64)
    table = latency_table(model, config, cache_dir=tmp_path, disable_tqdm=True)
    assert table.seconds("neurons", 4096) > 2 * table.seconds("neurons", 256)
    groups = find_groups(model)
    parts = sum(table.seconds(g.kind, g.size) for g in groups)
    assert 0.5 * table.total < parts <= table.total


def test_measuring_latency_of_models_side_by_side():
    small, large = tiny_model("bert"), tiny_model("bert", intermediate_size=999)
    found = measure_latency({"small": small, "large": large}, 2, 8, repeats=3)
    assert [*found] == ["small", "large"]
    assert all(0 < result.low <= result.median <= result.high for result in found.values())


# --- the trainer ----------------------------------------------------------------------------------------------------


def hand_made_for(trainer, **changes):
    groups = find_groups(trainer.model)
    trainer.latency_table = table_of(groups, **{"rest": 2.0, "neurons": lambda n: 1 + n, **changes})
    return groups


@pytest.mark.usefixtures("two_rounds")
@pytest.mark.parametrize("rounds", few([2, 1]))
@pytest.mark.parametrize("recovery", few(["reconstruct", "none", "finetune"]))
def test_the_trainer_arrives_at_the_time(recovery, rounds, tmp_path):
    config = pruning(sparsity=0.5, budget="latency", recovery=recovery, rounds=rounds)
    trainer = make_trainer(tmp_path, config)
    groups = hand_made_for(trainer)
    trainer.train()
    left = remaining_budget(groups, find_groups(trainer.model), config, trainer.latency_table)
    assert left == pytest.approx(0.5, abs=0.02)
    assert trainer.pruning_plan.config == config


def test_the_trainer_refuses_a_time_that_cannot_be_reached_before_it_scores(tmp_path):
    trainer = make_trainer(tmp_path, pruning(sparsity=0.9, budget="latency"))
    hand_made_for(trainer, rest=1000.0)
    with pytest.raises(ValueError, match="sparsity=0.9 cannot be reached: the highest possible sparsity here is"):
        trainer.train()
    assert trainer.scores is None and trainer.pruning_plan is None


@pytest.mark.usefixtures("two_rounds")
def test_the_trainer_measures_by_itself_and_resumes(tmp_path, monkeypatch):
    """Interrupted in its recovery, it reads the same table and ends with the same weights."""
    monkeypatch.setenv("CAMCUT_CACHE", str(tmp_path / "cache"))
    shape = {"hidden_size": 64, "intermediate_size": 512, "num_attention_heads": 8}
    config = pruning(sparsity=0.05, budget="latency", rounds=2, sequence_length=32)
    run = {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", config, tiny_model("bert", **shape), **run)
    whole.train()
    [file] = (tmp_path / "cache").iterdir()
    assert whole.latency_table == LatencyTable.load(file)
    broken = make_trainer(tmp_path / "broken", config, tiny_model("bert", **shape), callbacks=[Interrupt(2, 4)], **run)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    again = make_trainer(tmp_path / "broken", config, tiny_model("bert", **shape), **run)
    again.train(resume_from_checkpoint=True)
    assert again.latency_table == whole.latency_table and again.pruning_plan == whole.pruning_plan
    assert same(weights(again.model), weights(whole.model))


def test_all_processes_get_the_table_of_the_first(tmp_path):
    for worker in together(2, measure, str(tmp_path)):
        code, output = worker.end(200)
        assert code == 0, output
    first, second = (LatencyTable.load(tmp_path / f"{index}.json") for index in range(2))
    assert first == second and os.listdir(tmp_path / "cache-0") and not (tmp_path / "cache-1").exists()


def test_a_cut_model_counts_as_its_groups_say():
    """What `remaining_budget` says of a plan is what is counted in the model."""
    model = tiny_model("bert")
    groups, before = find_groups(model), count_parameters(model)
    config = PruningConfig(sparsity=0.4, allocation="uniform")
    apply_plan(model, make_plan(scores_of(groups), groups, config))
    prunable = sum(g.size * g.unit_parameters for g in groups)
    left = remaining_budget(groups, find_groups(model), config)
    assert 1 - (before - count_parameters(model)) / prunable == pytest.approx(left, rel=1e-9)


@pytest.fixture()
def vision():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=[8, 12], patch_size=4, num_channels=1))


def test_inputs_to_measure_with_are_those_that_a_model_takes(vision):
    """Images by their size in the config; token ids by the table of the model, where the config has no such field."""
    images = random_inputs(vision, 2, 128)
    assert {name: values.shape for name, values in images.items()} == {"pixel_values": (2, 1, 8, 12)}
    assert measure_latency({"vision": vision}, batch_size=2, repeats=1)["vision"].median > 0
    assert count_flops(vision) > 0
    model = tiny_model("bert")
    model.bert.set_input_embeddings(torch.nn.Embedding(3, 32))
    model.config.pad_token_id = 2
    assert random_inputs(model, 4, 9)["input_ids"].unique().tolist() == [0, 1]
    vision.main_input_name = "input_values"
    with pytest.raises(ValueError, match="takes 'input_values', and its config does not say of what shape"):
        latency_table(vision, PruningConfig(sparsity=0.5, budget="latency"))
