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
"""Scores: every method against numbers worked out by hand and against plain autograd, and a model left untouched."""

import copy
import itertools
import re

import pytest
import torch
from models import ARCHITECTURES, TOKENS, random_plan, tiny_batch, tiny_model
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler
from transformers.pytorch_utils import Conv1D

from optimum_camcut import PrunableGroup, PruningConfig, PruningPlan, apply_plan, find_groups, score_groups
from optimum_camcut.architectures.slices import Slice
from optimum_camcut.scoring import SCORERS, get_scorer, scorer
from optimum_camcut.scoring.batches import MappedBatches, count_examples, limit, take
from optimum_camcut.scoring.noise import GaussianNoise, linear_noise


METHODS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher", "activation", "magnitude", "random")
PLAIN_GRADIENT = ("cam_cut", "taylor", "fisher")


def settings(method, **changes):
    return PruningConfig(method=method, sparsity=0.5, **changes)


def uneven_batches():
    """Eight examples in three batches, most of them padded."""
    return [tiny_batch(size, seed=size) for size in (4, 1, 3)]


def score(model, method, batches=None, **changes):
    batches = uneven_batches() if batches is None else batches
    return score_groups(model, find_groups(model), batches, settings(method, **changes), disable_tqdm=True)


def assert_scores_close(got, expected, rtol=1e-4):
    assert list(got) == list(expected)
    for name, values in got.items():
        scale = expected[name].abs().max().item()
        assert scale > 0
        torch.testing.assert_close(values, expected[name].float(), rtol=rtol, atol=1e-5 * scale, msg=name)


# --- formulas -------------------------------------------------------------------------------------------------------

# Two examples of three tokens, two units of width two. The last token of the first example is padding.
ACTIVATION = torch.tensor(
    [
        [[[1.0, 2.0], [-1.0, 3.0]], [[3.0, -1.0], [5.0, 2.0]], [[9.0, 9.0], [9.0, 9.0]]],
        [[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]],
    ]
)
GRADIENT = torch.tensor(
    [
        [[[0.5, 1.0], [1.0, 0.0]], [[1.5, -1.0], [1.0, -2.0]], [[-7.0, 6.0], [-7.0, 6.0]]],
        [[[2.0, 2.0], [2.0, 2.0]], [[2.0, 2.0], [2.0, 2.0]], [[2.0, 2.0], [2.0, 2.0]]],
    ]
)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])

# cam_cut: unit 0 of the first example has channel weights ((0.5 + 1.5) / 2, (1 - 1) / 2) = (1, 0), so its map is 1, 3
# and its score 2; unit 1 has (1, -1) and the map -1 - 3 = -4, rectified to 0, and 5 - 2 = 3. In the second example,
# unit 0 has (2, 2) and the map 4, 4, 4.
CAM_CUT = [[2.0, 1.5], [4.0, 0.0]]
# Effect of removal: unit 0 0.5 + 2 + 4.5 + 1 = 8 at real tokens, unit 1 -1 + 0 + 5 - 4 = 0. A unit is removed at
# padding too, so a gradient there would count: -63 + 54 = -9 for both. Second example: 3 * (2 + 2) = 12 and 0.
EFFECT = [[8.0 - 9.0, 0.0 - 9.0], [12.0, 0.0]]
# Mean |a| over two real tokens: (1 + 2 + 3 + 1) / 4, (1 + 3 + 5 + 2) / 4; over three: 6 / 6, 0.
MEAN_ACTIVATION = [[1.75, 2.75], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("cam_cut", CAM_CUT),
        ("smooth_cam_cut", CAM_CUT),
        ("taylor", [[1.0, 9.0], [12.0, 0.0]]),
        ("fisher", [[1.0, 81.0], [144.0, 0.0]]),
        ("smooth_cut", [[1.0, 81.0], [144.0, 0.0]]),
        ("activation", MEAN_ACTIVATION),
    ],
)
def test_formula_by_hand(method, expected):
    got = get_scorer(method).function(ACTIVATION, GRADIENT, MASK)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=0)


def test_cam_cut_of_neurons_by_hand():
    """Width one: the channel weight (3 + 1) / 2 = 2 makes the map 4, -2, whose negative part does not count."""
    activation, gradient = torch.tensor([2.0, -1.0, 50.0]), torch.tensor([3.0, 1.0, 50.0])
    got = get_scorer("cam_cut").function(
        activation.view(1, 3, 1, 1), gradient.view(1, 3, 1, 1), torch.tensor([[1.0, 1.0, 0.0]])
    )
    torch.testing.assert_close(got, torch.tensor([[2.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["cam_cut", "activation"])
def test_an_example_of_padding_only_scores_zero(method):
    got = get_scorer(method).function(ACTIVATION, GRADIENT, torch.zeros(2, 3))
    assert torch.equal(got, torch.zeros(2, 2))


def test_magnitude_by_hand():
    """Two neurons: all weights that enter and leave, and the bias of what enters; the output's bias is no neuron's."""
    model = nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 3)})
    model["up"].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    model["up"].bias.data = torch.tensor([0.5, -1.0])
    model["down"].weight.data = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [2.0, -3.0]])
    model["down"].bias.data = torch.tensor([100.0, 100.0, 100.0])
    group = PrunableGroup("layer.0.neurons", "neurons", 2, (Slice("up", "out", 1), Slice("down", "in", 1)))
    got = score_groups(model, [group], None, settings("magnitude"))
    # 1 + 2 + 0.5 + 1 + 1 + 2 and 3 + 4 + 1 + 2 + 0 + 3
    torch.testing.assert_close(got["layer.0.neurons"], torch.tensor([7.5, 13.0]), atol=1e-6, rtol=0)


def test_magnitude_of_a_fused_transposed_projection_by_hand():
    """Two heads of width one, query, key and value side by side in a Conv1D, as in GPT-2."""
    model = nn.ModuleDict({"qkv": Conv1D(6, 1), "out": Conv1D(1, 2)})
    model["qkv"].weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0, -5.0, 6.0]])
    model["qkv"].bias.data = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, -0.6])
    model["out"].weight.data = torch.tensor([[10.0], [-20.0]])
    group = PrunableGroup("layer.0.heads", "heads", 2, (Slice("qkv", "out", 1, 3), Slice("out", "in", 1)))
    got = score_groups(model, [group], None, settings("magnitude"))
    # 1 + 3 + 5 + 0.1 + 0.3 + 0.5 + 10 and 2 + 4 + 6 + 0.2 + 0.4 + 0.6 + 20
    torch.testing.assert_close(got["layer.0.heads"], torch.tensor([19.9, 33.2]), atol=1e-6, rtol=1e-6)


def test_random_is_uniform_and_seeded():
    model = tiny_model("bert", intermediate_size=3000)
    one, again, other = (score(model, "random", seed=seed) for seed in (1, 1, 2))
    values = one["layer.0.neurons"]
    assert values.min() >= 0 and values.max() < 1
    # Of 3,000 uniform numbers: standard errors 0.005 and 0.002.
    assert abs(values.mean() - 1 / 2) < 0.025 and abs(values.std() - 12**-0.5) < 0.01
    for name in one:
        assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(values, one["layer.1.neurons"])


# --- against plain autograd -----------------------------------------------------------------------------------------


def observe(model, groups, batch, backward=True):
    """Plain autograd: group name -> what its output projection is fed, and the gradient of it, one tensor a call."""
    seen = {group.name: [] for group in groups}

    def keep(name, module, args):
        if backward:
            args[0].retain_grad()
        seen[name].append(args[0])

    handles = [
        model.get_submodule(g.output.module).register_forward_pre_hook(lambda m, a, name=g.name: keep(name, m, a))
        for g in groups
    ]
    loss = model(**batch).loss
    if backward:
        (loss * len(batch["labels"])).backward()
    for handle in handles:
        handle.remove()
    return {
        name: ([x.detach() for x in calls], [x.grad for x in calls] if backward else None)
        for name, calls in seen.items()
    }


def tokens_of_one_example(group, calls):
    """All calls of one example: `(tokens, units, width)`."""
    return torch.cat([call.reshape(-1, group.size, group.output.width) for call in calls])


def formula(method, a, g, real):
    """The score of one example: `(units,)`."""
    if method in ("cam_cut", "smooth_cam_cut"):
        return torch.relu((g[real].mean(0) * a[real]).sum(-1)).mean(0)
    if method == "activation":
        return a[real].abs().mean((0, 2))
    effect = (a * g).sum((0, 2))
    return effect.abs() if method == "taylor" else effect**2


def plain_scores(model, batches, methods):
    """Each example alone through the model with nothing frozen, then the mean: method -> group name -> scores."""
    model, groups = copy.deepcopy(model), find_groups(model)
    sums = {method: {group.name: 0 for group in groups} for method in methods}
    count = 0
    for batch in batches:
        for i in range(len(batch["labels"])):
            seen = observe(model, groups, {name: value[i : i + 1] for name, value in batch.items()})
            for group in groups:
                a, g = (tokens_of_one_example(group, calls) for calls in seen[group.name])
                real = batch["attention_mask"][i].flatten().bool()
                real = real.repeat(len(a) // len(real))
                for method in methods:
                    sums[method][group.name] += formula(method, a, g, real).double()
            count += 1
    return {method: {name: total / count for name, total in values.items()} for method, values in sums.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_plain_autograd(architecture):
    """Padding, batches of several sizes, squares taken per example; in ALBERT every block is called three times."""
    model = tiny_model(architecture) if architecture == "albert" else tiny_model(architecture, num_hidden_layers=2)
    methods = (*PLAIN_GRADIENT, "activation")
    expected = plain_scores(model, uneven_batches(), methods)
    for method in methods:
        got = score(model, method)
        assert all(values.dtype == torch.float32 and values.device.type == "cpu" for values in got.values())
        assert [(name, len(values)) for name, values in got.items()] == [(g.name, g.size) for g in find_groups(model)]
        assert_scores_close(got, expected[method])


def test_squares_are_taken_per_example():
    """Two examples with opposite effects must not cancel: the mean of squares is not the square of the mean."""
    model, batch = tiny_model("bert", num_labels=2), tiny_batch(1, padding=False)
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    twice["labels"] = torch.tensor([0, 1])
    got = score(model, "fisher", [twice])
    alone = [score(model, "fisher", [{**batch, "labels": torch.tensor([label])}]) for label in (0, 1)]
    assert_scores_close(got, {name: (alone[0][name] + alone[1][name]) / 2 for name in got})


@pytest.mark.parametrize("granularity", [("heads", "neurons"), ("weights",)])
@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut"])
def test_a_compiled_model_scores_as_it_does_uncompiled(method, granularity):
    model, config = tiny_model("bert"), PruningConfig(method, granularity, sparsity=0.5, noise_std=0.1)
    groups, batches = find_groups(model, granularity), [tiny_batch(4), tiny_batch(3, seed=1)]
    expected = score_groups(model, groups, batches, config, disable_tqdm=True)
    model.eval().requires_grad_(False).compile(backend="eager")
    model(**batches[0])  # so that there is compiled code that fits
    got = score_groups(model, groups, batches, config, disable_tqdm=True)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_chunked_feed_forward_changes_nothing(architecture):
    model = tiny_model(architecture)
    chunked = tiny_model(architecture, chunk_size_feed_forward=3)
    expected = plain_scores(chunked, uneven_batches(), PLAIN_GRADIENT)
    for method in PLAIN_GRADIENT:
        got = score(chunked, method)
        assert_scores_close(got, expected[method])
        assert_scores_close(got, score(model, method))


def choices(size, seed=0):
    """Multiple choice: three candidates an example, each padded in its own way."""
    batch = tiny_batch(3 * size, seed=seed)
    for i in range(0, 3 * size, 3):
        batch["attention_mask"][i, 4:] = 0
    batch = {name: batch[name].view(size, 3, -1) for name in ("input_ids", "attention_mask")}
    return {**batch, "labels": torch.arange(size) % 3}


@pytest.mark.parametrize("changes", [{}, {"chunk_size_feed_forward": 3}], ids=["whole", "chunked"])
@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_multiple_choice_agrees_with_plain_autograd(architecture, changes):
    """Chunking must not change which tokens count as padding, so what is expected comes from the model without it."""
    batches = [choices(2, seed=1), choices(3, seed=2)]
    expected = plain_scores(tiny_model(architecture, "MultipleChoice"), batches, (*PLAIN_GRADIENT, "activation"))
    for method, values in expected.items():
        assert_scores_close(score(tiny_model(architecture, "MultipleChoice", **changes), method, batches), values)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_pruned_models_can_be_scored_again(architecture):
    model = tiny_model(architecture)
    apply_plan(model, random_plan(model, seed=4, least=2))
    expected = plain_scores(model, uneven_batches(), PLAIN_GRADIENT)
    for method in PLAIN_GRADIENT:
        assert_scores_close(score(model, method), expected[method])


@pytest.mark.parametrize("method", PLAIN_GRADIENT)
def test_the_split_into_batches_does_not_matter(method):
    model = tiny_model("bert")
    whole = tiny_batch(8)
    parts = [{name: value[a:b] for name, value in whole.items()} for a, b in ((0, 1), (1, 6), (6, 8))]
    assert_scores_close(score(model, method, [whole]), score(model, method, parts), rtol=1e-5)


def test_a_batch_without_a_mask_has_real_tokens_only():
    model, batch = tiny_model("bert"), tiny_batch(padding=False)
    without = {name: value for name, value in batch.items() if name != "attention_mask"}
    for method in ("cam_cut", "activation"):
        assert_scores_close(score(model, method, [without]), score(model, method, [batch]))


def test_a_loss_of_ones_own():
    """Twice the loss is twice the effect; the default loss is the model's."""
    model, groups, config = tiny_model("bert"), find_groups(tiny_model("bert")), settings("taylor")
    plain = score_groups(model, groups, uneven_batches(), config, disable_tqdm=True)
    doubled = score_groups(
        model, groups, uneven_batches(), config, loss_function=lambda m, b: 2 * m(**b).loss, disable_tqdm=True
    )
    assert_scores_close(doubled, {name: 2 * values for name, values in plain.items()})


# --- smoothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smooth", "plain"), [("smooth_cut", "fisher"), ("smooth_cam_cut", "cam_cut")])
@pytest.mark.parametrize("architecture", ["bert", "albert", "gpt2"])
def test_without_noise_the_smooth_methods_are_the_plain_ones(architecture, smooth, plain):
    model = tiny_model(architecture)
    assert_scores_close(score(model, smooth, noise_std=0.0, smooth_samples=3), score(model, plain), rtol=1e-5)


@pytest.mark.parametrize("method", ["smooth_cut", "smooth_cam_cut"])
@pytest.mark.parametrize("noise_scale", ["relative", "absolute"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_smooth_methods_agree_with_plain_autograd(architecture, noise_scale, method):
    """The gradient is the mean over three noisy passes, the activation is that of the clean pass."""
    model, batches, std, seed = tiny_model(architecture, num_hidden_layers=2), uneven_batches(), 0.3, 5
    groups, copied = find_groups(model), copy.deepcopy(model)
    expected = {group.name: 0 for group in groups}
    for index, batch in enumerate(batches):
        noise = GaussianNoise(seed)

        def add_noise(module, args, output, noise=noise):
            scale = std * output.detach().std(correction=0) if noise_scale == "relative" else std
            return output + scale * noise.like(output)

        clean = observe(copied, groups, batch)
        linears = [module for module in copied.base_model.modules() if isinstance(module, nn.Linear | Conv1D)]
        handles = [module.register_forward_hook(add_noise) for module in linears]
        torch.manual_seed(seed * 1_000_003 + index)  # draws the windows
        passes = [observe(copied, groups, batch) for _ in range(3)]
        for handle in handles:
            handle.remove()
        for group in groups:
            shape = (len(batch["labels"]), -1, group.size, group.output.width)
            a = clean[group.name][0][0].reshape(shape)
            g = sum(seen[group.name][1][0] for seen in passes).reshape(shape) / 3
            for i, real in enumerate(batch["attention_mask"].bool()):
                expected[group.name] += formula(method, a[i], g[i], real) / 8
    got = score(model, method, batches, noise_std=std, noise_scale=noise_scale, smooth_samples=3, seed=seed)
    assert_scores_close(got, expected)
    plain = score(model, {"smooth_cut": "fisher", "smooth_cam_cut": "cam_cut"}[method])
    assert all(not torch.allclose(got[name], plain[name], rtol=1e-3) for name in got)


@pytest.mark.parametrize("method", ["smooth_cut", "smooth_cam_cut"])
def test_noise_is_deterministic_for_a_seed(method):
    model = tiny_model("bert")
    one, again, other, more = (
        score(model, method, seed=seed, smooth_samples=samples) for seed, samples in ((1, 2), (1, 2), (2, 2), (1, 3))
    )
    for name in one:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], more[name])


@pytest.mark.parametrize(
    ("sizes", "examples", "scored"),
    [
        ([4] * 8, 8, [(3, 4), (7, 4)]),  # batches as they are, as long as they come to as many
        ([3, 4, 4, 1], 6, [(2, 4), (3, 1)]),  # the last one gives what is due, or as much as it has
        ([48, 48], 20, [(1, 20)]),
        ([80, 40], 90, [(0, 60), (1, 30)]),  # of a large batch a part
        ([4, 4], 8, [(0, 4), (1, 4)]),
        ([4, 4], 100, [(0, 4), (1, 4)]),
    ],
)
def test_the_smooth_methods_score_examples_from_everywhere(sizes, examples, scored):
    """`smooth_examples` of them, spread over the batches, which may be sorted; other methods score all."""
    model = tiny_model("bert", num_hidden_layers=2)
    batches = [tiny_batch(size, seed=number) for number, size in enumerate(sizes)]
    chosen = [take(batches[number], size) for number, size in scored]
    got = score(model, "smooth_cut", batches, smooth_examples=examples)
    by_hand = score(model, "smooth_cut", chosen, smooth_examples=10**6)
    assert all(torch.equal(got[name], by_hand[name]) for name in got)
    rows = [{n: values[i] for n, values in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
    places = iter(range(len(rows)))
    loader = DataLoader(rows, batch_sampler=[list(itertools.islice(places, size)) for size in sizes])
    got = score(model, "smooth_cut", loader, smooth_examples=examples)
    assert all(torch.equal(got[name], by_hand[name]) for name in got)
    renumbered = MappedBatches(batches, dict)
    got = score(model, "smooth_cut", renumbered, smooth_examples=examples)
    assert all(torch.equal(got[name], by_hand[name]) for name in got)
    first = score(model, "smooth_cut", iter(batches), smooth_examples=3)  # nobody knows how many will come
    by_hand = score(model, "smooth_cut", [take(batches[0], 3)])
    assert all(torch.equal(first[name], by_hand[name]) for name in first)
    plain = score(model, "fisher", batches, smooth_examples=examples)
    assert all(torch.equal(plain[name], values) for name, values in score(model, "fisher", batches).items())


def test_what_a_loader_leaves_out_does_not_count():
    """By its sampler, or as a batch that is not full: as many as are asked for are scored all the same."""
    rows = [{"input_ids": torch.tensor([number])} for number in range(60)]
    drawn = DataLoader(rows, batch_size=4, sampler=SubsetRandomSampler(range(20)))
    short = DataLoader(rows[:23], batch_size=4, drop_last=True)
    for loader in (drawn, short):
        sizes = [count_examples(batch) for batch in limit(loader, 2048, "reading", True, chosen=10)]
        assert sizes == [4, 4, 2]


def test_more_noisy_passes_vary_less():
    """Averaging n independent gradients divides their variance by n, which is what the noisy passes are for."""
    model, batches = tiny_model("bert", num_hidden_layers=2), [tiny_batch(8)]

    def spread(samples):
        runs = [
            torch.cat(list(score(model, "smooth_cam_cut", batches, seed=seed, smooth_samples=samples).values()))
            for seed in range(6)
        ]
        return torch.stack(runs).std(0).mean().item()

    # A ratio of 4 = sqrt(16) is expected; its estimate from six runs strays by a fifth or so.
    assert 2.5 < spread(1) / spread(16) < 6


def test_gaussian_noise_is_standard_normal():
    noise, state = GaussianNoise(3), torch.get_rng_state()
    one, two = noise.like(torch.empty(300, 400)), noise.like(torch.empty(300, 400))
    for values in (one, two):
        assert values.shape == (300, 400) and values.dtype == torch.float32
        # Of 120,000 numbers: standard errors 0.003, 0.002 and 0.0014.
        assert abs(values.mean()) < 0.015 and abs(values.std() - 1) < 0.01
        assert abs((values.abs() < 1).float().mean() - 0.6827) < 0.007
    assert abs((one * two).mean()) < 0.015  # uncorrelated with one another
    assert noise.like(torch.empty(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    for seed in (3, 4):
        torch.set_rng_state(state)  # what gradient checkpointing does before it runs a block again
        assert torch.equal(GaussianNoise(seed).like(torch.empty(300, 400)), one) == (seed == 3)


@pytest.mark.parametrize("relative", [True, False])
def test_noise_follows_the_scale_of_each_output(relative):
    model = nn.ModuleDict({"small": nn.Linear(64, 512), "large": Conv1D(512, 64), "none": nn.LayerNorm(64)})
    x = torch.randn(64, 64)
    with torch.no_grad():
        model["large"].weight.normal_(std=3)
        clean = {name: module(x) for name, module in model.items()}
        with linear_noise(model, 0.2, relative, GaussianNoise(0)):
            noisy = {name: module(x) for name, module in model.items()}
        after = {name: module(x) for name, module in model.items()}
    assert clean["large"].std() > 20 * clean["small"].std()
    for name in ("small", "large"):
        added = (noisy[name] - clean[name]).std().item()
        assert added == pytest.approx(0.2 * clean[name].std().item() if relative else 0.2, rel=0.02)
        assert torch.equal(after[name], clean[name])
    assert torch.equal(noisy["none"], clean["none"])


# --- the model afterwards -------------------------------------------------------------------------------------------


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, name)) for module in model.modules() for name in names]


def state(model):
    """Everything that scoring could leave behind."""
    return {
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": hooks(model),
        "config": model.config.to_dict(),
        "random": torch.get_rng_state().tolist(),
        "threads": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def half_frozen_model():
    """In training mode but for one dropout, with some parameters frozen by their owner.

    `problem_type` is given because the first forward pass of any model with labels writes it into the config.
    """
    model = tiny_model("bert", problem_type="single_label_classification").train()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[1].output.dense.weight.requires_grad_(False)
    model.bert.encoder.layer[0].output.dropout.eval()
    return model


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_untouched(method):
    model = half_frozen_model()
    before, weights = state(model), {name: value.clone() for name, value in model.state_dict().items()}
    score(model, method)
    assert state(model) == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_the_owner_survive():
    model = tiny_model("bert")
    model(**tiny_batch()).loss.backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    score(model, "fisher")
    assert all(torch.equal(parameter.grad, value) for parameter, value in zip(model.parameters(), before))


@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut"])
@pytest.mark.parametrize("call", [1, 4])
def test_the_model_is_left_untouched_after_an_error(method, call):
    """The error comes out of the model's own forward pass, in the first pass and in a later one."""
    model, calls = half_frozen_model(), []
    groups, before = find_groups(model), state(model)

    def fail(model, batch):
        calls.append(batch)
        loss = model(**batch).loss
        if len(calls) == call:
            raise MemoryError("no memory left")
        return loss

    batches = [tiny_batch(2, seed=seed) for seed in range(5)]
    with pytest.raises(MemoryError, match="no memory left"):
        score_groups(model, groups, batches, settings(method), loss_function=fail, disable_tqdm=True)
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["cam_cut", "taylor", "smooth_cut"])
def test_no_gradient_of_a_weight_is_computed(method):
    model, computed, trainable = tiny_model("bert"), [], []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(computed.append)

    def loss(model, batch):
        trainable.extend(parameter for parameter in model.parameters() if parameter.requires_grad)
        assert not any(module.training for module in model.modules())
        return model(**batch).loss

    model.train()
    groups, config = find_groups(model), settings(method)
    score_groups(model, groups, uneven_batches(), config, loss_function=loss, disable_tqdm=True)
    assert not trainable and not computed
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model(**tiny_batch()).loss.backward()
    assert computed  # the hooks do see gradients


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_gives_finite_float32_scores(method):
    full, half = tiny_model("bert"), tiny_model("bert").to(torch.bfloat16)
    got = score(half, method)
    assert all(values.dtype == torch.float32 and torch.isfinite(values).all() for values in got.values())
    if method in ("magnitude", "activation"):
        assert_scores_close(got, score(full, method), rtol=0.05)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["activation", "taylor", "smooth_cut"])
def test_no_more_is_read_than_num_samples(method):
    model, read = tiny_model("bert"), []

    def batches():
        for seed in range(6):
            read.append(seed)
            yield tiny_batch(2, seed=seed)

    got = score(model, method, batches(), num_samples=6)
    assert read == [0, 1, 2]
    assert_scores_close(got, score(model, method, [tiny_batch(2, seed=seed) for seed in range(3)]))


def test_num_samples_need_not_be_a_multiple_of_the_batch():
    model, batch = tiny_model("bert"), tiny_batch(8)
    five = [{name: value[:5] for name, value in batch.items()}]
    assert_scores_close(score(model, "taylor", [batch], num_samples=5), score(model, "taylor", five), rtol=1e-5)


def test_labels_are_not_needed_without_a_loss():
    batches = [tiny_batch(labels=False)]
    got = score(tiny_model("bert"), "activation", batches)
    assert all(values.gt(0).any() for values in got.values())
    for method in ("magnitude", "random"):
        groups = find_groups(tiny_model("bert"))
        assert len(score_groups(tiny_model("bert"), groups, None, settings(method))) == len(groups)


def test_only_the_groups_asked_for_are_scored():
    model = tiny_model("bert")
    groups = [group for group in find_groups(model) if group.name in ("layer.2.heads", "layer.0.neurons")]
    got = score_groups(model, groups, uneven_batches(), settings("cam_cut"), disable_tqdm=True)
    everything = score(model, "cam_cut")
    assert_scores_close(got, {group.name: everything[group.name] for group in groups})


# --- errors ---------------------------------------------------------------------------------------------------------


def check_refused(model, batches, method, message, error=ValueError):
    model.config.problem_type = "single_label_classification"  # as the first forward pass with labels would set it
    before = state(model)
    with pytest.raises(error, match=re.escape(message)):
        score(model, method, batches)
    assert state(model) == before


@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut", "activation"])
def test_no_batches(method):
    check_refused(tiny_model("bert"), [], method, "the dataloader gave no batches: there is nothing to score on")
    check_refused(tiny_model("bert"), iter([]), method, "the dataloader gave no batches")
    empty = {name: value[:0] for name, value in tiny_batch().items()}
    check_refused(tiny_model("bert"), [empty], method, "the dataloader gave no batches")


def test_no_dataloader():
    model = tiny_model("bert")
    message = "the method 'taylor' needs batches to score on, and dataloader is None"
    with pytest.raises(ValueError, match=re.escape(message)):
        score_groups(model, find_groups(model), None, settings("taylor"))


@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut", "taylor"])
def test_no_labels(method):
    message = (
        "the model gave no loss for a batch with ['attention_mask', 'input_ids']; this scoring method needs the labels"
    )
    check_refused(tiny_model("bert"), [tiny_batch(labels=False)], method, message)


def test_no_groups():
    with pytest.raises(
        ValueError,
        match=re.escape("no groups of heads or neurons to score; find_groups(model, ('heads', 'neurons')) gives them"),
    ):
        score_groups(tiny_model("bert"), [], uneven_batches(), settings("taylor"))


@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut", "taylor", "activation", "magnitude"])
def test_nan_weights(method):
    model = tiny_model("bert")
    model.bert.encoder.layer[0].intermediate.dense.weight.data[3] = float("nan")
    check_refused(
        model, None if method == "magnitude" else uneven_batches(), method, "are NaN or infinite; look for a NaN"
    )


@pytest.mark.parametrize("granularity", [("heads", "neurons"), ("weights",)])
@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut"])
def test_a_batch_in_which_no_label_counts_is_passed_over(method, granularity, caplog):
    """Masked language modelling on short texts: the scores are those of the other batches, and one line says so."""
    model = tiny_model("bert", "MaskedLM")
    batches = [{**batch, "labels": batch["input_ids"].clone()} for batch in uneven_batches()]
    groups, config = find_groups(model, granularity), settings(method, granularity=granularity, noise_std=1e-9)
    expected = score_groups(model, groups, batches, config, disable_tqdm=True)
    assert "skipped" not in caplog.text
    ignored = {**tiny_batch(5), "labels": torch.full((5, TOKENS), -100)}
    got = score_groups(model, groups, [ignored, *batches, ignored], config, disable_tqdm=True)
    assert caplog.text.count("2 of 5 scoring batches were skipped: all of their labels are -100") == 1
    for scores in (got, expected):  # a softmax over keys does not see their bias: its scores are rounding
        for name in [name for name in scores if name.endswith("key.bias")]:
            del scores[name]
    assert_scores_close(got, expected, rtol=1e-3 if method == "smooth_cut" else 1e-6)


@pytest.mark.parametrize("granularity", [("heads", "neurons"), ("weights",)])
@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut"])
def test_a_loss_that_reads_no_labels_counts_whatever_they_are(method, granularity, caplog):
    """A contrastive or a self-supervised loss of the user's own, with a collator that ignores all labels."""
    model, batches = tiny_model("bert", "TokenClassification"), uneven_batches()
    groups, config = find_groups(model, granularity), settings(method, granularity=granularity)

    def loss(model, batch):
        return model(batch["input_ids"], batch["attention_mask"]).logits.square().mean()

    def scores(value):
        labelled = [{**batch, "labels": torch.full_like(batch["input_ids"], value)} for batch in batches]
        return score_groups(model, groups, labelled, config, loss_function=loss, disable_tqdm=True)

    got, expected = scores(-100), scores(1)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert "skipped" not in caplog.text


def test_labels_do_not_matter_to_what_needs_no_loss():
    model, batch = tiny_model("bert", "MaskedLM"), tiny_batch()
    scores = [
        score(model, "activation", [{**batch, "labels": labels}])
        for labels in (batch["input_ids"], torch.full((4, TOKENS), -100))
    ]
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


@pytest.mark.parametrize("method", ["cam_cut", "taylor", "smooth_cut"])
def test_labels_that_are_all_ignored(method):
    """Nothing is left to rank by, whatever the loss makes of it."""
    model, batch = tiny_model("bert", "TokenClassification"), tiny_batch()
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    with pytest.raises(ValueError, match="all labels in the 2 scoring batches are -100, .*nothing to score on"):
        score(model, method, [batch, batch])
    with pytest.raises(ValueError, match="all labels in the 1 scoring batches are -100, .*nothing to score on"):
        score_groups(
            model,
            find_groups(model),
            [batch],
            settings(method),
            loss_function=lambda m, b: nn.functional.cross_entropy(
                m(**b).logits.flatten(0, 1), b["labels"].flatten(), reduction="sum"
            ),
            disable_tqdm=True,
        )


def test_a_loss_that_does_not_depend_on_the_groups():
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="the loss does not depend on any of the groups to be scored"):
        score_groups(
            model,
            find_groups(model),
            uneven_batches(),
            settings("taylor"),
            loss_function=lambda m, b: torch.zeros(()),
            disable_tqdm=True,
        )


@pytest.mark.parametrize("batch", [[1, 2], (torch.ones(2, 3), torch.ones(2)), torch.ones(2, 3), {}], ids=str)
def test_a_batch_that_is_no_dict_of_tensors(batch):
    message = f"expected batches that are dicts of tensors, got {type(batch).__name__}"
    check_refused(tiny_model("bert"), [batch], "taylor", message, TypeError)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_the_methods_of_the_project_are_registered():
    assert tuple(sorted(SCORERS)) == tuple(sorted(METHODS))
    assert all(entry.name == name for name, entry in SCORERS.items())
    assert {name for name, entry in SCORERS.items() if entry.smooth} == {"smooth_cut", "smooth_cam_cut"}


def test_a_name_is_registered_once():
    before = dict(SCORERS)
    with pytest.raises(ValueError, match=re.escape("a scoring method named 'taylor' is registered already")):
        scorer("taylor")(lambda activation, gradient, mask: None)
    assert before == SCORERS


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="unknown method 'tailor'") as error:
        get_scorer("tailor")
    with pytest.raises(ValueError, match="unknown method 'tailor'") as from_config:
        settings("tailor")
    for name, raised in itertools.product(METHODS, (error, from_config)):
        assert name in str(raised.value)


@pytest.fixture
def own_method():
    """The largest activation at a real token: a method that a user adds in three lines."""

    @scorer("largest", source="activation")
    def largest(activation, gradient, mask):
        assert gradient is None
        return (activation.abs() * mask[:, :, None, None]).amax((1, 3))

    yield "largest"
    del SCORERS["largest"]


def test_a_new_method_works_everywhere(own_method):
    model, batches = tiny_model("bert"), uneven_batches()
    got = score(model, own_method, batches)
    groups, expected = find_groups(model), {}
    for group in groups:
        maxima = []
        for batch in batches:
            with torch.no_grad():
                a = observe(model, [group], batch, backward=False)[group.name][0][0]
            a = a.view(len(batch["labels"]), -1, group.size, group.output.width)
            maxima += [x[real].abs().amax((0, 2)) for x, real in zip(a, batch["attention_mask"].bool())]
        expected[group.name] = torch.stack(maxima).mean(0)
    assert_scores_close(got, expected)
    assert own_method in SCORERS


def test_a_removed_method_is_unknown_again():
    with pytest.raises(ValueError, match="unknown method 'largest'"):
        settings("largest")


def test_layers_without_units_are_scored_around():
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.neurons": []}))
    for method in ("cam_cut", "magnitude", "activation", "smooth_cut"):
        scores = score_groups(model, find_groups(model), [tiny_batch()], settings(method))
        assert scores["layer.1.neurons"].shape == (0,) and scores["layer.2.neurons"].any()


def test_groups_of_another_model_are_refused():
    model, groups = tiny_model("bert"), find_groups(tiny_model("bert"))
    with pytest.raises(ValueError, match=re.escape("'layer.0.heads' has 4 units, but the GPT2ForSequence")):
        score_groups(tiny_model("gpt2"), groups, [tiny_batch()], settings("taylor"))
    apply_plan(model, PruningPlan({"layer.1.neurons": range(5)}))
    with pytest.raises(ValueError, match=re.escape("'layer.1.neurons' has 37 units, but the BertForSequence")):
        score_groups(model, groups, [tiny_batch()], settings("taylor"))


def test_a_method_that_gives_no_score_a_unit_is_refused():
    @scorer("wrong_shape")
    def wrong_shape(activation, gradient, mask):
        return (activation * gradient).sum((1, 2, 3))

    try:
        model = tiny_model("bert")
        with pytest.raises(ValueError, match="'wrong_shape' gave scores of shape"):
            score_groups(model, find_groups(model), [tiny_batch()], settings("wrong_shape"))
    finally:
        del SCORERS["wrong_shape"]


def test_computed_scores_of_infinity_are_refused():
    """In scores of the user's own it says "keep"; here it is an overflow."""
    model = tiny_model("bert")
    with torch.no_grad():
        model.get_submodule("bert.encoder.layer.1.output.dense").weight[0, 0] = torch.inf
    groups, config = find_groups(model), PruningConfig(sparsity=0.5, method="magnitude")
    with pytest.raises(ValueError, match="the scores of 'layer.1.neurons' are NaN or infinite"):
        score_groups(model, groups, None, config)
