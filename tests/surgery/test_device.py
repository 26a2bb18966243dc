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
"""Rebuilding with one block at a time where it is computed, and dense weights on disk."""

import copy
import gc
import weakref

import pytest
import torch
from accelerate import disk_offload
from models import ARCHITECTURES, random_plan, tiny_batch, tiny_model
from torch import nn
from types_of_models import batch_of, model_of

from optimum_camcut import apply_plan, reconstruct
from optimum_camcut.architectures.structure import list_blocks


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one, which can compute")


def pair(architecture):
    dense = tiny_model(architecture) if architecture in ARCHITECTURES else model_of(architecture)
    plan = random_plan(dense, seed=3, kinds=("heads", "neurons"))
    return apply_plan(copy.deepcopy(dense), plan), dense, plan


def batches(model):
    known = model.config.model_type in ARCHITECTURES
    return [tiny_batch(8, seed=seed) if known else batch_of(model, seed) for seed in range(3)]


def rebuilt(model, dense, plan, **options):
    return reconstruct(copy.deepcopy(model), dense, plan, batches(model), disable_tqdm=True, **options)


def assert_same(model, other):
    for (name, value), wanted in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5", "albert", "gemma2"])
def test_same_weights_wherever_it_is_computed(architecture):
    model, dense, plan = pair(architecture)
    before, whole = copy.deepcopy(model.state_dict()), rebuilt(model, dense, plan)
    assert any(not torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert_same(rebuilt(model, dense, plan, device="cpu"), whole)
    assert not any("forward" in vars(module) for module in (*model.modules(), *dense.modules()))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_what_is_solved_comes_back_with_the_block(architecture, monkeypatch):
    """Another device has its own memory: there, a weight of a block that was moved is no longer the one before."""
    model, dense, plan = pair(architecture)
    whole, to = rebuilt(model, dense, plan), nn.Module.to

    def move(module, device):
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        return to(module, device)

    monkeypatch.setattr(nn.Module, "to", move)
    assert_same(rebuilt(model, dense, plan, device="cpu"), whole)


def test_where_an_offloaded_model_computes_must_be_the_device(tmp_path):
    model, dense, plan = pair("llama")
    dense = disk_offload(dense, str(tmp_path), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="the offloaded model computes on 'cpu': offload it with execution_device="):
        reconstruct(model, dense, plan, batches(model), disable_tqdm=True, device="cuda")


@pytest.mark.parametrize("device", ["meta", "gpu", pytest.param("cuda", marks=NO_GPU)])
def test_a_device_that_cannot_compute_is_refused(device):
    model, dense, plan = pair("bert")
    with pytest.raises(ValueError, match=f"device='{device}' cannot compute here: "):
        rebuilt(model, dense, plan, device=device)


@pytest.mark.parametrize("fault", [False, True])
def test_nothing_keeps_the_models(fault):
    """Passes that wait in front of a projection are ended, behind the last one and after an error."""
    model, dense, plan = pair("bert")
    if fault:
        hook = dense.bert.encoder.layer[-1].output.dense.register_forward_hook
        hook(lambda module, args, output: output * float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            reconstruct(model, dense, plan, batches(model), disable_tqdm=True)
    else:
        reconstruct(model, dense, plan, batches(model), disable_tqdm=True)
    kept = [weakref.ref(each) for each in (model, dense)]
    del model, dense
    gc.collect()
    assert all(each() is None for each in kept)


def test_dense_weights_may_be_on_disk(tmp_path):
    model, dense, plan = pair("llama")
    whole = rebuilt(model, dense, plan)
    dense = disk_offload(dense, str(tmp_path), execution_device=torch.device("cpu"))
    assert_same(rebuilt(model, dense, plan, device="cpu"), whole)
    assert all(
        parameter.is_meta for block in list_blocks(dense) for parameter in dense.get_submodule(block).parameters()
    )


def test_one_block_of_each_model_is_there_at_a_time(monkeypatch):
    model, dense, plan = pair("llama")
    there, moves, to = torch.device("cpu", 0), [], nn.Module.to
    names = {m.get_submodule(path): (which, path) for which, m in enumerate((model, dense)) for path in list_blocks(m)}

    def move(module, device):
        if module in names:
            moves.append((*names[module], device == there))
        return to(module, device)

    monkeypatch.setattr(nn.Module, "to", move)
    reconstruct(model, dense, plan, batches(model), disable_tqdm=True, device=there)
    for which in (0, 1):
        own = [(path, arrives) for owner, path, arrives in moves if owner == which]
        assert {path for path, _ in own} == set(list_blocks(dense))
        assert [arrives for _, arrives in own] == [True, False] * (len(own) // 2)
        assert all(came[0] == left[0] for came, left in zip(own[::2], own[1::2]))
    assert len([each for each in moves if each[2]]) < 5 * len(list_blocks(dense))


def test_after_an_error_all_is_home(monkeypatch):
    model, dense, plan = pair("bert")
    before = copy.deepcopy(model.state_dict())
    dense.bert.encoder.layer[-1].output.dense.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        reconstruct(model, dense, plan, batches(model), disable_tqdm=True, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
