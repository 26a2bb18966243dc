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
"""Rebuilding: a cut model comes closer to the dense one, by the least-squares solution that the docstring states."""

import copy
import importlib
import re
import weakref

import pytest
import torch
import transformers
from marks import few
from models import ARCHITECTURES, random_plan, tiny_batch, tiny_model
from transformers.pytorch_utils import Conv1D

from optimum_camcut import PruningPlan, apply_plan, find_groups
from optimum_camcut.architectures.structure import list_blocks


# The name is both a function of the package and the module that defines it.
module = importlib.import_module("optimum_camcut.surgery.rebuild")


def reconstruct(model, dense, plan, batches, **changes):
    return module.reconstruct(model, dense, plan, batches, disable_tqdm=True, **changes)


def batches_of(count, size=16, first_seed=100, **changes):
    return [tiny_batch(size, seed=first_seed + i, labels=False, **changes) for i in range(count)]


HELD_OUT = batches_of(4, first_seed=900)


def hidden_states(model, batch):
    """The last hidden states of the real tokens: `(tokens, hidden size)`."""
    with torch.no_grad():
        last = model(**batch, output_hidden_states=True).hidden_states[-1]
    return last[batch["attention_mask"].bool()]


def distance(model, dense, batches=HELD_OUT):
    """Mean squared difference of the last hidden states."""
    return sum((hidden_states(model, b) - hidden_states(dense, b)).square().mean().item() for b in batches)


def pair(architecture, plan=None, seed=0, **changes):
    """A pruned model, the dense one, and the plan between them."""
    dense = tiny_model(architecture, seed=seed, **changes)
    plan = plan or random_plan(dense, seed)
    return apply_plan(copy.deepcopy(dense), plan), dense, plan


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(model, before):
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- what it is for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture", few(sorted(ARCHITECTURES, key=lambda name: name not in ("albert", "gpt2")), 2)
)
@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(5), marks=pytest.mark.long)])
def test_comes_closer_to_the_dense_model(architecture, seeds):
    """On batches it has not seen, for every one of five random plans, and by more than half on the average.

    Gated neurons of random weights (llama) have the least in common, so they can stand in for one another the least.
    """
    ratios = []
    for seed in seeds:
        model, dense, plan = pair(architecture, seed=seed)
        before = distance(model, dense)
        assert reconstruct(model, dense, plan, batches_of(8)) is model
        ratios.append(distance(model, dense) / before)
    assert max(ratios) < 0.9
    assert sum(ratios) / len(ratios) < (0.8 if architecture == "llama" else 0.5)


@pytest.mark.parametrize("task", ["MultipleChoice", "TokenClassification", "QuestionAnswering", "MaskedLM"])
def test_every_task_head(task):
    dense = tiny_model("bert", task, num_labels=2)
    plan = random_plan(dense, 1)
    model = apply_plan(copy.deepcopy(dense), plan)
    batches = batches_of(6)
    if task == "MultipleChoice":
        batches = [{name: value.view(8, 2, -1) for name, value in batch.items()} for batch in batches]
    # The hidden states behind all blocks, straight from the base model: heads other than these differ in form.
    before = distance(model.bert, dense.bert)
    reconstruct(model, dense, plan, batches)
    assert distance(model.bert, dense.bert) < 0.6 * before


def test_half_precision():
    model, dense, plan = pair("bert")
    before = distance(model, dense)
    model, half = model.to(torch.bfloat16), copy.deepcopy(dense).to(torch.bfloat16)
    reconstruct(model, half, plan, batches_of(8))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert distance(model.float(), dense) < 0.5 * before


# --- exactness ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def make_redundant(model):
    """In every layer, odd heads and neurons become linear functions of the even ones before them.

    Heads: the same attention pattern, with values that are a rotation of the other head's. Neurons: the same input.
    """
    for group in find_groups(model):
        *inputs, _ = group.slices
        for piece in inputs:
            linear = model.get_submodule(piece.module)
            weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
            weight = weight.view(piece.blocks, group.size, piece.width, -1)
            parts = [weight] if linear.bias is None else [weight, linear.bias.view(*weight.shape[:3], 1)]
            for part in parts:
                for unit in range(1, group.size, 2):
                    part[:, unit] = part[:, unit - 1]
                    values = part[-1:] if piece.blocks == 3 else part
                    if group.kind == "heads" and (piece.blocks == 3 or piece.module.endswith(("value", "v_proj"))):
                        values[:, unit] = values[:, unit].roll(1, dims=1)
    return model


def test_under_autocast_sums_stay_exact():
    """The models run in bfloat16, and the result is what it is without, to their rounding."""
    results = []
    for enabled in (False, True):
        model, dense, plan = pair("bert")
        before = weights(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            reconstruct(model, dense, plan, batches_of(12))
        results.append(distance(model, dense))
        assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert results[1] == pytest.approx(results[0], rel=0.02)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_redundant_units_are_made_up_for(architecture, monkeypatch):
    """Units that others can stand in for exactly: without damping, nothing is lost when they go."""
    size = {"n_inner": 36} if architecture == "gpt2" else {"intermediate_size": 36}
    dense = make_redundant(tiny_model(architecture, **size))
    plan = PruningPlan({g.name: range(0, g.size, 2) for g in find_groups(dense)})
    cut = apply_plan(copy.deepcopy(dense), plan)
    before = distance(cut, dense)
    damped = reconstruct(copy.deepcopy(cut), dense, plan, batches_of(12))
    monkeypatch.setattr(module, "DAMPINGS", (1e-9,))
    exact = reconstruct(copy.deepcopy(cut), dense, plan, batches_of(12))
    for batch in HELD_OUT:
        torch.testing.assert_close(hidden_states(exact, batch), hidden_states(dense, batch), atol=1e-4, rtol=0)
    assert before > 1 and distance(damped, dense) < before / 400


# Where the residual stream shows that a projection's output has just been added to: what goes into a module of the
# block ("" stands for what comes out of the block itself).
BEHIND = {
    "bert": {"heads": "attention.output.LayerNorm", "neurons": "output.LayerNorm"},
    "albert": {"heads": "attention.LayerNorm", "neurons": "full_layer_layer_norm"},
    "gpt2": {"heads": "ln_2", "neurons": ""},
    "llama": {"heads": "post_attention_layernorm", "neurons": ""},
}


def observed(model, group, batches, tokens_of=lambda batch: batch["attention_mask"].bool()):
    """At the real tokens of all calls, in float64: what goes into a projection, what comes out of it, and the residual
    stream behind it, `(calls * tokens, features)` each."""
    block = next(path for path in list_blocks(model) if group.output.module.startswith(f"{path}."))
    behind = BEHIND[model.config.model_type][group.kind]
    inputs, outputs, streams = [], [], []

    def projection(module, args, output):
        inputs.append(args[0][real])
        outputs.append(output[real])

    def stream(module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        streams.append((args[0] if behind else output)[real])

    handles = [
        model.get_submodule(group.output.module).register_forward_hook(projection),
        model.get_submodule(f"{block}.{behind}".rstrip(".")).register_forward_hook(stream),
    ]
    for batch in batches:
        real = tokens_of(batch)
        with torch.no_grad():
            model(**batch)
    for handle in handles:
        handle.remove()
    return (torch.cat(values).double() for values in (inputs, outputs, streams))


def tokens_that_are_read(batch, architecture):
    """By the classifier: the first token, or a decoder's last."""
    mask = batch["attention_mask"].bool()
    numbers = mask * torch.arange(1, mask.shape[1] + 1)
    return numbers == (1 if architecture == "bert" else numbers.max(1, keepdim=True).values)


@pytest.mark.parametrize("name", ["layer.0.heads", "layer.1.neurons", "layer.2.heads", "layer.2.neurons"])
@pytest.mark.parametrize("architecture", few(["bert", "gpt2", "albert", "llama"], 2))
def test_the_first_cut_projection_is_the_ridge_solution(architecture, name):
    """min ||X W + b - Y||² + l ||W - W0||², solved here as one stacked least-squares problem in float64, with the l
    that is best for every eighth example if fitted to the others.

    Y makes the residual stream the dense model's. Up to the first cut the streams agree, so Y is simply the dense
    projection's output; in ALBERT, where a block is called many times, they do so in its first call only.
    """
    name = name.replace("2", "0") if architecture == "albert" else name  # it has two blocks that take turns
    if architecture == "albert":
        name = name.replace("1", "0")
    model, dense, plan = pair(architecture, PruningPlan({name: [0, 2, 3]}))
    cut, batches = copy.deepcopy(model), batches_of(6)
    (group,), (dense_group,) = ([g for g in find_groups(m) if g.name == name] for m in (cut, dense))

    def tokens_of(batch):
        last = architecture != "albert" and name.startswith("layer.2")
        return tokens_that_are_read(batch, architecture) if last else batch["attention_mask"].bool()

    x, output, stream = observed(cut, group, batches, tokens_of)
    _, dense_output, dense_stream = observed(dense, dense_group, batches, tokens_of)
    y = dense_stream - (stream - output)
    if architecture != "albert":
        torch.testing.assert_close(y, dense_output, atol=1e-5, rtol=0)
    counts = [tokens_of(batch).sum(1) for batch in batches]
    calls = len(x) // int(torch.cat(counts).sum())
    numbers = torch.cat([torch.arange(16).repeat_interleave(count).repeat(calls) for count in counts])

    def projection(model):
        linear = model.get_submodule(group.output.module)
        weight = linear.weight if isinstance(linear, Conv1D) else linear.weight.T
        return weight.detach().double(), None if linear.bias is None else linear.bias.detach().double()

    before, bias = projection(cut)
    features = x if bias is None else torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    start = before if bias is None else torch.cat([before, bias[None]])

    def solution(rows, damping):
        root = torch.full((features.shape[1],), damping**0.5 * (x[rows].square().sum(0).mean()).sqrt().item())
        root[len(before) :] = 0
        stacked = torch.cat([features[rows], root.diag().double()])
        return torch.linalg.lstsq(stacked, torch.cat([y[rows], root.diag().double() @ start])).solution

    held_out = numbers % 8 == 7
    assert 0 < held_out.sum() < len(held_out) / 4
    errors = [(y - features @ solution(~held_out, d))[held_out].square().sum().item() for d in module.DAMPINGS]
    expected = solution(torch.ones_like(held_out), module.DAMPINGS[errors.index(min(errors))])

    reconstruct(model, dense, plan, batches)
    got, bias_after = projection(model)
    torch.testing.assert_close(got, expected[: len(before)], atol=2e-4, rtol=1e-3)
    assert (got - before).abs().max() > 0.05
    if bias is not None:
        torch.testing.assert_close(bias_after, expected[-1], atol=2e-4, rtol=1e-3)
        assert (bias_after - bias).abs().max() > 1e-3


@pytest.mark.parametrize(("architecture", "task"), [("bert", "token"), ("gpt2", "generation"), ("bert", "base")])
def test_where_every_token_is_read_all_count(architecture, task, monkeypatch):
    chosen = []

    def solve(model, group, given_inputs, streams, targets):
        chosen.append(
            [torch.equal(stream.mask, batch["attention_mask"].bool()) for stream, batch in zip(streams, given)]
        )

    kind = {"token": transformers.AutoModelForTokenClassification, "base": transformers.AutoModel}.get(
        task, transformers.AutoModelForCausalLM
    )
    dense = kind.from_config(tiny_model(architecture).config).eval()
    plan = PruningPlan({"layer.0.neurons": [0, 1]})
    given = batches_of(2)
    monkeypatch.setattr(module, "_solve", solve)
    reconstruct(apply_plan(copy.deepcopy(dense), plan), dense, plan, given)
    assert len(chosen) > 3 and all(map(all, chosen))


def test_only_projections_behind_the_first_cut_change():
    model, dense, plan = pair("bert", PruningPlan({"layer.1.neurons": range(20)}))
    before = weights(model)
    reconstruct(model, dense, plan, batches_of(3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"bert.encoder.layer.{projection}.{parameter}"
        for projection in ("1.output.dense", "2.attention.output.dense", "2.output.dense")
        for parameter in ("weight", "bias")
    }


def test_chunked_feed_forward_changes_nothing():
    plain, chunked = pair("bert"), pair("bert", chunk_size_feed_forward=3)
    for model, dense, plan in (plain, chunked):
        reconstruct(model, dense, plan, batches_of(3))
    for name, value in plain[0].state_dict().items():
        torch.testing.assert_close(chunked[0].state_dict()[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_without_greenlets_the_result_is_the_same(architecture, monkeypatch):
    """Each stop at a projection is then a pass of its own."""
    model, dense, plan = pair(architecture)
    reconstruct(model, dense, plan, batches_of(2))
    monkeypatch.setattr("optimum_camcut.surgery.walk.getcurrent", None)
    monkeypatch.setattr("optimum_camcut.surgery.walk.greenlet", None)
    again = pair(architecture)[0]
    reconstruct(again, dense, plan, batches_of(2))
    assert_same_weights(again, weights(model))


def test_a_layer_without_units():
    keep = {"layer.0.heads": [], "layer.1.neurons": [], "layer.2.heads": [1]}
    if transformers.__version__.startswith("4."):
        del keep["layer.0.heads"]  # its attention cannot reshape what has no heads
    model, dense, plan = pair("bert", PruningPlan(keep))
    before = distance(model, dense)
    reconstruct(model, dense, plan, batches_of(6))
    assert distance(model, dense) < before


@pytest.mark.parametrize(("own", "shared"), few([(1e-4, 5.0), (1.0, 0.0)], rows=True))
def test_far_fewer_tokens_than_inputs(own, shared):
    """Whether neurons differ or are all but alike, rounding does not stop it, and what comes out is better."""
    dense = tiny_model("bert", intermediate_size=2048)
    with torch.no_grad():
        for layer in dense.bert.encoder.layer:
            weight = layer.intermediate.dense.weight
            weight.copy_(own * weight + (1 - own) * weight[:1])
            layer.intermediate.dense.bias += shared
    plan = PruningPlan({g.name: g.units[:-64] for g in find_groups(dense) if g.kind == "neurons"})
    model, batches = apply_plan(copy.deepcopy(dense), plan), batches_of(2)
    before = distance(model, dense, batches)
    reconstruct(model, dense, plan, batches)
    assert distance(model, dense, batches) < 0.1 * before


def test_a_damping_that_rounding_outweighs_is_passed_over(monkeypatch):
    gram = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)).repeat(2, 1, 1)
    gram[:, 1, 2] = gram[:, 2, 1] = 1.05  # eigenvalues of -0.05 and 2.05, which a damping of 0.1 makes positive
    cross = torch.ones(2, 3, 2, dtype=torch.float64)
    assert module._ridge(gram[0], cross[0], 1, 1e-2) is None
    assert module._choose_damping(gram, cross, 1) >= 0.1
    solution = module._ridge(gram[0], cross[0], 1, 0.1)
    damped = gram[0] + torch.diag(torch.tensor([0.0, 0.1, 0.1], dtype=torch.float64))
    torch.testing.assert_close(damped @ solution, cross[0])

    solve, used = module._ridge, []
    monkeypatch.setattr(module, "_choose_damping", lambda *_: 1e-2)
    monkeypatch.setattr(module, "_ridge", lambda *a: used.append(a[-1]) or (solve(*a) if a[-1] > 0.05 else None))
    model, dense, plan = pair("bert", PruningPlan({"layer.2.neurons": [0, 2, 3]}))
    assert reconstruct(model, dense, plan, batches_of(2)) is model and used == [1e-2, 1e-1]


def test_masked_tokens_alone_are_refused():
    model, dense, plan = pair("bert")
    batches = [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])} for batch in batches_of(2)]
    check_refused(model, dense, plan, batches, "is there a token that is not masked?")


# --- several cuts of one model --------------------------------------------------------------------------------------


def pairs(architecture, count=3):
    """Several pruned models of one dense model, in different layers and by sub-layers; the last lost nothing."""
    dense = tiny_model(architecture)
    plans = [random_plan(dense, seed) for seed in range(count)]
    if architecture != "albert":
        plans.insert(0, PruningPlan({"layer.1.attention": [], "layer.1.feed_forward": []}))
        plans += [PruningPlan({"layer.2.neurons": [1, 2]}), PruningPlan({"layer.0.heads": [0]})]
    plans.append(PruningPlan({group.name: group.units for group in find_groups(dense)}))
    return [apply_plan(copy.deepcopy(dense), plan) for plan in plans], dense, plans


@pytest.mark.parametrize("architecture", few(["albert", "bert", "gpt2"]))
def test_several_cuts_are_rebuilt_as_each_alone(architecture):
    together, dense, plans = pairs(architecture)
    module.reconstruct_all(together, dense, plans, batches_of(4), disable_tqdm=True)
    for model, before, plan in zip(together, pairs(architecture)[0], plans):
        alone = weights(reconstruct(copy.deepcopy(before), dense, plan, batches_of(4)))
        assert all(torch.equal(value, alone[name]) for name, value in weights(model).items())
        unchanged = all(torch.equal(value, alone[name]) for name, value in before.state_dict().items())
        assert unchanged == (plan is plans[-1])


def test_the_dense_model_runs_once_for_all_cuts():
    counts = []
    for count in (1, 3):
        models, dense, plans = pairs("bert", count)
        counted = calls_of(dense, list_blocks(dense))
        module.reconstruct_all(models, dense, plans, batches_of(3), disable_tqdm=True)
        counts.append(list(counted.values()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_hidden_states_are_kept_than_it_says(count, monkeypatch):
    """Five times those of the examples, once more for each model after the first, and what flows into a projection."""
    models, dense, plans = pairs("bert", count)
    alive, most, run_dense, solve = [], [], module.run_dense, module._solve

    def watch(tensors):
        alive.extend(weakref.ref(tensor) for tensor in tensors)

    def dense_run(*arguments):
        found = run_dense(*arguments)
        watch(tensor for calls in found.values() for tensor in calls)
        watch([arguments[2].hidden])
        count_alive()
        return found

    def count_alive():
        tensors = [tensor for each in alive if (tensor := each()) is not None]
        most.append(sum({tensor.data_ptr(): tensor.numel() for tensor in tensors}.values()))

    def solved(model, group, given, *arguments):
        watch(tensor for each in given for tensor in each)
        count_alive()
        solve(model, group, given, *arguments)

    def started(model, *arguments):
        stream = start(model, *arguments)
        watch([stream.hidden])
        return stream

    monkeypatch.setattr(module, "run_dense", dense_run)
    monkeypatch.setattr(module, "_solve", solved)
    start = module.start_stream
    monkeypatch.setattr(module, "start_stream", started)
    batches = batches_of(4)
    module.reconstruct_all(models, dense, plans, batches, disable_tqdm=True)
    tokens, shape = sum(batch["input_ids"].numel() for batch in batches), dense.config
    changed = len(plans) - 1
    least = tokens * shape.hidden_size * (3 + changed)
    assert least <= max(most) <= tokens * (shape.hidden_size * (5 + changed) + shape.intermediate_size)


def test_a_fault_in_one_cut_leaves_all_as_they_were():
    models, dense, plans = pairs("bert")
    before = [weights(model) for model in models]
    last = find_groups(models[3])[-1]
    models[3].get_submodule(last.output.module).register_forward_pre_hook(lambda _, args: (args[0] * float("nan"),))
    with pytest.raises(ValueError, match="NaN"):
        module.reconstruct_all(models, dense, plans, batches_of(3), disable_tqdm=True)
    for model, values in zip(models, before):
        assert all(torch.equal(value, values[name]) for name, value in weights(model).items())
    with pytest.raises(ValueError, match="expected a plan for each model, got 3 models and 2 plans"):
        module.reconstruct_all(models[:3], dense, plans[:2], batches_of(3), disable_tqdm=True)


# --- what it reads --------------------------------------------------------------------------------------------------


def test_padding_is_ignored():
    """Other tokens behind the mask change nothing; the same tokens before the mask would."""
    batches = batches_of(3)
    other = copy.deepcopy(batches)
    for batch in other:
        padding = batch["attention_mask"] == 0
        assert padding.any()
        batch["input_ids"][padding] = torch.randint(3, 99, (int(padding.sum()),))
    results = []
    unmasked = [{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])} for batch in batches]
    for given in (batches, other, unmasked):
        model, dense, plan = pair("bert")
        results.append(weights(reconstruct(model, dense, plan, given)))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(results[2][name], value, atol=1e-3) for name, value in results[0].items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_labels_and_masks_are_not_needed(architecture):
    results = []
    for labels, masks in ((False, True), (True, True), (False, False)):
        model, dense, plan = pair(architecture)
        batches = [tiny_batch(8, seed=seed, labels=labels, padding=False) for seed in range(3)]
        if not masks:
            batches = [{"input_ids": batch["input_ids"]} for batch in batches]
        results.append(weights(reconstruct(model, dense, plan, batches)))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value)
        torch.testing.assert_close(results[2][name], value, atol=1e-4, rtol=1e-4)


def test_no_more_is_read_than_num_samples():
    read = []

    def batches():
        for seed in range(9):
            read.append(seed)
            yield tiny_batch(8, seed=seed)

    model, dense, plan = pair("bert")
    reconstruct(model, dense, plan, batches(), num_samples=24)
    assert read == [0, 1, 2]


def calls_of(model, paths):
    """Counts the calls of modules from now on."""
    counts = dict.fromkeys(paths, 0)

    def count(path):
        counts[path] += 1

    for path in paths:
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: count(path))
    return counts


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_model_is_not_started_again_for_every_layer(architecture):
    """Two layers or six: every batch enters a model once, the dense one also behind its last block, and every block
    computes once."""
    embeddings = {"bert": "bert.embeddings", "gpt2": "transformer.wte"}[architecture]
    starts = []
    for layers in (2, 6):
        model, dense, plan = pair(architecture, num_hidden_layers=layers)
        counted = [calls_of(m, [embeddings, *list_blocks(m)]) for m in (model, dense)]
        reconstruct(model, dense, plan, batches_of(5))
        starts.append([counts.pop(embeddings) for counts in counted])
        for counts, most in zip(counted, (1, 2)):  # one of the dense ones without computing anything
            assert len(counts) == layers
            # Once more for finding out in which order the blocks run, and for what each of them is given.
            assert all(1 <= number <= (most + 1) * 5 + 1 for number in counts.values()), counts
    assert starts[0] == starts[1] == [5, 11]


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_only_hidden_states_are_asked_for(architecture):
    """Labels that no loss takes (-1, as in test sets), and whatever else the config makes the models return, change
    nothing."""
    results = []
    for given, settings in (
        (batches_of(2), {}),
        ([{**batch, "labels": torch.full((16,), -1)} for batch in batches_of(2)], {}),
        (batches_of(2), {"return_dict": False}),
        (batches_of(2), {"output_attentions": True, "output_hidden_states": True}),
    ):
        model, dense, plan = pair(architecture, attn_implementation="eager")
        for each in (model, dense):
            for name, value in settings.items():
                setattr(each.config, name, value)
        results.append(weights(reconstruct(model, dense, plan, given)))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5)


def test_examples_of_one_token_may_come_first(monkeypatch):
    """Of those, all tokens are read; of the others, still one."""
    counts, solve = [], module._solve

    def count(model, stage, group, streams, targets):
        counts.append([int(stream.mask.sum()) for stream in streams])
        solve(model, stage, group, streams, targets)

    monkeypatch.setattr(module, "_solve", count)
    model, dense, plan = pair("bert")
    short = {name: value[:, :1] for name, value in tiny_batch(16, labels=False).items()}
    reconstruct(model, dense, plan, [short, *batches_of(2)])
    assert counts[0] == [16, 120, 120] and counts[-2:] == [[16, 16, 16]] * 2


# --- what it leaves alone -------------------------------------------------------------------------------------------


def state(model):
    names = ("_forward_hooks", "_forward_pre_hooks")
    return {
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(getattr(m, name)) for m in model.modules() for name in names],
        "config": model.config.to_dict(),
        "random": torch.get_rng_state().tolist(),
        "gradients": [p.grad is None for p in model.parameters()],
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_dense_model_is_untouched(architecture):
    model, dense, plan = pair(architecture)
    model.train(), dense.train()
    next(dense.parameters()).requires_grad_(False)
    next(model.parameters()).requires_grad_(False)
    before = weights(dense)
    states = state(model), state(dense)
    parameters = [id(parameter) for parameter in model.parameters()]
    reconstruct(model, dense, plan, batches_of(2))
    assert_same_weights(dense, before)
    assert (state(model), state(dense)) == states
    assert [id(parameter) for parameter in model.parameters()] == parameters  # an optimizer keeps its grip


def test_nothing_to_rebuild():
    dense = tiny_model("bert")
    plan = PruningPlan({"layer.0.heads": range(4)})
    model = apply_plan(copy.deepcopy(dense), plan)
    before = weights(model)
    assert reconstruct(model, dense, plan, iter(())) is model
    assert_same_weights(model, before)


# --- errors ---------------------------------------------------------------------------------------------------------


def check_refused(model, dense, plan, batches, message, error=ValueError):
    before, states = weights(model), state(model)
    with pytest.raises(error, match=re.escape(message)):
        reconstruct(model, dense, plan, batches)
    assert_same_weights(model, before)
    assert state(model) == states


def test_a_plan_that_was_not_applied():
    dense = tiny_model("bert")
    message = "'layer.0.heads' has 4 units, not those of the plan: call apply_plan first"
    check_refused(copy.deepcopy(dense), dense, PruningPlan({"layer.0.heads": [0]}), batches_of(1), message)
    model, dense, _ = pair("bert", PruningPlan({"layer.0.heads": [0, 1]}))
    message = "'layer.0.heads' has 2 units, not those of the plan"
    check_refused(model, dense, PruningPlan({"layer.0.heads": [0, 2]}), batches_of(1), message)
    message = "the plan names the group 'layer.9.heads', which the model lacks; it has layer.0.attention, "
    check_refused(model, dense, PruningPlan({"layer.9.heads": [0]}), batches_of(1), message)


def test_the_dense_model_is_another_object():
    model, _, plan = pair("bert")
    message = "dense_model is the pruned model itself; pass a copy made before apply_plan"
    check_refused(model, model, plan, batches_of(1), message)


def test_models_that_do_not_belong_together():
    model, dense, plan = pair("bert", PruningPlan({"layer.0.heads": [0, 1], "layer.1.neurons": range(9)}))
    deeper = tiny_model("bert", num_hidden_layers=4)
    check_refused(
        model,
        deeper,
        plan,
        batches_of(1),
        "the models do not belong together: BertForSequenceClassification with 3 layers",
    )
    narrower = tiny_model("bert", intermediate_size=36)
    message = "'layer.0.neurons' of dense_model lacks units that the pruned model has"
    check_refused(model, narrower, plan, batches_of(1), message)
    pruned = apply_plan(copy.deepcopy(dense), PruningPlan({"layer.0.heads": [2, 3]}))
    message = "'layer.0.heads' of dense_model lacks units that the pruned model has"
    check_refused(model, pruned, plan, batches_of(1), message)


@pytest.mark.parametrize("other", ["roberta", "wider"])
def test_models_of_the_same_groups_that_do_not_belong_together(other):
    model, _, plan = pair("bert", PruningPlan({"layer.0.heads": [0, 1]}))
    dense = tiny_model("roberta") if other == "roberta" else tiny_model("bert", num_attention_heads=4, hidden_size=48)
    check_refused(model, dense, plan, batches_of(1), "dense_model" if other == "wider" else "do not belong together")


def test_no_batches():
    model, dense, plan = pair("bert")
    message = "the dataloader gave no batches: there is nothing to reconstruct from"
    check_refused(model, dense, plan, [], message)
    check_refused(model, dense, plan, iter([]), message)
    check_refused(model, dense, plan, [[1, 2]], "expected batches that are dicts of tensors, got list", TypeError)


@pytest.mark.parametrize("infinite", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(infinite):
    """They appear in the last layer only, when the layers before it have been rebuilt."""
    model, dense, plan = pair("bert", PruningPlan({"layer.0.heads": [0, 1], "layer.1.neurons": range(9)}))
    dense.bert.encoder.layer[2].output.dense.bias.data[5] = infinite
    message = "the activations at 'layer.2.neurons' are NaN or infinite; the model is as it was before"
    check_refused(model, dense, plan, batches_of(2), message)


def test_fewer_tokens_than_inputs_are_told(caplog):
    model, dense, plan = pair("bert", PruningPlan({"layer.1.neurons": range(30)}))  # heads: 4 x 8 inputs
    few = {name: value[:2, :9] for name, value in tiny_batch(16, labels=False).items()}
    few["attention_mask"] = torch.ones_like(few["attention_mask"])
    for count, told in ((2, True), (6, False)):
        caplog.clear()
        reconstruct(copy.deepcopy(model), dense, plan, [few] * (count // 2))
        tokens = count * few["input_ids"].shape[1]
        message = f"a rebuild from {tokens} tokens, fewer than the 37 inputs of the widest projection"
        assert (message in caplog.text) == told == (tokens < 37), tokens


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failure_in_the_middle_changes_nothing(error, monkeypatch):
    model, dense, plan = pair("bert")
    late = 3 * (len(module.DAMPINGS) + 1) + 1  # in the fourth projection
    calls, cholesky = [], torch.linalg.cholesky_ex

    def fail_late(matrix, **keywords):
        calls.append(matrix)
        if len(calls) == late:
            raise error("stop")
        return cholesky(matrix, **keywords)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fail_late)
    check_refused(model, dense, plan, batches_of(2), "stop", error)
    assert len(calls) == late
