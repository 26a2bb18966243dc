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
"""How much plans agree: intersections over unions worked out by hand, and what the figures show."""

import matplotlib
import numpy as np
import pytest

from optimum_camcut import MaskOverlap, PruningPlan, mask_iou
from optimum_camcut.planning.overlap import pairwise_iou
from optimum_camcut.reporting.plots import plot_overlap, plot_overlap_matrix, plot_totals


SIZES = {"layer.0.heads": 4, "layer.0.neurons": 6, "layer.1.heads": 4, "layer.1.neurons": 6}
FIRST = PruningPlan(  # removes {2, 3}, {0, 1, 2}, nothing, {5}
    {"layer.0.heads": [0, 1], "layer.0.neurons": [3, 4, 5], "layer.1.heads": range(4), "layer.1.neurons": range(5)},
    SIZES,
    "bert",
    num_layers=2,
)
SECOND = PruningPlan(  # removes {3}, {2, 3, 4}, nothing, {0}
    {
        "layer.0.heads": [0, 1, 2],
        "layer.0.neurons": [0, 1, 5],
        "layer.1.heads": range(4),
        "layer.1.neurons": range(1, 6),
    },
    SIZES,
    "bert",
    num_layers=2,
)
HEADS_AND_NEURONS = MaskOverlap(
    groups={"layer.0.heads": 1 / 2, "layer.0.neurons": 1 / 5, "layer.1.heads": 1.0, "layer.1.neurons": 0.0},
    layers={"0": 2 / 7, "1": 0 / 2},
    total=2 / 9,
)

QUERY, BIAS, OUTPUT, POOLER = (
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.0.attention.self.query.bias",
    "bert.encoder.layer.10.output.dense.weight",
    "bert.pooler.dense.weight",
)
WEIGHT_SIZES = {QUERY: 9, BIAS: 3, OUTPUT: 8, POOLER: 4}


def weights(**removed):
    """A plan over the weights that removes these; a group that is not mentioned is not named."""
    names = {"query": QUERY, "bias": BIAS, "output": OUTPUT, "pooler": POOLER}
    named = {names[short]: set(units) for short, units in removed.items()}
    keep = {name: [unit for unit in range(WEIGHT_SIZES[name]) if unit not in units] for name, units in named.items()}
    return PruningPlan(keep, {name: WEIGHT_SIZES[name] for name in keep})


@pytest.mark.parametrize("plans", [(FIRST, SECOND), (SECOND, FIRST)], ids=["one way", "the other"])
def test_heads_and_neurons_by_hand(plans):
    assert mask_iou(*plans) == HEADS_AND_NEURONS


def test_weights_by_hand():
    first = weights(query=[0, 1, 2, 3], bias=[0], output=[0, 1, 2, 3], pooler=[0])
    second = weights(query=[3, 4, 5, 6], bias=[0, 1], output=[1, 2, 3, 4, 5], pooler=[0])
    overlap = mask_iou(first, second)
    assert overlap.groups == {QUERY: 1 / 7, BIAS: 1 / 2, OUTPUT: 3 / 6, POOLER: 1.0}
    assert overlap.layers == {"0": 2 / 9, "10": 3 / 6, "bert.pooler.dense": 1.0}
    assert overlap.total == 6 / 16
    assert mask_iou(second, first) == overlap


def test_a_group_that_only_one_plan_names_stays_whole_in_the_other():
    overlap = mask_iou(weights(query=[0, 1], bias=[]), weights(query=[1], output=[0, 1]))
    assert overlap == MaskOverlap({QUERY: 1 / 2, BIAS: 1.0, OUTPUT: 0.0}, {"0": 1 / 2, "10": 0.0}, 1 / 4)
    assert mask_iou(PruningPlan({}), weights(query=[0])).total == 0.0
    assert mask_iou(PruningPlan({}), PruningPlan({})) == MaskOverlap({}, {}, 1.0)


def test_the_same_plan_and_disjoint_plans():
    plan = weights(query=[0, 1], output=[5])
    assert mask_iou(plan, plan) == MaskOverlap({QUERY: 1.0, OUTPUT: 1.0}, {"0": 1.0, "10": 1.0}, 1.0)
    disjoint = mask_iou(plan, weights(query=[2, 3], output=[6]))
    assert disjoint == MaskOverlap({QUERY: 0.0, OUTPUT: 0.0}, {"0": 0.0, "10": 0.0}, 0.0)


def test_random_plans_agree_with_sets():
    generator = np.random.default_rng(0)
    removed = [{name: generator.permutation(500)[:count].tolist() for name in "ab"} for count in (100, 200, 300)]
    plans = {}
    for index, units in enumerate(removed):
        keep = {f"layer.{name}": sorted(set(range(500)) - set(gone)) for name, gone in units.items()}
        plans[f"plan {index}"] = PruningPlan(keep, dict.fromkeys(keep, 500))
    overlaps = pairwise_iou(plans)
    assert list(overlaps) == [("plan 0", "plan 1"), ("plan 0", "plan 2"), ("plan 1", "plan 2")]
    for (first, second), overlap in overlaps.items():
        one, other = (removed[int(label[-1])] for label in (first, second))
        for name in "ab":
            expected = len(set(one[name]) & set(other[name])) / len(set(one[name]) | set(other[name]))
            assert overlap.groups[f"layer.{name}"] == expected
        assert overlap == mask_iou(plans[first], plans[second])


def test_mask_of_a_plan():
    assert FIRST.mask("layer.0.heads").tolist() == [True, True, False, False]
    assert FIRST.mask("layer.0.heads").dtype == bool
    assert PruningPlan({"layer.0.heads": []}, {"layer.0.heads": 2}).mask("layer.0.heads").tolist() == [False, False]
    with pytest.raises(KeyError, match="layer.0.heads"):
        PruningPlan({"layer.0.heads": [0]}).mask("layer.0.heads")


@pytest.mark.parametrize(
    "second, message",
    [
        ({"sizes": {}}, "the second plan does not know the size of 'layer.0.heads'.*give `sizes`"),
        (
            {"sizes": {**SIZES, "layer.0.heads": 8}},
            "'layer.0.heads' has 4 units in the first plan and 8 in the second",
        ),
        ({"model_type": "roberta"}, "the first plan is for model_type='bert', the second plan for 'roberta'"),
        ({"num_layers": 12}, "the first plan is for num_layers=2, the second plan for 12"),
    ],
    ids=["no sizes", "other sizes", "other architecture", "other depth"],
)
def test_plans_that_cannot_be_compared(second, message):
    values = {"keep": SECOND.keep, "sizes": SIZES, "model_type": "bert", "num_layers": 2, **second}
    with pytest.raises(ValueError, match=message):
        mask_iou(FIRST, PruningPlan(**values))


def test_something_else_than_a_plan():
    with pytest.raises(TypeError, match="expected the second plan to be a PruningPlan, got dict"):
        mask_iou(FIRST, FIRST.to_dict())


# --- figures --------------------------------------------------------------------------------------------------------


def shown(figure):
    """What the heat map shows: colours, row labels, column labels, and annotations by (row, column)."""
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.get_clim() == (0, 1) and len(figure.axes) == 2  # the other is the colour bar
    labels = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    texts = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    return image.get_array(), *labels, texts


def test_heat_map_of_heads_and_neurons():
    figure = plot_overlap(mask_iou(FIRST, SECOND), "cam_cut and snip")
    values, rows, columns, texts = shown(figure)
    assert rows == ["0", "1"] and columns == ["heads", "neurons", "all"]
    np.testing.assert_array_equal(values, [[1 / 2, 1 / 5, 2 / 7], [1.0, 0.0, 0.0]])
    assert texts == {(0, 0): "0.50", (0, 1): "0.20", (0, 2): "0.29", (1, 0): "1.00", (1, 1): "0.00", (1, 2): "0.00"}
    assert figure.axes[0].get_title() == "cam_cut and snip\nIoU over the whole model: 0.22"


def test_heat_map_of_weights():
    first = weights(query=[0, 1, 2, 3], bias=[0], output=[0, 1, 2, 3], pooler=[0])
    second = weights(query=[3, 4, 5, 6], bias=[0, 1], output=[1, 2, 3, 4, 5], pooler=[0])
    values, rows, columns, texts = shown(plot_overlap(mask_iou(first, second)))
    assert rows == ["0", "10", "pooler.dense"]
    assert columns == ["attention.self.query", "output.dense", "all"]
    expected = [[1 / 7, np.nan, 2 / 9], [np.nan, 1 / 2, 1 / 2], [np.nan, np.nan, 1.0]]
    np.testing.assert_array_equal(values.filled(np.nan), expected)
    assert texts == {(0, 0): "0.14", (0, 2): "0.22", (1, 1): "0.50", (1, 2): "0.50", (2, 2): "1.00"}


def test_matrix_of_methods():
    plans = {"snip": weights(query=[0, 1]), "cam_cut": weights(query=[1, 2]), "random": weights(query=[2])}
    figure = plot_overlap_matrix(plans, "sst2")
    values, rows, columns, texts = shown(figure)
    assert rows == columns == ["snip", "cam_cut", "random"]
    np.testing.assert_array_equal(values, [[1, 1 / 3, 0], [1 / 3, 1, 1 / 2], [0, 1 / 2, 1]])
    assert texts[0, 1] == texts[1, 0] == "0.33" and texts[2, 2] == "1.00"
    assert figure.axes[0].get_title() == "sst2"
    again = shown(plot_totals(rows, {("cam_cut", "snip"): 1 / 3, ("snip", "random"): 0.0, ("cam_cut", "random"): 0.5}))
    np.testing.assert_array_equal(values, again[0])
    with pytest.raises(ValueError, match="expected one plan or more to compare, got none"):
        plot_overlap_matrix({})


def test_annotations_stand_out_and_no_label_is_cut(tmp_path):
    methods = [f"a_method_with_a_long_name+{number}" for number in range(10)]
    totals = {(one, other): abs(i - j) / 9 for i, one in enumerate(methods) for j, other in enumerate(methods)}
    figure = plot_totals(methods, totals)
    figure.savefig(tmp_path / "matrix.png")
    axes = figure.axes[0]
    colours = axes.images[0].to_rgba(axes.images[0].get_array())
    for text in axes.texts:
        column, row = (round(number) for number in text.get_position())
        cell, ink = (
            luminance(colour) for colour in (colours[row, column], matplotlib.colors.to_rgb(text.get_color()))
        )
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) >= 4.5  # what WCAG asks of text
    page = figure.bbox
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title]:
        box = label.get_window_extent()
        assert box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1, label.get_text()


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_matplotlib(fresh_python, tmp_path):
    code = """
import sys
sys.modules["matplotlib"] = None
from optimum_camcut import MaskOverlap
from optimum_camcut.reporting.plots import plot_overlap
try:
    plot_overlap(MaskOverlap({}, {}, 1.0))
except ImportError as error:
    print("ImportError:", error)
"""
    message = "figures need matplotlib; install it with: pip install optimum-camcut[plots]"
    assert f"ImportError: {message}" in fresh_python.run(code, tmp_path)
