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
"""Plans: which units are kept, by hand and at random, and what a plan is as a value."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import random_plan, tiny_batch, tiny_model

from optimum_camcut import (
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    make_plan,
    reconstruct,
    score_groups,
)
from optimum_camcut.planning.allocation import check_budget
from optimum_camcut.planning.costs import remaining_budget, unit_cost
from optimum_camcut.planning.measure import count_flops, count_parameters
from optimum_camcut.planning.plan import layer_of


def group(name, size, **changes):
    return PrunableGroup(name, name.rpartition(".")[2], size, (), **changes)


def plan_of(scores, sparsity=None, groups=None, **changes):
    """The kept units for scores given as lists."""
    scores = {name: torch.tensor(values) for name, values in scores.items()}
    groups = groups or [group(name, len(values)) for name, values in scores.items()]
    return make_plan(scores, groups, PruningConfig(sparsity=sparsity, **changes)).keep


SCORES = {
    "layer.0.heads": [5.0, 1.0, 4.0],
    "layer.0.neurons": [0.1, 0.2, 0.3, 0.4],
    "layer.1.heads": [2.0, 3.0, 0.0],
    "layer.1.neurons": [9.0, 8.0],
}


# --- by hand --------------------------------------------------------------------------------------------------------


def test_per_kind_ranks_each_kind_over_all_layers():
    """Three of six heads, 5, 4 and 3; three of six neurons, 9, 8, and 0.4 because each layer keeps one."""
    assert plan_of(SCORES, 0.5, allocation="per_kind") == {
        "layer.0.heads": (0, 2),
        "layer.0.neurons": (3,),
        "layer.1.heads": (1,),
        "layer.1.neurons": (0, 1),
    }
    assert PruningConfig(sparsity=0.5).allocation == "per_kind"


def test_uniform_removes_the_same_fraction_of_every_group():
    """Two thirds of 3, 4, 3 and 2 units are 2, 3, 2 and 1 in whole numbers."""
    assert plan_of(SCORES, 1 / 3, allocation="uniform") == {
        "layer.0.heads": (0, 2),
        "layer.0.neurons": (1, 2, 3),
        "layer.1.heads": (0, 1),
        "layer.1.neurons": (0,),
    }


@pytest.mark.parametrize(
    ("min_units", "sparsity", "expected"),
    [
        (0, 2 / 3, {"layer.0.heads": (0, 2), "layer.1.heads": ()}),  # 5 and 4, wherever they are
        (1, 2 / 3, {"layer.0.heads": (0,), "layer.1.heads": (1,)}),
        (2, 1 / 3, {"layer.0.heads": (0, 2), "layer.1.heads": (0, 1)}),
        (1, 1 / 3, {"layer.0.heads": (0, 2), "layer.1.heads": (0, 1)}),  # 5, 4, 3, 2: nothing to protect
    ],
)
def test_min_units_are_kept_in_every_group(min_units, sparsity, expected):
    scores = {name: SCORES[name] for name in expected}
    assert plan_of(scores, sparsity, min_units=min_units) == expected


def test_multiple_of_keeps_steps_of_neurons():
    """Layer 0 ranks 8 7 6 5 | 4 3 2 1 and layer 1 9 5 5 5 | 5 1 1 1: after the first step of each, 2.5 beats 2.

    Heads come one by one: three of four.
    """
    scores = {
        "layer.0.heads": [1.0, 2.0, 3.0, 4.0],
        "layer.0.neurons": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        "layer.1.neurons": [9.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0],
    }
    assert plan_of(scores, 0.25, multiple_of=4) == {
        "layer.0.heads": (1, 2, 3),
        "layer.0.neurons": (0, 1, 2, 3, 4, 5, 6, 7),
        "layer.1.neurons": (0, 4, 5, 6),
    }


def test_multiple_of_rounds_to_the_nearest_step():
    """Of 16 neurons, 7 and 9 are nearest to 8, 11 to 12; the least step is kept even at 1."""
    scores = {"layer.0.neurons": [float(16 - i) for i in range(16)]}
    for wanted, kept in ((7, 8), (9, 8), (11, 12), (13, 12), (15, 16), (4, 4)):
        assert len(plan_of(scores, 1 - wanted / 16, multiple_of=4)["layer.0.neurons"]) == kept


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("wanted", range(8, 21))
def test_a_cut_layer_has_a_multiple_of_neurons(allocation, wanted):
    """Twenty-one neurons are no multiple of 8: the layer stays whole, or has 8 or 16."""
    torch.manual_seed(wanted)
    for values in (torch.rand(21), torch.full((21,), 0.1)):
        kept = plan_of({"layer.0.neurons": values.tolist()}, 1 - wanted / 21, multiple_of=8, allocation=allocation)
        assert len(kept["layer.0.neurons"]) in (8, 16, 21)


def test_ties_keep_the_earlier_unit_and_the_earlier_layer():
    scores = {"layer.0.heads": [1.0] * 4, "layer.1.heads": [1.0] * 4}
    assert plan_of(scores, 0.5) == {"layer.0.heads": (0, 1), "layer.1.heads": (0, 1)}
    assert plan_of(scores, 3 / 8) == {"layer.0.heads": (0, 1, 2), "layer.1.heads": (0, 1)}
    assert plan_of(scores, 3 / 8, allocation="global", method="fisher") == {
        "layer.0.heads": (0, 1, 2),
        "layer.1.heads": (0, 1),
    }


# Two heads and four neurons. In parameters a head costs 10 and a neuron 1; in FLOPs 20 + sequence length, and 2.
COSTLY = [
    group("layer.0.heads", 2, unit_parameters=10, unit_flops=20, unit_flops_per_position=1, model_parameters=60),
    group("layer.0.neurons", 4, unit_parameters=1, unit_flops=2, model_parameters=60),
]


def globally(heads, neurons, **changes):
    changes = {"sparsity": 0.5, "min_units": 0, "method": "fisher", **changes}
    kept = plan_of({"layer.0.heads": heads, "layer.0.neurons": neurons}, groups=COSTLY, allocation="global", **changes)
    return kept["layer.0.heads"], kept["layer.0.neurons"]


def test_global_ranks_by_score_per_parameter():
    """12 of 24 parameters stay: 5 / 1, 40 / 10 and 3 / 1 fill them exactly."""
    assert globally([40.0, 20.0], [5.0, 3.0, 1.0, 0.5]) == ((0,), (0, 1))
    # Neurons worth a hundred times more all stay; the 8 parameters left do not pay for a head.
    assert globally([40.0, 20.0], [500.0, 300.0, 100.0, 50.0]) == ((), (0, 1, 2, 3))
    assert globally([40.0, 20.0], [500.0, 300.0, 100.0, 50.0], min_units=1) == ((0,), (0, 1))


def test_global_shares_out_scores_that_do_not_compare_between_kinds():
    """A head's share is 40 / 60 of 20 parameters, so 1.33 per parameter; the neurons' are 2.1, 1.26, 0.42 and 0.21."""
    for factor in (1.0, 100.0, 0.01):
        assert globally([40.0, 20.0], [factor * x for x in (5.0, 3.0, 1.0, 0.5)], method="taylor") == ((0,), (0, 1))


def test_global_ranks_by_score_per_flop():
    """With 180 tokens a head costs 200 and 204 stay: all neurons go first and 196 do not pay for a head. With 10, it
    costs 30 and 34 stay: 5 / 2, 3 / 2, 40 / 30."""
    scores = [40.0, 20.0], [5.0, 3.0, 1.0, 0.5]
    assert globally(*scores, budget="flops", sequence_length=180) == ((), (0, 1, 2, 3))
    assert globally(*scores, budget="flops", sequence_length=10) == ((0,), (0, 1))
    assert unit_cost(COSTLY[0], PruningConfig(sparsity=0.5, budget="flops", sequence_length=180)) == 200
    assert unit_cost(COSTLY[0], PruningConfig(sparsity=0.5)) == 10


@pytest.mark.parametrize("removed", range(1, 10))
def test_global_fills_its_budget(removed):
    """Rounding of floating point must not cost a unit: a sparsity of 0.9 keeps one of ten, not none."""
    ten = [group("layer.0.neurons", 10)]
    scores = {"layer.0.neurons": [float(i) for i in range(10)]}
    kept = plan_of(scores, removed / 10, groups=ten, allocation="global", min_units=0)
    assert kept == {"layer.0.neurons": tuple(range(removed, 10))}


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
def test_compression_by_hand(allocation):
    """60 / 48: 12 of the 24 prunable parameters go, half of them, whatever the budget says."""
    scores = {"layer.0.heads": [20.0, 40.0], "layer.0.neurons": [5.0, 3.0, 1.0, 0.5]}
    for budget in ("params", "flops"):
        kept = plan_of(
            scores,
            groups=COSTLY,
            compression=1.25,
            min_units=0,
            allocation=allocation,
            budget=budget,
            method="fisher",
        )
        assert kept == {"layer.0.heads": (1,), "layer.0.neurons": (0, 1)}


FINE = {"hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 200}
ALBERT, GPT2 = {**FINE, "embedding_size": 16}, {"n_embd": 64, "n_head": 16, "n_inner": 200}
LLAMA = {**FINE, "num_key_value_heads": 16}


def random_scores(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in groups}


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize(
    ("architecture", "changes"), [("bert", FINE), ("albert", ALBERT), ("gpt2", GPT2), ("llama", LLAMA)]
)
def test_compression_is_that_of_the_whole_physical_model(architecture, changes, allocation):
    for compression in (1.2, 2.0):
        model = tiny_model(architecture, **changes)
        before, groups = count_parameters(model), find_groups(model)
        config = PruningConfig(compression=compression, allocation=allocation)
        plan = make_plan(random_scores(groups), groups, config)
        apply_plan(model, plan)
        assert before / count_parameters(model) == pytest.approx(compression, rel=0.02)
        model(**tiny_batch())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_sparsity_is_that_of_the_physical_budget(architecture):
    """What the cut model has less of, in parameters and in counted FLOPs, is the wanted half."""
    changes = {"bert": FINE, "gpt2": GPT2, "llama": LLAMA}[architecture]
    tokens = 24
    for budget in ("params", "flops"):
        config = PruningConfig(
            sparsity=0.5, budget=budget, allocation="global", method="taylor", sequence_length=tokens
        )
        model = tiny_model(architecture, attn_implementation="eager", **changes)
        before = find_groups(model)
        flops, parameters = count_flops(model, 1, tokens), count_parameters(model)
        apply_plan(model, make_plan(random_scores(before), before, config))
        assert remaining_budget(before, find_groups(model), config) == pytest.approx(0.5, abs=0.01)
        if budget == "params":
            removed, prunable = parameters - count_parameters(model), sum(g.size * g.unit_parameters for g in before)
        else:
            removed = flops - count_flops(model, 1, tokens)
            prunable = tokens * sum(g.size * unit_cost(g, config) for g in before)
        assert removed / prunable == pytest.approx(0.5, abs=0.02)


def test_plans_of_pruned_groups_hold_original_indices():
    """Units 2, 5, 7 and 8 are left of nine; half of them stay."""
    left = group("layer.0.heads", 4, units=(2, 5, 7, 8), original_size=9)
    plan = make_plan({"layer.0.heads": torch.tensor([1.0, 4.0, 2.0, 3.0])}, [left], PruningConfig(sparsity=0.5))
    assert plan.keep == {"layer.0.heads": (5, 8)} and plan.sizes == {"layer.0.heads": 9}
    assert plan.removed("layer.0.heads") == (0, 1, 2, 3, 4, 6, 7)


def test_pruning_twice():
    model = tiny_model("bert")
    for expected in (0.5, 0.25):
        groups, config = find_groups(model), PruningConfig(sparsity=0.5)
        plan = make_plan(random_scores(groups, seed=7), groups, config)
        assert plan.config == config and plan.config is not config and plan.model_type == "bert"
        assert list(plan.keep) == [g.name for g in groups]
        apply_plan(model, plan)
        kept = sum(len(units) for name, units in plan.keep.items() if name.endswith("neurons"))
        assert kept == pytest.approx(expected * 3 * 37, abs=1)
        assert plan.sizes == {g.name: g.original_size for g in find_groups(tiny_model("bert"))}
        assert {g.name: g.units for g in find_groups(model)} == plan.keep


# --- budgets that cannot be met -------------------------------------------------------------------------------------


def highest(name, groups, **changes):
    """The highest possible value that the error for an impossible one names."""
    impossible = {"sparsity": 0.9999, "compression": 1000.0}[name]
    message = f"{name}={impossible} cannot be reached: the highest possible {name} here is "
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_plan(random_scores(groups), groups, PruningConfig(**{name: impossible}, **changes))
    return float(re.search(r"here is (\d+(\.\d+)?)", str(error.value))[1])


def test_a_kind_of_which_none_can_go_is_named():
    """A model may share one key-value head among all queries."""
    groups = find_groups(tiny_model("llama", num_key_value_heads=1))
    with pytest.raises(ValueError, match="every layer has as few heads as it may keep: leave 'heads' out of granul"):
        make_plan(random_scores(groups), groups, PruningConfig(sparsity=0.3))
    make_plan(random_scores(groups), groups, PruningConfig(sparsity=0.3, granularity=("neurons",)))


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("name", ["sparsity", "compression"])
def test_the_highest_possible_value_works(name, allocation):
    for intermediate_size, min_units in itertools.product((29, 37, 53), (1, 2, 3)):
        groups = find_groups(tiny_model("bert", intermediate_size=intermediate_size))
        changes = {"allocation": allocation, "min_units": min_units}
        value = highest(name, groups, **changes)
        plan = make_plan(random_scores(groups), groups, PruningConfig(**{name: value}, **changes))
        assert all(len(units) >= min_units for units in plan.keep.values())
        if allocation == "global":  # nothing but what must stay is left, give or take the rounding of the named value
            assert sum(len(units) - min_units for units in plan.keep.values()) <= 2


def test_a_compression_that_embeddings_forbid_says_so():
    groups = find_groups(tiny_model("bert"))
    of = sum(group.size * group.unit_parameters for group in groups)
    with pytest.raises(ValueError, match=f"of {groups[0].model_parameters:,} parameters only {of:,} are of a kind"):
        make_plan(random_scores(groups), groups, PruningConfig(compression=50.0))


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize(("min_units", "sparsity"), [(2, 0.6), (1, 0.8), (4, 0.3), (30, 0.5)])
def test_a_budget_is_met_or_refused(allocation, min_units, sparsity):
    """Four heads a layer of which two must stay cannot lose 60 %: that is an error or made up for, never ignored."""
    groups = find_groups(tiny_model("bert"))
    config = PruningConfig(sparsity=sparsity, min_units=min_units, allocation=allocation)
    try:
        plan = make_plan(random_scores(groups), groups, config)
    except ValueError as error:
        assert "cannot be reached: the highest possible sparsity here is" in str(error)
        return
    kept = sum(len(plan.keep[g.name]) * g.unit_parameters for g in groups)
    total = sum(g.size * g.unit_parameters for g in groups)
    # Uniform rounds every group to whole units, per_kind every kind; a joint budget is filled but for a unit.
    units = {"uniform": groups, "per_kind": groups[:2], "global": groups[:1] * 2}[allocation]
    rounding = sum(g.unit_parameters for g in units) / 2
    assert kept / total == pytest.approx(1 - sparsity, abs=rounding / total + 1e-6)


def test_compression_needs_the_size_of_the_model():
    with pytest.raises(ValueError, match=re.escape("take the groups from find_groups(model)")):
        plan_of({"layer.0.heads": [1.0, 2.0]}, compression=1.5)


# --- what is always kept --------------------------------------------------------------------------------------------

INFINITY = float("inf")


def test_a_score_of_infinity_keeps_a_unit():
    """Of six heads the last of each layer stays; one of the other four does, the best. Neurons go by their own."""
    scores = {**SCORES, "layer.0.heads": [5.0, 1.0, INFINITY], "layer.1.heads": [2.0, 3.0, INFINITY]}
    for allocation in ("per_kind", "global"):
        kept = plan_of(scores, 0.5, allocation=allocation)
        assert (kept["layer.0.heads"], kept["layer.1.heads"]) == ((0, 2), (2,))
        assert sum(map(len, kept.values())) == 6
    kept = plan_of({"layer.0.heads": [0.0, INFINITY, 0.0, 1.0]}, 0.5)
    assert kept == {"layer.0.heads": (1, 3)}
    kept = plan_of({**SCORES, "layer.0.heads": [INFINITY] * 3, "layer.1.heads": [INFINITY] * 3}, 0.25)
    assert kept["layer.0.heads"] == kept["layer.1.heads"] == (0, 1, 2)  # three of twelve go, all of them neurons
    assert (kept["layer.0.neurons"], kept["layer.1.neurons"]) == ((3,), (0, 1))


def test_infinity_does_not_weigh_on_the_scale_of_kinds():
    """A head that always stays takes 10 of 12 parameters; of the other 14, neurons and a head share 2 by rank."""
    assert globally([INFINITY, 20.0], [5.0, 3.0, 1.0, 0.5], method="taylor") == ((0,), (0, 1))
    # 20 / 10 of the one head that is free, and the neurons 9.5 over 4, so that each kind has 1 a parameter on average.
    heads, neurons = globally([INFINITY, 20.0], [5.0, 3.0, 1.0, 0.5], sparsity=2 / 24, method="taylor")
    assert (heads, neurons) == ((0, 1), (0, 1))


def test_neurons_beside_those_that_stay_come_in_steps():
    """Five that stay make two steps of four."""
    scores = [INFINITY] * 5 + [float(i) for i in range(11)]
    assert plan_of({"layer.0.neurons": scores}, 0.5, multiple_of=4)["layer.0.neurons"] == (0, 1, 2, 3, 4, 13, 14, 15)
    with pytest.raises(
        ValueError, match=r"highest possible sparsity here is 0.5 \(.*; 5 of 16 neurons are excluded or"
    ):
        plan_of({"layer.0.neurons": scores}, 0.7, multiple_of=4)


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize(
    ("exclude", "whole"),
    [
        ([0], ("layer.0.heads", "layer.0.neurons")),
        (["0", "layer.1.neurons"], ("layer.0.heads", "layer.0.neurons", "layer.1.neurons")),
        (["layer.[01].heads"], ("layer.0.heads", "layer.1.heads")),
        (["layer.2.attention"], ("layer.2.heads",)),
        (["*.feed_forward"], ("layer.0.neurons", "layer.1.neurons", "layer.2.neurons")),
    ],
)
def test_excluded_groups_stay_whole(exclude, whole, allocation):
    """The rest loses what makes a quarter of the whole; what the excluded score does not matter."""
    groups, plans = find_groups(tiny_model("bert")), []
    config = PruningConfig(sparsity=0.25, exclude=exclude, allocation=allocation, method="taylor")
    check_budget(groups, config)
    for factor in (1e-6, 1.0, INFINITY):
        scores = {name: s * factor if name in whole else s for name, s in random_scores(groups).items()}
        plans.append(make_plan(scores, groups, config))
    assert plans[0] == plans[1] == plans[2]
    kept = {g.name: len(plans[0].keep[g.name]) / g.size for g in groups}
    assert {name for name, part in kept.items() if part == 1} == set(whole)
    total = sum(g.size * g.unit_parameters for g in groups)
    left = sum(len(plans[0].keep[g.name]) * g.unit_parameters for g in groups)
    heads = 1.5 if allocation == "uniform" else 1  # of rounding
    assert abs(left / total - 0.75) <= heads * groups[0].unit_parameters / total


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("name", ["sparsity", "compression"])
def test_the_highest_possible_value_counts_what_is_excluded(name, allocation):
    groups = find_groups(tiny_model("bert"))
    for exclude in ([1], ["*.heads"], ["layer.0.*", "layer.2.heads"]):
        changes = {"allocation": allocation, "exclude": exclude}
        value = highest(name, groups, **changes)
        config = PruningConfig(**{name: value}, **changes)
        check_budget(groups, config)
        plan = make_plan(random_scores(groups), groups, config)
        if allocation == "global":
            free = [g for g in groups if len(plan.keep[g.name]) < g.size]
            assert free and sum(len(plan.keep[g.name]) - 1 for g in free) <= 2
    with pytest.raises(
        ValueError, match="sparsity here is 0.0 .*; 12 of 12 heads .*; 111 of 111 neurons are excluded"
    ):
        check_budget(groups, PruningConfig(sparsity=0.1, exclude="*"))


@pytest.mark.parametrize(
    ("exclude", "changes", "message"),
    [
        (
            [3],
            {},
            "exclude names '3', which matches nothing that granularity ['heads', 'neurons'] could remove: there ",
        ),
        (["layer.0.head"], {}, "; did you mean 'layer.0.heads'?"),
        (["0", "*.haeds"], {}, "exclude names '*.haeds'"),
        (
            ["*.heads"],
            {"granularity": "neurons"},
            "granularity ['neurons'] could remove: there are the layers 0, 1, 2 ",
        ),
        (
            ["encoder.layer.0.output.dense.weight"],
            {"granularity": "weights"},
            "did you mean 'bert.encoder.layer.0.outp",
        ),
    ],
)
def test_an_exclusion_of_nothing_is_refused(exclude, changes, message):
    config = PruningConfig(sparsity=0.1, exclude=exclude, **{"method": "random", **changes})
    groups = find_groups(tiny_model("bert"), config.granularity)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_budget(groups, config)
    with pytest.raises(ValueError, match=re.escape(message)):
        make_plan({g.name: torch.ones(g.size) for g in groups}, groups, config)


def test_min_units_by_kind():
    """Heads keep two of four; of 12 neurons a layer, as few as it takes, but five."""
    groups = find_groups(tiny_model("bert"))
    for allocation in ("per_kind", "uniform", "global"):
        changes = {"allocation": allocation, "min_units": {"heads": 2, "neurons": 5}}
        plan = make_plan(random_scores(groups), groups, PruningConfig(sparsity=0.5, **changes))
        for name, units in plan.keep.items():
            assert len(units) >= (2 if name.endswith("heads") else 5)
        value = highest("sparsity", groups, **changes)
        if allocation == "global":
            least = sum((2 if g.kind == "heads" else 5) * g.unit_parameters for g in groups)
            assert value == pytest.approx(1 - least / sum(g.size * g.unit_parameters for g in groups), abs=1e-4)


# --- bad scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.0.heads": [1.0, 2.0]}, "the scores of 'layer.0.heads' have shape (2,); expected (3,), one a unit"),
        ({"layer.0.heads": [[1.0, 2.0, 3.0]]}, "the scores of 'layer.0.heads' have shape (1, 3); expected (3,)"),
        ({"layer.1.heads": None}, "no scores for the group 'layer.1.heads'; there are scores for ['layer.0.heads', "),
        ({"layer.7.heads": [1.0]}, "scores for groups that are not there: ['layer.7.heads']"),
        ({"layer.1.heads": [1.0, float("nan"), 2.0]}, "the scores of 'layer.1.heads' are NaN or infinite"),
        ({"layer.1.neurons": [-float("inf"), 1.0]}, "the scores of 'layer.1.neurons' are NaN or infinite"),
        (
            {"layer.0.heads": [0.0] * 3, "layer.1.heads": [0.0] * 3},
            "all scores of kind 'heads' are zero, so they rank nothing",
        ),
    ],
)
def test_bad_scores(change, message):
    groups = [group(name, len(values)) for name, values in SCORES.items()]
    scores = {name: values for name, values in {**SCORES, **change}.items() if values is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(scores, 0.5, groups=groups)


def test_a_mistyped_group_suggests_the_nearest():
    model = tiny_model("bert")
    scores = random_scores(find_groups(model))
    scores["layer.1.head"] = scores.pop("layer.1.heads")
    with pytest.raises(ValueError, match="no scores for the group .*; did you mean 'layer.1.head'\\?$"):
        make_plan(scores, find_groups(model), PruningConfig(sparsity=0.5))
    with pytest.raises(ValueError, match="not there: .*; did you mean 'layer.1.heads'\\?$"):
        make_plan({**scores, "layer.1.heads": torch.ones(4)}, find_groups(model), PruningConfig(sparsity=0.5))
    for refuse in (apply_plan, lambda model, plan: reconstruct(model, tiny_model("bert"), plan, [tiny_batch()])):
        with pytest.raises(ValueError, match="which the model lacks; .*; did you mean 'layer.2.neurons'\\?$"):
            refuse(model, PruningPlan({"layer.2.neuron": [0]}))


def test_one_layer_may_score_zero():
    scores = {**SCORES, "layer.1.heads": [0.0, 0.0, 0.0]}
    assert plan_of(scores, 0.5)["layer.1.heads"] == (0,)


def test_no_groups():
    with pytest.raises(ValueError, match="group"):
        make_plan({}, [], PruningConfig(sparsity=0.5))


# --- at random ------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Groups of up to four layers with scores full of ties, some of the groups cut before."""
    scores, groups = {}, []
    for layer in range(draw(st.integers(1, 4))):
        for kind in ("heads", "neurons"):
            size = draw(st.integers(1, 12))
            original = size + draw(st.integers(0, 3))
            units = tuple(sorted(draw(st.permutations(range(original)))[:size]))
            numbers = st.integers(0, 4) | st.floats(0, 4, width=32)
            scores[f"layer.{layer}.{kind}"] = torch.tensor(
                draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float32
            )
            cost = {"heads": 40, "neurons": 3}[kind]
            changes = {"units": units, "original_size": original, "unit_parameters": cost, "model_parameters": 9999}
            groups.append(group(f"layer.{layer}.{kind}", size, **changes))
    for kind in ("heads", "neurons"):
        assume(any(values.any() for name, values in scores.items() if name.endswith(kind)))
    config = PruningConfig(
        sparsity=draw(st.floats(0.01, 0.99)),
        allocation=draw(st.sampled_from(["per_kind", "uniform", "global"])),
        method=draw(st.sampled_from(["fisher", "taylor"])),
        min_units=draw(st.integers(0, 3)),
    )
    return scores, groups, config


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problems())
def test_every_plan_keeps_the_best_within_the_budget(problem):
    scores, groups, config = problem
    copies = {name: values.clone() for name, values in scores.items()}
    try:
        plan = make_plan(scores, groups, config)
    except ValueError as error:
        assert "cannot be reached" in str(error)
        assume(False)
    # Pure: nothing is changed, and the same comes out again.
    assert list(scores) == list(copies) and all(torch.equal(scores[name], copies[name]) for name in scores)
    assert make_plan(copies, list(groups), dataclasses.replace(config)) == plan
    least = {g.name: min(config.min_units, g.size) for g in groups}
    assert list(plan.keep) == [g.name for g in groups]
    for g in groups:
        assert least[g.name] <= len(plan.keep[g.name]) and set(plan.keep[g.name]) <= set(g.units)

    kept, removed, protected = {}, {}, {}
    for g in groups:
        by_unit = dict(zip(g.units, scores[g.name].tolist()))
        kept[g.name] = sorted((by_unit[unit] for unit in plan.keep[g.name]), reverse=True)
        removed[g.name] = [by_unit[unit] for unit in g.units if unit not in plan.keep[g.name]]
        protected[g.name] = kept[g.name][: least[g.name]]
        assert not removed[g.name] or not kept[g.name] or kept[g.name][-1] >= max(removed[g.name])

    pools = [[g] for g in groups]
    if config.allocation != "uniform":
        pools = [[g for g in groups if g.kind == kind] for kind in ("heads", "neurons")]
    for pool in pools:
        count, total = sum(len(kept[g.name]) for g in pool), sum(g.size for g in pool)
        floor = sum(least[g.name] for g in pool)
        if config.allocation == "per_kind" or (config.allocation == "uniform" and pool[0].kind == "heads"):
            assert count == floor or abs(count - total * (1 - config.sparsity)) <= 0.5 + 1e-9
        if config.allocation != "global":
            assert count >= floor
        # Whoever is kept beyond `min_units` beats whoever is removed, in all layers of the pool.
        free = [score for g in pool for score in kept[g.name][least[g.name] :]]
        gone = [score for g in pool for score in removed[g.name]]
        if config.allocation != "global":
            assert not free or not gone or min(free) >= max(gone)
    cost = {g.name: g.unit_parameters for g in groups}
    budget = sum(g.size * cost[g.name] for g in groups) * (1 - config.sparsity)
    spent = sum(len(kept[name]) * cost[name] for name in kept)
    if config.allocation == "uniform":  # the neurons of all layers make up for the rounding of the heads, if they can
        neurons = [g for g in groups if g.kind == "neurons"]
        if all(least[g.name] < len(kept[g.name]) < g.size for g in neurons):
            assert abs(spent - budget) <= sum(cost[g.name] for g in neurons) / 2 + 1e-6
    if config.allocation == "global":
        assert spent <= budget + 1e-6  # and no further unit would fit
        assert all(spent + cost[name] > budget - 1e-6 for name in kept if removed[name])


@st.composite
def problems_with_infinity(draw):
    """Some groups are excluded, and some units have a score of infinity."""
    scores, groups, config = draw(problems())
    names = list(scores)
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        scores[name][draw(st.lists(st.integers(0, len(scores[name]) - 1), max_size=4))] = INFINITY
    exclude = draw(st.lists(st.sampled_from([*names, "0"]), max_size=2))
    return scores, groups, dataclasses.replace(config, exclude=exclude)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems_with_infinity())
def test_what_always_stays_is_all_that_infinity_means(problem):
    """To exclude is to score infinity; what so stays does not spoil the rank of the others, nor the budget."""
    scores, groups, config = problem
    excluded = {name for name in scores if {name, layer_of(name)} & set(config.exclude or ())}
    by_score = {name: torch.full_like(s, INFINITY) if name in excluded else s for name, s in scores.items()}
    free, message = dataclasses.replace(config, exclude=None), None
    try:
        plan = make_plan(scores, groups, config)
    except ValueError as error:
        message = str(error)
        value = float(re.search(r"highest possible sparsity here is (\S+)", message)[1])
        assert value < config.sparsity
        if value == 0:
            return
        plan = make_plan(scores, groups, dataclasses.replace(config, sparsity=value))
        free = dataclasses.replace(free, sparsity=value)
    assert make_plan(by_score, groups, free).keep == plan.keep
    total = sum(g.size * g.unit_parameters for g in groups)
    spent, rounding = 0, 0
    for g in groups:
        by_unit = dict(zip(g.units, by_score[g.name].tolist()))
        gone = [by_unit[unit] for unit in g.units if unit not in plan.keep[g.name]]
        kept = [by_unit[unit] for unit in plan.keep[g.name]]
        assert INFINITY not in gone and (not gone or not kept or min(kept) >= max(gone))
        spent += len(kept) * g.unit_parameters
        rounding += g.unit_parameters / 2
    if message is None:
        within = {"uniform": rounding, "per_kind": 21.5, "global": 40}[config.allocation]
        assert abs(spent - total * (1 - free.sparsity)) <= within + 1e-6


# --- a plan as a value ----------------------------------------------------------------------------------------------

PLAN = PruningPlan(
    keep={"layer.0.heads": [1, 0], "layer.0.neurons": [9], "layer.1.heads": []},
    sizes={"layer.0.heads": 4, "layer.0.neurons": 10, "layer.1.heads": 4},
    model_type="bert",
    config=PruningConfig(compression=1.5, granularity=["heads"], noise_std=0.25),
)


def test_a_plan_is_sorted_and_knows_what_is_gone():
    assert PLAN.keep == {"layer.0.heads": (0, 1), "layer.0.neurons": (9,), "layer.1.heads": ()}
    assert PLAN.removed("layer.0.heads") == (2, 3)
    assert PLAN.removed("layer.0.neurons") == tuple(range(9))
    assert PLAN.removed("layer.1.heads") == (0, 1, 2, 3)
    with pytest.raises(KeyError):
        PruningPlan({"layer.0.heads": [0]}).removed("layer.0.heads")


def test_a_plan_cannot_be_changed():
    for field in dataclasses.fields(PLAN):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(PLAN, field.name, None)
    units, keep, sizes = [0, 1], {}, {}
    keep["layer.0.heads"], sizes["layer.0.heads"] = units, 4
    plan = PruningPlan(keep, sizes)
    units.append(3), keep.clear(), sizes.clear()
    assert plan.keep == {"layer.0.heads": (0, 1)} and plan.sizes == {"layer.0.heads": 4}


def test_a_plan_prints_as_a_table():
    assert str(PLAN).splitlines() == [
        "layer  heads  neurons",
        "    0  2 / 4   1 / 10",
        "    1  0 / 4      all",
        "total  2 / 8   1 / 10",
    ]
    assert PLAN.table()[1] == ("0", "neurons", "1 / 10")
    by_hand = PruningPlan({"layer.0.heads": [0, 2], "layer.11.heads": [1]})
    assert str(by_hand).splitlines() == ["layer  heads", "    0  2 / ?", "   11  1 / ?", "total  3 / ?"]


def test_a_plan_with_names_of_ones_own_prints_too():
    table = str(PruningPlan({"heads": [0, 1]}, {"heads": 4}))
    assert table.splitlines()[-1].split() == ["total", "2", "/", "4"]


def test_the_layer_is_the_first_number_of_a_name():
    assert layer_of("encoder.layer.13.block.2.heads") == "13"


@pytest.mark.parametrize(
    "plan", [PLAN, PruningPlan({"layer.0.heads": [2]}), PruningPlan({})], ids=["made", "by hand", "empty"]
)
def test_round_trip_through_json(plan, tmp_path):
    plan.save(tmp_path)
    assert PruningPlan.load(tmp_path) == PruningPlan.load(tmp_path / "pruning_plan.json") == plan
    plan.save(tmp_path / "other.json")
    assert PruningPlan.load(str(tmp_path / "other.json")) == plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "pruning_plan.json"]
    values = json.loads((tmp_path / "other.json").read_text())
    assert values == plan.to_dict() and PruningPlan.from_dict(values) == plan
    assert values["keep"] == {name: list(units) for name, units in plan.keep.items()}


def test_a_plan_by_hand_needs_no_more_than_keep():
    model = tiny_model("bert")
    plan = PruningPlan(keep={"layer.0.heads": [0, 3], "layer.2.neurons": range(5)})
    apply_plan(model, plan)
    sizes = {g.name: g.size for g in find_groups(model)}
    assert sizes["layer.0.heads"] == 2 and sizes["layer.2.neurons"] == 5 and sizes["layer.1.heads"] == 4
    assert random_plan(model, 0) != plan


@pytest.mark.parametrize(
    "units",
    [
        [-1],
        [0, 0],
        [1.0],
        ["1"],
        [True],
        [[0]],
        [None],
        [torch.tensor(1.0)],
        torch.tensor([True, False]),
        "",
        b"\x00",
        None,
        np.array(3),
    ],
    ids=str,
)
def test_indices_are_distinct_whole_numbers(units):
    with pytest.raises(ValueError, match=r"the plan should keep distinct indices of at least 0 and below 2"):
        PruningPlan({"layer.0.heads": units})


def test_indices_of_other_integer_types_are_taken():
    """As `argsort` of numpy and of torch gives them."""
    assert PruningPlan({"a": torch.tensor([2, 0]), "b": np.array([1])}).keep == {"a": (0, 2), "b": (1,)}


@pytest.mark.parametrize("size", [3, 0, -1, 4.0, "4", True, None])
def test_indices_are_below_the_size(size):
    message = f"a plan's size of 'layer.0.heads' should be an integer of at least 0; got {size!r}"
    if size in (0, 3):
        message = f"the plan keeps unit 3 of 'layer.0.heads', which has size {size!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningPlan({"layer.0.heads": [0, 3]}, {"layer.0.heads": size})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"keep": {}, "kept": 1, "a": 2}',
            "unknown PruningPlan fields ['a', 'kept']; known fields: keep, sizes, model_type",
        ),
        ('{"sizes": {}}', "a plan should hold 'keep', group names -> lists of indices; got None"),
        ('{"keep": [1]}', "a plan should hold 'keep', group names -> lists of indices; got [1]"),
        (
            '{"keep": {"layer.0.heads": 1}}',
            "the plan should keep distinct indices of at least 0 and below 2",
        ),
        (
            '{"keep": {"layer.0.heads": "01"}}',
            "the plan should keep distinct indices of at least 0 and below 2**63 of 'layer.0.heads'",
        ),
        ('{"keep": {}, "sizes": [1]}', "a plan should hold 'sizes', group names -> numbers of units; got [1]"),
        ('{"keep": {}, "config": {"sparsity": 2}}', "sparsity should be a number between 0 and 1"),
        ('{"keep": {}, "config": 5}', "expected a dict with the fields of PruningConfig"),
        ('{"keep": ', "is not valid JSON"),
        ("[1]", "should hold a JSON object, it holds a list"),
    ],
)
def test_a_file_that_holds_no_plan(text, message, tmp_path):
    (tmp_path / "pruning_plan.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningPlan.load(tmp_path)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="pruning_plan.json"):
        PruningPlan.load(tmp_path)


@pytest.mark.parametrize("kinds", [("heads",), ("neurons",)])
def test_only_the_granularity_of_the_config_is_scored_and_cut(kinds):
    model = tiny_model("bert")
    groups, config = find_groups(model), PruningConfig(method="magnitude", sparsity=0.5, granularity=kinds)
    scores = score_groups(model, groups, None, config)
    assert {name.rpartition(".")[2] for name in scores} == set(kinds)
    for all_scores in (scores, random_scores(groups)):
        assert {name.rpartition(".")[2] for name in make_plan(all_scores, groups, config).keep} == set(kinds)


def test_a_plan_for_more_or_fewer_layers_is_refused():
    groups = find_groups(tiny_model("bert", num_hidden_layers=2))
    plan = make_plan(random_scores(groups), groups, PruningConfig(sparsity=0.5))
    with pytest.raises(ValueError, match="the plan is for a model of 2 layers; this one has 3"):
        apply_plan(tiny_model("bert"), plan)


@pytest.mark.parametrize("text", ["{", "[]", '{"keep": 3}', '{"kept": {}}', '{"keep": {"layer.0.heads": [-1]}}'])
def test_errors_of_a_file_name_it(text, tmp_path):
    path = tmp_path / "pruning_plan.json"
    path.write_text(text)
    for where in (path, tmp_path):
        with pytest.raises(ValueError) as error:
            PruningPlan.load(where)
        assert str(error.value).count(str(path)) == 1
