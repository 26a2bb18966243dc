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
"""Single weights: scores against numbers worked out by hand and against plain autograd, plans, and masks."""

import copy
import dataclasses
import json
import math
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from marks import few
from models import ARCHITECTURES, tiny_batch, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

from optimum_camcut import (
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    prune_heads,
    score_groups,
)
from optimum_camcut.methods.registry import weight_scorer
from optimum_camcut.planning.allocation import check_budget
from optimum_camcut.planning.units import IndexSet, mask_of
from optimum_camcut.scoring import WEIGHT_SCORERS, gradients
from optimum_camcut.scoring.noise import GaussianNoise, linear_noise


METHODS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "magnitude", "gradient", "snip", "wanda", "random")
WITH_LOSS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "gradient", "snip")


def settings(method="snip", **changes):
    amount = {} if {"sparsity", "compression"} & set(changes) else {"sparsity": 0.5}
    return PruningConfig(method=method, granularity=("weights",), **amount, **changes)


def groups_of(model):
    return find_groups(model, ("weights",))


def uneven_batches():
    """Eight examples in three batches, most of them padded."""
    return [tiny_batch(size, seed=size) for size in (4, 1, 3)]


def score(model, method, batches=None, loss_function=None, **changes):
    batches = uneven_batches() if batches is None else batches
    config = settings(method, **changes)
    return score_groups(model, groups_of(model), batches, config, loss_function=loss_function, disable_tqdm=True)


def assert_scores_close(got, expected, rtol=1e-5):
    assert list(got) == list(expected)
    for name, values in got.items():
        wanted = torch.as_tensor(expected[name]).float()
        atol = 1e-7 * max(wanted.max().item() for wanted in map(torch.as_tensor, expected.values()))
        torch.testing.assert_close(values, wanted, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def random_masks(model, seed=0, fraction=0.5, names=None):
    """A plan that keeps random weights of every parameter, or of some."""
    generator = torch.Generator().manual_seed(seed)
    groups = [group for group in groups_of(model) if names is None or group.name in names]
    keep = {g.name: IndexSet((torch.rand(g.original_size, generator=generator) >= fraction).numpy()) for g in groups}
    return PruningPlan(keep, {group.name: group.original_size for group in groups})


# --- by hand --------------------------------------------------------------------------------------------------------


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class Toy(PreTrainedModel):
    """Two linear layers and a head that doubles: loss = mean over examples and tokens of label * output."""

    config_class = ToyConfig
    base_model_prefix = "body"
    layer = staticmethod(nn.Linear)

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Sequential(self.layer(2, 2), self.layer(2, 1))
        self.head = nn.Linear(1, 1)
        self.post_init()
        matrices = {"0": [[1.0, -1.0], [2.0, 0.5]], "1": [[3.0, -2.0]]}
        for name, matrix in matrices.items():
            matrix = torch.tensor(matrix)
            module = self.body.get_submodule(name)
            module.weight.data = matrix if isinstance(module, nn.Linear) else matrix.T.contiguous()
        self.body[0].bias.data = torch.tensor([0.5, -1.0])
        self.body[1].bias.data = torch.tensor([0.25])
        self.head.weight.data = torch.tensor([[2.0]])
        self.head.bias.data = torch.tensor([7.0])

    def forward(self, x, labels=None):
        output = self.head(self.body(x))[..., 0]
        loss = (labels[:, None] * output).mean() if labels is not None else None
        return SequenceClassifierOutput(loss=loss, logits=output)


class TransposedToy(Toy):
    """The same function with the transposed linear layers of GPT-2."""

    layer = staticmethod(lambda inputs, outputs: Conv1D(outputs, inputs))


# Two batches: an example of two tokens, and one of a single token, whose gradients differ in sign.
TOY_BATCHES = [
    {"x": torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), "labels": torch.tensor([1.0])},
    {"x": torch.tensor([[[1.0, -1.0]]]), "labels": torch.tensor([-2.0])},
]
# First batch: hidden (-0.5, 2) and (3.5, 5), mean (1.5, 3.5); output -5.25 and 0.75, mean -2.25. With
# dL/d(output) = 2 * label and label * x = (2, 1) in the mean, the gradients are
#   W1 2 * 3 * (2, 1) = (12, 6) and 2 * -2 * (2, 1) = (-8, -4); b1 6, -4; W2 2 * (1.5, 3.5) = (3, 7); b2 2.
# Second batch: hidden (2.5, 0.5), output 6.75, label * x = (-2, 2):
#   W1 (-12, 12) and (8, -8); b1 -12, 8; W2 -4 * (2.5, 0.5) = (-10, -2); b2 -4.
# Scores are sums of absolute values: |12| + |-12| = 24, where the gradient of both batches together is 0.
BY_HAND = {
    "magnitude": ([[1, 1], [2, 0.5]], [0.5, 1], [[3, 2]], [0.25]),
    "gradient": ([[24, 18], [16, 12]], [18, 12], [[13, 9]], [6]),
    "snip": ([[24, 18], [32, 6]], [9, 12], [[39, 18]], [1.5]),
    # |W g z| a batch, z = (1.5, 3.5) and (2.5, 0.5) of the first layer, -2.25 and 6.75 of the second:
    # 18 + 30, 9 + 30; 56 + 8, 7 + 2; 4.5 + 15, 14 + 4; 20.25 + 202.5, 31.5 + 27; 1.125 + 6.75.
    "cam_cut": ([[48, 39], [64, 9]], [19.5, 18], [[222.75, 58.5]], [7.875]),
    # The same with 10 + z: (11.5, 13.5) and (12.5, 10.5), 7.75 and 16.75.
    "cam_cut, shift": ([[288, 219], [384, 69]], [109.5, 138], [[572.25, 175.5]], [20.625]),
    # Norms over all three tokens: x (sqrt 11, sqrt 5), hidden (sqrt 18.75, sqrt 29.25), of a bias's input sqrt 3.
    "wanda": (
        [[11**0.5, 5**0.5], [2 * 11**0.5, 0.5 * 5**0.5]],
        [0.5 * 3**0.5, 3**0.5],
        [[3 * 18.75**0.5, 2 * 29.25**0.5]],
        [0.25 * 3**0.5],
    ),
}
TOY_NAMES = ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")


@pytest.mark.parametrize("toy", [Toy, TransposedToy])
@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("magnitude", {}, "magnitude"),
        ("gradient", {}, "gradient"),
        ("snip", {}, "snip"),
        ("cam_cut", {}, "cam_cut"),
        ("cam_cut", {"shift": 10.0}, "cam_cut, shift"),
        ("smooth_cut", {"noise_std": 0.0, "smooth_samples": 3}, "snip"),
        ("smooth_cam_cut", {"noise_std": 0.0, "smooth_samples": 3}, "cam_cut"),
        ("smooth_cam_cut", {"noise_std": 0.0, "smooth_samples": 3, "shift": 10.0}, "cam_cut, shift"),
        ("wanda", {}, "wanda"),
    ],
)
def test_scores_by_hand(method, changes, expected, toy):
    model = toy(ToyConfig())
    got = score(model, method, TOY_BATCHES, **changes)
    assert set(got) == set(TOY_NAMES)  # the head is not scored
    for name, values in zip(TOY_NAMES, BY_HAND[expected]):
        values = torch.tensor(values, dtype=torch.float32)
        transposed = toy is TransposedToy and name.endswith("weight")
        torch.testing.assert_close(got[name], values.T if transposed else values, rtol=1e-6, atol=1e-6)


def test_the_shift_keeps_its_sign():
    """|10 + z|, not 10 + |z|: the second layer's output is -2.25 in the first batch."""
    got = score(Toy(ToyConfig()), "cam_cut", TOY_BATCHES[:1], shift=2.25)
    assert got["body.1.weight"].tolist() == [[0.0, 0.0]] and got["body.0.weight"][0, 0] == 12 * 3.75


def test_a_layer_that_saw_no_token_scores_zero():
    """As an expert that no token is routed to: it is called with nothing, its gradient is zero, its mean undefined."""

    class Routed(Toy):
        def forward(self, x, labels=None):
            result = super().forward(x, labels)
            result.loss = result.loss + self.body[0](x[:0]).sum() if self.idle is None else result.loss
            return result

        idle = None

    model = Routed(ToyConfig())
    assert score(model, "cam_cut", TOY_BATCHES)["body.0.weight"].tolist() == BY_HAND["cam_cut"][0]
    only_empty = score(
        model, "cam_cut", TOY_BATCHES, lambda m, b: m.body[0](b["x"][:0]).sum() + m.body[1](b["x"]).sum()
    )
    assert not only_empty["body.0.weight"].any() and only_empty["body.1.weight"].all()


def test_a_layer_that_is_never_called_scores_zero():
    model = Toy(ToyConfig())
    for method in ("snip", "wanda"):
        got = score_groups(
            model,
            groups_of(model),
            TOY_BATCHES,
            settings(method),
            loss_function=lambda m, b: m.body[1](b["x"]).sum(),
            disable_tqdm=True,
        )
        assert got["body.1.weight"].all()
        assert method == "wanda" or not got["body.0.weight"].any()


# --- against plain autograd -----------------------------------------------------------------------------------------


def scored_parameters(model):
    """The parameters of the linear layers of the body, found without the package."""
    body = {id(module) for module in model.base_model.modules()}
    return {
        f"{path}.{name}": (path, module, parameter)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in body
        for name, parameter in module.named_parameters()
    }


def plain_scores(model, batches, method, shift=0.0, noise=None, passes=1):
    """The table of formulas in plain autograd and hooks, nothing frozen: name -> float64 array."""
    model = copy.deepcopy(model)
    parameters = scored_parameters(model)
    inputs, outputs = {}, {}

    def watch(path):
        def hook(module, args, output):
            inputs.setdefault(path, []).append(args[0].detach().flatten(0, -2).double())
            outputs.setdefault(path, []).append(output.detach().flatten(0, -2).double())

        return hook

    for path in dict.fromkeys(path for path, _, _ in parameters.values()):
        model.get_submodule(path).register_forward_hook(watch(path))
    totals = {name: np.zeros(tuple(parameter.shape)) for name, (_, _, parameter) in parameters.items()}
    for index, batch in enumerate(batches):
        model.zero_grad()
        outputs.clear()
        with noise(model, index) if noise else nullcontext():
            for _ in range(passes):
                model(**batch).loss.backward()
        for name, (path, module, parameter) in parameters.items():
            if path not in outputs:
                continue
            w, g = (x.detach().double().numpy() for x in (parameter, parameter.grad / passes))
            z = shift + torch.cat(outputs[path]).mean(0).numpy()
            if parameter.dim() == 2:
                z = z[None, :] if isinstance(module, Conv1D) else z[:, None]
            if method == "gradient":
                totals[name] += abs(g)
            elif method in ("snip", "smooth_cut"):
                totals[name] += abs(w * g)
            elif method in ("cam_cut", "smooth_cam_cut"):
                totals[name] += abs(w * g * z)
    if method in ("magnitude", "wanda"):
        for name, (path, module, parameter) in parameters.items():
            totals[name] = parameter.detach().double().abs().numpy()
            if method == "wanda":
                x = torch.cat(inputs[path]).numpy() if path in inputs else np.zeros((0, 1))
                norm = (x**2).sum(0) ** 0.5 if parameter.dim() == 2 else len(x) ** 0.5
                totals[name] *= norm[:, None] if isinstance(module, Conv1D) and parameter.dim() == 2 else norm
    return totals


def largest(values, count):
    """Mask of the `count` largest, the earlier of equal ones first."""
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return mask


def plain_masks(scores, sparsity, allocation):
    """Name -> mask of what is kept, and the threshold."""
    flat = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in scores.items()}
    if allocation != "uniform":
        together = np.concatenate(list(flat.values()))
        kept = largest(together, math.floor(len(together) * (1 - sparsity) + 0.5))
        return dict(zip(flat, np.split(kept, np.cumsum([len(v) for v in flat.values()])[:-1])))
    return {name: largest(v, math.floor(len(v) * (1 - sparsity) + 0.5)) for name, v in flat.items()}


CASES = [
    ("magnitude", 0.0),
    ("gradient", 0.0),
    ("snip", 0.0),
    ("wanda", 0.0),
    ("smooth_cut", 0.0),
    *((method, shift) for method in ("cam_cut", "smooth_cam_cut") for shift in (0.0, 10.0)),
]


def same_noise(model, index, seed=7):
    torch.manual_seed(seed * 1_000_003 + index)
    return linear_noise(model.base_model, 0.01, False, GaussianNoise(seed))


@pytest.mark.parametrize(("method", "shift"), CASES)
@pytest.mark.parametrize("architecture", few(["albert", "gpt2", "bert"], 2))
def test_agrees_with_plain_autograd(architecture, method, shift):
    """Three padded batches of several sizes; the smooth methods with the very noise that the package draws."""
    size = {"num_hidden_layers": 2} if architecture == "bert" else {}
    model = tiny_model(architecture, **size)
    smooth = method.startswith("smooth")
    changes = {"noise_std": 0.01, "smooth_samples": 2, "seed": 7} if smooth else {}
    got = score(model, method, shift=shift, **changes)
    keywords = {"noise": same_noise, "passes": 2} if smooth else {}
    expected = plain_scores(model, uneven_batches(), method, shift, **keywords)
    assert_scores_close(got, expected)
    assert all(values.dtype == torch.float32 and values.device.type == "cpu" for values in got.values())
    for allocation, sparsity in (("uniform", 0.7), ("global", 0.7), ("per_kind", 0.31)):
        plan = make_plan(got, groups_of(model), settings(method, sparsity=sparsity, allocation=allocation))
        masks = plain_masks(expected, sparsity, allocation)
        exact = plain_masks(got, sparsity, allocation)
        for name, mask in masks.items():
            assert np.array_equal(plan.mask(name), exact[name])
            assert np.array_equal(plan.mask(name), mask)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_layer_but_the_task_head_is_scored(architecture):
    model = tiny_model(architecture)
    shapes = {name: tuple(p.shape) for name, (_, _, p) in scored_parameters(model).items()}
    assert {group.name: group.size for group in groups_of(model)} == {n: math.prod(s) for n, s in shapes.items()}
    for method in ("cam_cut", "wanda"):
        assert {name: tuple(values.shape) for name, values in score(model, method).items()} == shapes
    outside = [
        n for n, _ in model.named_parameters() if re.search("embeddings|[Nn]orm|classifier|score|wte|wpe|ln_", n)
    ]
    assert outside and not set(shapes) & {n for n in outside if "embeddings_project" not in n and "mapping" not in n}


def test_the_groups_of_bert_by_name():
    inner = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    inner += ("intermediate.dense", "output.dense")
    expected = [f"bert.encoder.layer.{layer}.{path}" for layer in range(3) for path in inner] + ["bert.pooler.dense"]
    groups = groups_of(tiny_model("bert"))
    assert [group.name for group in groups] == [f"{path}.{kind}" for path in expected for kind in ("weight", "bias")]
    assert {group.kind for group in groups} == {"weights"}
    for architecture, head in (
        ("roberta", ("classifier.dense", "classifier.out_proj")),
        ("distilbert", ("pre_classifier", "classifier")),
    ):
        model = tiny_model(architecture)
        assert all(isinstance(model.get_submodule(path), nn.Linear) for path in head)
        assert not any(group.name.startswith(("classifier", "pre_classifier")) for group in groups_of(model))


def test_a_tied_output_layer_is_no_group():
    """The output of a language model is outside of the body; what is also an embedding is none even inside."""
    for architecture in ("gpt2", "bert"):
        task = "CausalLM" if architecture == "gpt2" else "MaskedLM"
        names = {group.name for group in groups_of(tiny_model(architecture, task))}
        assert names and not any("lm_head" in name or "cls" in name for name in names)
    toy = Toy(ToyConfig())
    toy.embedding = nn.Embedding(2, 2)
    toy.embedding.weight = toy.body[0].weight
    assert {group.name for group in groups_of(toy)} == set(TOY_NAMES) - {"body.0.weight"}


def test_random_scores_are_uniform_and_seeded():
    model = tiny_model("bert")
    one, again, other = (score(model, "random", None, seed=seed) for seed in (1, 1, 2))
    values = torch.cat([v.flatten() for v in one.values()])
    assert values.min() >= 0 and values.max() < 1 and len(values) > 20_000
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - 12**-0.5) < 0.01
    assert same(one, again) and not any(torch.equal(one[name], other[name]) for name in one)


def test_the_bias_and_weight_of_a_frozen_layer_are_scored_too():
    model = tiny_model("bert")
    expected = score(model, "snip")
    model.requires_grad_(False)
    got = score(model, "snip")
    assert same(got, expected) and not any(p.requires_grad or p.grad is not None for p in model.parameters())


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_paper_by_default():
    config = settings("smooth_cut")
    assert (config.smooth_samples, config.noise_std, config.noise_scale) == (10, 1e-3, "absolute")
    units = PruningConfig(sparsity=0.5)
    assert (units.smooth_samples, units.noise_std, units.noise_scale) == (2, 0.1, "relative")
    assert (config.smooth_examples, units.smooth_examples) == (None, 512)


def test_noise_changes_with_the_seed_and_only_with_it():
    model = tiny_model("bert", num_hidden_layers=1)
    one, again, other = (score(model, "smooth_cut", seed=seed, noise_std=0.1) for seed in (1, 1, 2))
    assert same(one, again)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not same(one, score(model, "snip"))


def test_batches_get_noise_of_their_own():
    """The same batch twice: with one noise for both, twice the scores of one."""
    model, batch = tiny_model("bert", num_hidden_layers=1), tiny_batch()
    once, twice = (score(model, "smooth_cut", [batch] * n, noise_std=0.1) for n in (1, 2))
    for name in (name for name in once if name.endswith("weight")):
        assert (twice[name] - 2 * once[name]).norm() > 1e-3 * twice[name].norm()


def test_the_gradient_is_the_mean_over_the_passes():
    """Noise on the hidden layer is noise on the gradient of the next: dL/dW2 = 2 * mean of label * (hidden + noise).
    Of n passes over m examples of label 1 or -1, |W2 dL/dW2| deviates by 3 * 2 * std / sqrt(n m)."""
    model, size = Toy(ToyConfig()), 256
    batch = {"x": torch.randn(size, 1, 2), "labels": torch.randint(0, 2, (size,)) * 2.0 - 1}
    clean = score(model, "snip", [batch])["body.1.weight"][0, 0].item()
    deviations = {}
    for passes in (1, 16):
        drawn = [
            score(model, "smooth_cut", [batch], noise_std=0.02, smooth_samples=passes, seed=seed)["body.1.weight"][
                0, 0
            ]
            for seed in range(60)
        ]
        deviations[passes] = (torch.stack(drawn) - clean).square().mean().sqrt().item()
    for passes, deviation in deviations.items():
        # 60 draws: the relative standard error of a deviation is 1 / sqrt(120) = 0.09
        assert deviation == pytest.approx(6 * 0.02 / (passes * size) ** 0.5, rel=0.3)


def test_relative_noise_follows_the_outputs():
    """The first layer's output made 100 times larger: absolute noise matters 100 times less, relative does not."""
    batch = [{"x": torch.randn(4, 8, 2), "labels": torch.ones(4)}]
    changed = {}
    for scale in ("absolute", "relative"):
        for factor in (1.0, 100.0):
            model = Toy(ToyConfig())
            with torch.no_grad():
                model.body[0].weight.mul_(factor)
            clean, noisy = (
                score(model, method, batch, noise_std=0.1, smooth_samples=2, noise_scale=scale)["body.1.weight"]
                for method in ("snip", "smooth_cut")
            )
            changed[scale, factor] = ((noisy - clean) / clean).abs().max().item()
    assert changed["absolute", 100.0] < 0.1 * changed["absolute", 1.0]
    assert changed["relative", 100.0] > 0.1 * changed["relative", 1.0] > 0


# --- the model afterwards -------------------------------------------------------------------------------------------


def state(model):
    """Everything that scoring could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "parameter hooks": [len(parameter._backward_hooks or ()) for parameter in model.parameters()],
        "grad": [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for p in model.parameters()],
        "config": model.config.to_dict(),
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


def used_model():
    """In training mode but for one dropout, some parameters frozen, with gradients from the owner's own backward."""
    model = tiny_model("bert", problem_type="single_label_classification", num_hidden_layers=2).train()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[1].output.dense.weight.requires_grad_(False)
    model.bert.encoder.layer[0].output.dropout.eval()
    model.gradient_checkpointing_enable()
    model(**tiny_batch(2)).loss.backward()
    return model


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_untouched(method, dropout):
    model = used_model()
    before, values = state(model), weights(model)
    assert sum(grad is not None for grad in before["grad"]) > 20
    score(model, method, dropout=dropout, smooth_samples=2)
    assert state(model) == before and same(weights(model), values)


@pytest.mark.parametrize(("method", "call"), [("cam_cut", 1), ("cam_cut", 3), ("smooth_cut", 4)])
@pytest.mark.parametrize("dropout", [False, True])
def test_the_model_is_left_untouched_after_an_error(method, call, dropout):
    """At once: also while the exception is being handled, and with it the frames it came from alive."""
    model, calls = used_model(), []

    def fail(model, batch):
        calls.append(batch)
        loss = model(**batch).loss
        if len(calls) == call:
            raise MemoryError("no memory left")
        return loss

    before = state(model)
    with pytest.raises(MemoryError, match="no memory left") as error:
        score(model, method, loss_function=fail, dropout=dropout, smooth_samples=2)
    assert state(model) == before and error.tb is not None


def test_only_what_is_scored_gets_gradients():
    model, seen = tiny_model("bert").train(), []

    def loss(model, batch):
        seen.append({name for name, p in model.named_parameters() if p.requires_grad})
        assert not any(module.training for module in model.modules())
        return model(**batch).loss

    score(model, "snip", loss_function=loss, dropout=False)
    assert seen == [set(scored_parameters(model))] * 3


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["snip", "smooth_cut"])
def test_a_layer_with_another_forward_is_scored_alike(method, architecture, half):
    """As accelerate replaces it. Autograd then computes the gradients, and under autocast always."""
    models = [tiny_model(architecture) for _ in range(3)]
    for model, every in zip(models[1:], (1, 2)):
        layers = [module for module in model.base_model.modules() if isinstance(module, nn.Linear | Conv1D)]
        for layer in layers[::every]:
            layer.forward = lambda values, layer=layer: type(layer).forward(layer, values)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected, *others = (score(model, method) for model in models)
    for other in others:
        assert_scores_close(other, expected)
    assert ["forward" in layer.__dict__ for layer in layers] == [i % 2 == 0 for i in range(len(layers))]
    assert not any("forward" in module.__dict__ for module in models[0].modules())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_gradients_of_weights_are_added_by_the_products(architecture, monkeypatch):
    """Autograd has nothing to add: what it would give for a weight is never made."""
    added = []
    add_product = gradients._add_product
    monkeypatch.setattr(gradients, "_add_product", lambda p, *args: (added.append(p), add_product(p, *args)))
    made = []
    model = tiny_model(architecture)
    for parameter in model.parameters():
        parameter.register_hook(made.append)
    score(model, "smooth_cut", smooth_samples=3)
    matrices = [parameter for name, (_, _, parameter) in scored_parameters(model).items() if name.endswith("weight")]
    assert len(added) == 3 * len(uneven_batches()) * len(matrices)
    assert all(gradient is None for gradient in made)
    assert {id(p) for p in added} == {id(p) for p in matrices}


def adversarial_loss(model, batch):
    """FGM: the loss at word embeddings that went a step up its gradient."""
    words = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    rest = {name: batch[name] for name in ("attention_mask", "labels")}
    (gradient,) = torch.autograd.grad(model(inputs_embeds=words, **rest).loss, words)
    return model(inputs_embeds=words.detach() + gradient.sign(), **rest).loss


def penalized_loss(model, batch):
    """The loss and the square of its gradient by the word embeddings."""
    words = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    rest = {name: batch[name] for name in ("attention_mask", "labels")}
    loss = model(inputs_embeds=words, **rest).loss
    (gradient,) = torch.autograd.grad(loss, words, create_graph=True)
    return loss + 100 * gradient.square().sum()


@pytest.mark.parametrize("loss", [adversarial_loss, penalized_loss])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_loss_that_takes_gradients_itself(architecture, loss):
    model, batch = tiny_model(architecture, attn_implementation="eager"), tiny_batch(4)
    got = score(model, "gradient", [batch], loss)
    loss(model, batch).backward()
    assert_scores_close(got, {name: p.grad.abs() for name, (_, _, p) in scored_parameters(model).items()}, rtol=1e-3)


@pytest.mark.parametrize("method", ["snip", "cam_cut", "smooth_cut", "wanda"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_layers_without_units_are_scored_around(kind, method):
    model = apply_plan(tiny_model("bert"), PruningPlan({f"layer.1.{kind}": ()}))
    got = score(model, method)
    assert sum(values.numel() == 0 for values in got.values()) >= 3
    assert all(values.any() for name, values in got.items() if ".layer.0." in name and "key.bias" not in name)


def test_a_weight_that_is_used_with_and_without_its_layer():
    def loss(model, batch):
        output = model.head(model.body(batch["x"]))[..., 0]
        return (batch["labels"][:, None] * output).mean() + 100 * model.body[0].weight.sum()

    got = score(Toy(ToyConfig()), "gradient", TOY_BATCHES[:1], loss)
    assert got["body.0.weight"].tolist() == [[112, 106], [92, 96]] and got["body.1.weight"].tolist() == [[3, 7]]


def test_scoring_with_dropout():
    model = tiny_model("bert", num_hidden_layers=2)
    evaluation, one = score(model, "snip"), score(model, "snip", dropout=True)
    torch.manual_seed(1234)
    torch.rand(17)
    before = torch.get_rng_state()
    again = score(model, "snip", dropout=True)
    assert torch.equal(before, torch.get_rng_state())
    assert same(one, again)
    other = score(model, "snip", dropout=True, seed=1)
    for name in one:
        assert not torch.equal(one[name], evaluation[name]) and not torch.equal(one[name], other[name])
    quiet = tiny_model("bert", num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert_scores_close(score(quiet, "snip", dropout=True), score(quiet, "snip"))


def test_dropout_is_as_in_the_model_unless_told():
    model = tiny_model("bert", num_hidden_layers=1)
    off, on = (score(model, "snip", dropout=dropout) for dropout in (False, True))
    assert same(score(model.eval(), "snip"), off) and same(score(model.train(), "snip"), on) and not same(on, off)
    assert same(score(model, "snip", dropout=False), off)


@pytest.mark.parametrize("method", ["snip", "smooth_cut"])
def test_gradient_checkpointing_changes_no_score(method):
    """Checkpointing runs layers again in training mode; they must not get other noise then."""
    scores = []
    for checkpointing in (False, True):
        model = tiny_model("bert", num_hidden_layers=2)
        if checkpointing:
            model.gradient_checkpointing_enable()
        scores.append(score(model, method, dropout=True, noise_std=0.1, smooth_samples=2))
    assert_scores_close(*scores)


# --- bad data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_LOSS)
def test_no_labels(method):
    with pytest.raises(ValueError, match="gave no loss for a batch .*needs the labels"):
        score(tiny_model("bert"), method, [tiny_batch(labels=False)])


def test_labels_are_not_needed_without_a_loss():
    model = tiny_model("bert")
    assert_scores_close(score(model, "wanda", [tiny_batch(labels=False)]), score(model, "wanda", [tiny_batch()]))
    for method in ("magnitude", "random"):
        assert score_groups(model, groups_of(model), None, settings(method))


@pytest.mark.parametrize("method", [*WITH_LOSS, "wanda"])
def test_nothing_to_score_on(method):
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="the dataloader gave no batches"):
        score(model, method, [])
    with pytest.raises(ValueError, match="needs batches to score on, and dataloader is None"):
        score_groups(model, groups_of(model), None, settings(method))


@pytest.mark.parametrize("method", WITH_LOSS)
def test_a_loss_that_is_no_use(method):
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="are NaN or infinite; look for a NaN loss"):
        score(model, method, loss_function=lambda m, b: m(**b).loss * float("nan"))
    with pytest.raises(ValueError, match="the loss does not depend on any of the weights to be scored"):
        score(model, method, loss_function=lambda m, b: torch.zeros(()))
    with pytest.raises(ValueError, match="all scores of kind 'weights' are zero"):
        score(model, method, loss_function=lambda m, b: m(**b).loss * 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "taylor"}, "unknown method 'taylor' for weights; known methods for weights: "),
        ({"granularity": ("weights", "heads")}, "granularity 'weights' stands alone"),
        ({"recovery": "reconstruct"}, "recovery='reconstruct' is for units"),
        ({"granularity": ("heads",), "method": "cam_cut", "shift": 10.0}, "shift should be 0 for heads and neurons"),
        ({"granularity": ("heads",)}, "unknown method 'snip' for heads"),
        ({"compression": 2.0}, "give exactly one of sparsity and compression"),
        ({"sparsity": None}, "give exactly one of sparsity and compression"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        PruningConfig(**{"method": "snip", "granularity": ("weights",), "sparsity": 0.5, **changes})
    if "taylor" in message:
        assert all(method in str(error.value) for method in METHODS)


def test_the_methods_of_single_weights_are_registered():
    assert set(WEIGHT_SCORERS) == set(METHODS)
    assert {name for name, scorer in WEIGHT_SCORERS.items() if scorer.smooth} == {"smooth_cut", "smooth_cam_cut"}
    with pytest.raises(ValueError, match="named 'snip' is registered already"):
        weight_scorer("snip")(lambda weight, gradient, output: None)


def test_a_method_of_ones_own():
    @weight_scorer("squared")
    def squared(weight, gradient, output):
        return gradient.square()

    try:
        assert score(Toy(ToyConfig()), "squared", TOY_BATCHES)["body.1.weight"].tolist() == [[9 + 100, 49 + 4]]
    finally:
        del WEIGHT_SCORERS["squared"]


# --- plans ----------------------------------------------------------------------------------------------------------


def toy_groups(*sizes, parameters=None):
    names = [f"layer.{i}.weight" for i in range(len(sizes))]
    return [PrunableGroup(n, "weights", s, (), model_parameters=parameters) for n, s in zip(names, sizes)]


def toy_plan(values, parameters=None, **changes):
    groups = toy_groups(*map(len, values), parameters=parameters)
    scores = {group.name: torch.tensor(v, dtype=torch.float32) for group, v in zip(groups, values)}
    return [list(units) for units in make_plan(scores, groups, settings(**changes)).keep.values()]


def test_thresholds_by_hand():
    values = [[5, 1, 4, 2], [9, 8, 7, 6, 0, 3]]
    assert toy_plan(values, sparsity=0.5, allocation="uniform") == [[0, 2], [0, 1, 2]]
    assert toy_plan(values, sparsity=0.5, allocation="global") == [[0], [0, 1, 2, 3]]
    assert toy_plan(values, sparsity=0.5) == [[0], [0, 1, 2, 3]]  # one kind: per kind is the whole model
    assert toy_plan(values, sparsity=0.9, allocation="global") == [[], [0]]  # a layer may lose everything
    # 25 parameters at compression 1.25 keep 20: 5 of the 10 that can go.
    assert toy_plan(values, parameters=25, compression=1.25) == [[0], [0, 1, 2, 3]]


def test_ties_keep_the_earlier():
    values = [[1, 2, 1, 1], [1, 1, 2, 0]]
    assert toy_plan(values, sparsity=0.5, allocation="global") == [[0, 1, 2], [2]]
    assert toy_plan(values, sparsity=0.5, allocation="uniform") == [[0, 1], [0, 2]]
    assert toy_plan([[3, 3, 3, 3, 3]], sparsity=0.5) == [[0, 1, 2]]  # 2.5 are rounded up


@pytest.mark.parametrize("allocation", ["uniform", "global", "per_kind"])
@pytest.mark.parametrize("sparsity", [0.001, 0.37, 0.5, 0.999])
def test_counts(sparsity, allocation):
    model = tiny_model("bert")
    groups = groups_of(model)
    plan = make_plan(score(model, "random"), groups, settings(sparsity=sparsity, allocation=allocation))
    counts = {name: len(units) for name, units in plan.keep.items()}
    if allocation == "uniform":
        assert counts == {g.name: math.floor(g.size * (1 - sparsity) + 0.5) for g in groups}
    total = sum(group.size for group in groups)
    within = len(groups) / 2 if allocation == "uniform" else 0.5
    assert abs(sum(counts.values()) - total * (1 - sparsity)) <= within
    assert plan.sizes == {g.name: g.size for g in groups}
    assert plan.model_type == "bert" and plan.num_layers == 3


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_compression_counts_the_whole_model(architecture):
    model = tiny_model(architecture)
    total = sum(parameter.numel() for parameter in model.parameters())
    prunable = sum(parameter.numel() for _, _, parameter in scored_parameters(model).values())
    highest = total / (total - prunable)
    scores = score(model, "random")
    for compression in (1.1, (1 + highest) / 2, highest - 1e-4):
        plan = make_plan(scores, groups_of(model), settings(compression=compression))
        kept = total - sum(len(plan.removed(name)) for name in plan.keep)
        assert abs(kept - total / compression) <= 1
        masked = apply_plan(copy.deepcopy(model), plan)
        assert sum(int(p.count_nonzero()) for p in masked.parameters()) <= kept
    with pytest.raises(
        ValueError, match="compression=.* cannot be reached: the highest possible compression"
    ) as error:
        make_plan(scores, groups_of(model), settings(compression=highest + 1e-3))
    named = float(re.search(r"here is ([\d.]+)", str(error.value))[1])
    assert named == pytest.approx(highest, abs=1e-4) and named <= highest
    assert make_plan(scores, groups_of(model), settings(compression=named)).keep


def test_the_highest_compression_of_bert_base():
    """109.5 million parameters, 85.6 million of them in linear layers below the classifier: with the embeddings and
    norms 23.9 million stay at least (the paper's 4.6)."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=2))
    groups = groups_of(model)
    hidden, inner = 768, 3072
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + hidden + inner
    assert sum(group.size for group in groups) == 12 * layer + hidden * hidden + hidden
    assert groups[0].model_parameters == sum(parameter.numel() for parameter in model.parameters())
    rest = (30522 + 512 + 2) * hidden + 25 * 2 * hidden + 2 * hidden + 2  # embeddings, norms, classifier
    assert groups[0].model_parameters - sum(group.size for group in groups) == rest
    assert 4.5855 < groups[0].model_parameters / rest < 4.5856
    scores = {group.name: torch.ones(()).expand(group.size) for group in groups}
    with pytest.raises(ValueError, match="the highest possible compression here is 4.5855 "):
        make_plan(scores, groups, settings(compression=4.5856))


def test_a_masked_model_loses_a_share_of_what_is_left():
    model = tiny_model("bert")
    total = sum(group.size for group in groups_of(model))
    scores = score(model, "random")
    first = make_plan(scores, groups_of(model), settings(sparsity=0.5))
    apply_plan(model, first)
    groups = groups_of(model)
    assert sum(group.size for group in groups) == total - math.floor(total / 2)
    assert groups[0].model_parameters == sum(p.numel() for p in model.parameters()) - math.floor(total / 2)
    second = make_plan(score(model, "random", seed=9), groups, settings(sparsity=0.5))
    kept = sum(map(len, second.keep.values()))
    assert abs(kept - total / 4) <= 1
    for name in second.keep:
        assert not (second.mask(name) & ~first.mask(name)).any()


def test_a_parameter_that_is_masked_whole_keeps_its_shape_in_scores():
    model, name = tiny_model("bert"), "bert.encoder.layer.1.output.dense.weight"
    apply_plan(model, PruningPlan({name: []}))
    scores = score(model, "snip")
    assert scores[name].shape == model.get_parameter(name).shape and not scores[name].any()
    for allocation in ("uniform", "global"):
        plan = make_plan(scores, groups_of(model), settings(sparsity=0.25, allocation=allocation))
        assert len(plan.keep[name]) == 0
        others = [len(plan.keep[group.name]) / group.size for group in groups_of(model) if group.name != name]
        assert max(others) <= 1 and min(others) < 0.8


@pytest.mark.parametrize("allocation", ["per_kind", "uniform"])
def test_weights_that_always_stay(allocation):
    """A layer or matrices that are excluded keep all, single weights of infinity stay, and the rest gives the half."""
    groups = find_groups(tiny_model("bert"), ("weights",))
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in groups}
    scores[groups[0].name][:7] = 0.0
    total = sum(g.size for g in groups)
    first = {g.name for g in groups if ".layer.0." in g.name}
    outputs = {g.name for g in groups if g.name.endswith(".output.dense.weight")}
    for exclude, whole in (([0], first), (["*.encoder.layer.*.output.dense.weight"], outputs), (None, set())):
        config = PruningConfig(
            sparsity=0.5, granularity="weights", allocation=allocation, exclude=exclude, method="snip"
        )
        check_budget(groups, config)
        kept = make_plan({**scores, groups[-1].name: torch.full((groups[-1].size,), torch.inf)}, groups, config).keep
        assert {g.name for g in groups if len(kept[g.name]) == g.size} == {*whole, groups[-1].name}
        rounding = len(groups) if allocation == "uniform" else 1
        assert abs(sum(map(len, kept.values())) - total / 2) <= rounding
    infinite = torch.zeros(groups[0].size)
    infinite[5:9] = torch.inf
    kept = make_plan({**scores, groups[0].name: infinite}, groups, config).keep
    assert set(kept[groups[0].name]) >= {5, 6, 7, 8}
    rest = 1 - sum(g.size for g in groups if g.name in first) / total
    with pytest.raises(ValueError, match=f"the highest possible sparsity here is {math.floor(rest * 1e4) / 1e4}"):
        check_budget(groups, dataclasses.replace(config, sparsity=0.99, exclude=[0]))


def test_scores_that_do_not_fit():
    model = tiny_model("bert")
    scores, name = score(model, "magnitude"), "bert.pooler.dense.weight"
    for values, message in (
        (None, "no scores for the group 'bert.pooler.dense.weight'"),
        (scores[name][:5], r"have shape \(5, 32\); expected that of the parameter, with 1024 elements"),
        (scores[name] * -float("inf"), "are NaN or infinite"),
    ):
        changed = {n: values if n == name else s for n, s in scores.items() if n != name or values is not None}
        with pytest.raises(ValueError, match=message):
            make_plan(changed, groups_of(model), settings())


# --- sets of indices ------------------------------------------------------------------------------------------------


def test_an_index_set_is_a_sequence():
    some = IndexSet(np.array([False, True, True, False, True, False, False, False, False, True]))
    assert list(some) == [1, 2, 4, 9] and len(some) == 4 and some.size == 10
    assert some[0] == 1 and some[-1] == 9 and some[1:3] == (2, 4) and type(some[0]) is int
    assert 4 in some and 3 not in some and 10 not in some and -1 not in some and "4" not in some
    assert some == (1, 2, 4, 9) and (1, 2, 4, 9) == some and some == [1, 2, 4, 9]
    assert some != (1, 2, 4) and some != (1, 2, 4, 8) and some != IndexSet(some.mask[:-1]) and some != "1249"
    assert some == IndexSet(some.mask.copy()) and some.index(4) == 2 and some.count(4) == 1
    assert list(reversed(some)) == [9, 4, 2, 1] and np.asarray(some).tolist() == [1, 2, 4, 9]
    with pytest.raises(IndexError):
        some[4]
    with pytest.raises(TypeError):
        hash(some)
    empty = IndexSet(np.zeros(0, dtype=bool))
    assert len(empty) == 0 and empty == () and IndexSet.from_dict(empty.to_dict()) == empty


def test_masks_of_indices():
    expected = [False, True, False, True]
    for units in (
        (1, 3),
        [3, 1],
        IndexSet(np.array(expected)),
        IndexSet(np.array([*expected, False])),
        range(1, 4, 2),
    ):
        assert mask_of(units, 4).tolist() == expected
    assert mask_of(range(4), 4).all() and not mask_of((), 4).any()
    for units, unit in (((1, 4), 4), (range(5), 4), ((-1, 2), -1), (IndexSet(np.array([*expected, True])), 4)):
        with pytest.raises(IndexError, match=f"there is no unit {unit} of 4"):
            mask_of(units, 4)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_index_sets_round_trip(size):
    for seed in range(3):
        one = IndexSet(np.random.RandomState(seed).rand(size) < 0.5)
        again = IndexSet.from_dict(json.loads(json.dumps(one.to_dict())))
        assert again == one and again.size == size


@pytest.mark.parametrize(
    "change",
    [
        {"size": 12},
        {"size": 16},
        {"size": 20},
        {"size": 10**18},
        {"size": 10**30},
        {"size": -1},
        {"size": -100},
        {"size": "14"},
        {"size": 14.0},
        {"bits": 3},
        {"bits": None},
        {"bits": ""},
        {"bits": "no base64!"},
        {"bits": "AAAA"},
        {"more": 1},
    ],
    ids=str,
)
def test_corrupted_index_sets(change):
    """14 indices in two bytes, the last of them in the set: a size of 16 alone would fit, were it not for the name."""
    values = IndexSet(np.arange(14) % 13 == 0).to_dict()
    if change == {"size": 16}:
        assert len(IndexSet.from_dict({**values, **change})) == 2  # two bytes hold sixteen bits
        change = {"size": 24}
    with pytest.raises(ValueError):
        IndexSet.from_dict({**values, **change})
    for name in values:
        with pytest.raises(ValueError):
            IndexSet.from_dict({key: value for key, value in values.items() if key != name})
    for end in range(0, len(values["bits"]), 4):
        with pytest.raises(ValueError):
            IndexSet.from_dict({**values, "bits": values["bits"][:end]})


# --- plans as files, as text, and by hand ---------------------------------------------------------------------------


def test_a_plan_of_a_million_weights_is_a_small_file(tmp_path):
    size = 10**6
    random = np.random.RandomState(0)
    half, tenth = (IndexSet(random.rand(size) < share) for share in (0.5, 0.1))
    plan = PruningPlan(
        {"layer.0.weight": half, "layer.1.weight": tenth}, {"layer.0.weight": size, "layer.1.weight": size}
    )
    plan.save(tmp_path / "plan.json")
    # A bit a weight, in base64: 4/3 bytes for 8 weights.
    assert (tmp_path / "plan.json").stat().st_size < 2 * size / 8 * 4 / 3 * 1.01
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == plan and isinstance(again.keep["layer.0.weight"], IndexSet)
    assert np.array_equal(again.mask("layer.1.weight"), tenth.mask)


@pytest.mark.parametrize(
    "change",
    [
        {"keep": {"a.weight": {"size": 9, "bits": "AAAA"}}},
        {"keep": {"a.weight": {"size": 8, "bits": IndexSet(np.ones(8, dtype=bool)).to_dict()["bits"]}}},
        {"keep": {"a.weight": "abc"}},
        {"sizes": {"a.weight": 10}},
        {"sizes": {"a.weight": "9"}},
        {"sizes": [9]},
    ],
    ids=["bits", "size", "text", "sizes", "size as text", "no mapping"],
)
def test_corrupted_plans(change, tmp_path):
    plan = PruningPlan({"a.weight": IndexSet(np.ones(9, dtype=bool))}, {"a.weight": 9})
    (tmp_path / "pruning_plan.json").write_text(json.dumps({**plan.to_dict(), **change}))
    with pytest.raises(ValueError):
        PruningPlan.load(tmp_path)


def test_a_plan_as_text_and_its_parts():
    name = "bert.encoder.layer.{}.output.dense.{}"
    keep = {
        name.format(0, "weight"): IndexSet(np.arange(10) < 4),
        name.format(0, "bias"): IndexSet(np.arange(5) < 5),
        name.format(11, "weight"): [0, 9],
        "bert.pooler.dense.weight": IndexSet(np.arange(6) == 3),
    }
    sizes = dict(zip(keep, (10, 5, 10, 6)))
    plan = PruningPlan(keep, sizes)
    assert plan.table() == [
        ("0", "weights", "9 / 15"),
        ("11", "weights", "2 / 10"),
        ("bert.pooler.dense", "weights", "1 / 6"),
    ]
    assert [line.split() for line in str(plan).splitlines()] == [
        ["layer", "weights"],
        ["0", "9", "/", "15"],
        ["11", "2", "/", "10"],
        ["bert.pooler.dense", "1", "/", "6"],
        ["total", "12", "/", "31"],
    ]
    assert plan.removed(name.format(0, "weight")) == (4, 5, 6, 7, 8, 9)
    assert plan.removed(name.format(11, "weight")) == tuple(range(1, 9))
    assert plan.mask("bert.pooler.dense.weight").tolist() == [False] * 3 + [True] + [False] * 2
    with pytest.raises(KeyError):
        plan.mask("no.such.weight")
    with pytest.raises(ValueError, match="which has size 9"):
        PruningPlan({"a.weight": IndexSet(np.ones(8, dtype=bool))}, {"a.weight": 9})


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "albert"])
def test_masks_zero_what_is_removed_and_nothing_else(architecture):
    model = tiny_model(architecture)
    before, plan = weights(model), random_masks(model)
    objects = dict(model.named_parameters())
    assert apply_plan(model, plan) is model
    for name, value in weights(model).items():
        expected = before[name]
        if name in plan.keep:
            kept = torch.from_numpy(plan.mask(name)).view(expected.shape)
            expected = torch.where(kept, expected, torch.zeros_like(expected))
            assert 0.3 < kept.float().mean() < 0.7 or kept.numel() < 100
        assert torch.equal(value, expected)
    assert all(objects[name] is parameter for name, parameter in model.named_parameters())
    assert dict(model.pruning_plan.keep) == dict(plan.keep)


def test_a_plan_by_hand():
    """Elements are numbered in row-major order; what is not named stays whole."""
    model = tiny_model("bert")
    before, name = weights(model), "bert.encoder.layer.1.intermediate.dense.weight"
    keep = [i for i in range(37 * 32) if i not in (0, 33, 37 * 32 - 1)]
    apply_plan(model, PruningPlan({name: keep}))
    expected = before[name].clone()
    expected[0, 0] = expected[1, 1] = expected[36, 31] = 0
    assert same(weights(model), {**before, name: expected})
    assert model.pruning_plan.sizes == {name: 37 * 32} and model.pruning_plan.removed(name) == (0, 33, 37 * 32 - 1)


BIAS, WEIGHT = "bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan({WEIGHT: [0], BIAS: [32]}), f"'{BIAS}' has no unit 32: it has 32, numbered from 0"),
        (PruningPlan({WEIGHT: [0], BIAS: [0]}, {BIAS: 31}), "the plan is for a model with 31 units in"),
        (
            PruningPlan({WEIGHT: [0], BIAS: IndexSet(np.ones(33, dtype=bool))}),
            "the plan is for a model with 33 units in",
        ),
        (PruningPlan({WEIGHT: [0], "classifier.weight": [0]}), "names the group 'classifier.weight'"),
        (PruningPlan({WEIGHT: [0], "bert.pooler.dense.weight": [3, 4]}), r"keeps units \[4\] .* removed already"),
        (PruningPlan({WEIGHT: [0], "layer.0.heads": [0]}), "'layer.0.heads' cannot be cut together with masking"),
        (PruningPlan({"layer.0.heads": [0]}), "'layer.0.heads' cannot be cut together with masking .* nor after it"),
        (PruningPlan({WEIGHT: [0]}, model_type="gpt2"), "the plan is for a 'gpt2' model"),
        (PruningPlan({WEIGHT: [0]}, num_layers=4), "the plan is for a model of 4 layers"),
    ],
)
def test_nothing_changes_on_an_error(plan, message):
    model = tiny_model("bert")
    apply_plan(model, PruningPlan({"bert.pooler.dense.weight": [0, 1, 3]}))
    before, cls, known = weights(model), type(model), model.pruning_plan
    with pytest.raises(ValueError, match=message):
        apply_plan(model, plan)
    assert same(weights(model), before) and type(model) is cls and model.pruning_plan is known
    with pytest.raises(ValueError, match="cannot be cut together with masking single weights, nor after it"):
        prune_heads(model, {0: [1]})
    assert same(weights(model), before)


def test_a_first_plan_of_both_is_refused():
    model = tiny_model("bert")
    before, cls = weights(model), type(model)
    with pytest.raises(ValueError, match="cut first, then score and mask the weights that are left"):
        apply_plan(model, PruningPlan({"layer.0.heads": [0], WEIGHT: [0]}))
    assert same(weights(model), before) and type(model) is cls and not hasattr(model, "pruning_plan")


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_heads_first_then_weights(architecture, tmp_path):
    model = tiny_model(architecture)
    prune_heads(model, {0: [1, 2], 2: [0]})
    apply_plan(model, PruningPlan({"layer.1.neurons": range(0, 37, 2)}))
    scores = score(model, "cam_cut")
    assert_scores_close(scores, plain_scores(model, uneven_batches(), "cam_cut"))
    plan = make_plan(scores, groups_of(model), settings(sparsity=0.6))
    before = weights(model)
    apply_plan(model, plan)
    for name, value in weights(model).items():
        kept = torch.from_numpy(plan.mask(name)).view(value.shape) if name in plan.keep else torch.tensor(True)
        assert torch.equal(value, before[name] * kept)
    model.save_pretrained(tmp_path)
    again = load_pruned(tmp_path)
    assert same(weights(again), weights(model)) and again.pruning_plan == model.pruning_plan
    assert again.pruning_plan.keep["layer.0.heads"] == (0, 3)
    assert all(again.pruning_plan.keep[name] == plan.keep[name] for name in plan.keep)
    with torch.no_grad():
        assert torch.equal(again(**tiny_batch()).logits, model(**tiny_batch()).logits)
    again = apply_plan(again, random_masks(tiny_model(architecture), names=()))  # an empty plan changes nothing
    assert same(weights(again), weights(model))


def test_masks_compose():
    model = tiny_model("bert")
    before, first = weights(model), random_masks(model, seed=1)
    second = random_masks(model, seed=2)
    both = {name: IndexSet(first.mask(name) & second.mask(name)) for name in first.keep}
    apply_plan(model, first)
    only = "bert.pooler.dense.weight"
    apply_plan(model, PruningPlan({only: both[only]}))  # the masks of the others stay as they are
    for name, value in weights(model).items():
        if name in first.keep:
            kept = torch.from_numpy(both[name].mask if name == only else first.mask(name)).view(value.shape)
            assert torch.equal(value, before[name] * kept)
            assert model.pruning_plan.keep[name] == (both[name] if name == only else first.keep[name])
    apply_plan(model, PruningPlan(both))
    for name in both:
        kept = torch.from_numpy(both[name].mask).view(before[name].shape)
        assert torch.equal(model.get_parameter(name), before[name] * kept)
    groups = {group.name: group for group in groups_of(model)}
    assert all(groups[name].size == len(both[name]) and groups[name].units == both[name] for name in both)


def test_copies_and_pickles_keep_their_masks():
    model = tiny_model("bert")
    apply_plan(model, random_masks(model))
    twin = copy.deepcopy(model)
    assert (
        type(twin) is type(model) and twin.pruning_plan == model.pruning_plan and same(weights(twin), weights(model))
    )


def test_half_precision():
    model = tiny_model("bert").to(torch.bfloat16)
    scores = score(model, "cam_cut")
    assert all(values.dtype == torch.float32 and torch.isfinite(values).all() for values in scores.values())
    apply_plan(model, make_plan(scores, groups_of(model), settings(sparsity=0.5)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(
        not model.get_parameter(name).flatten()[list(model.pruning_plan.removed(name))].any() for name in scores
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "albert"])
@pytest.mark.parametrize("method", ["cam_cut", "gradient", "snip", "smooth_cut", "smooth_cam_cut"])
def test_scores_do_not_depend_on_the_rows_taken_at_a_time(architecture, method, monkeypatch):
    model = tiny_model(architecture)
    groups, batches = find_groups(model, ("weights",)), [tiny_batch(seed=seed) for seed in range(2)]
    config = PruningConfig(method=method, granularity=("weights",), sparsity=0.5, shift=10.0, smooth_samples=2)
    whole = score_groups(model, groups, batches, config, disable_tqdm=True)
    monkeypatch.setattr("optimum_camcut.scoring.weights.CHUNK", 100)
    parts = score_groups(model, groups, batches, config, disable_tqdm=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
