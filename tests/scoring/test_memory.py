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
"""Scoring in little memory: smaller batches after an out-of-memory error, gradient checkpointing, offloaded models."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from marks import few
from models import ARCHITECTURES, tiny_batch, tiny_model
from places import PATHS
from torch import nn

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups
from optimum_camcut.scoring import SCORERS, WEIGHT_SCORERS


UNITS = ("heads", "neurons")


def batches():
    return [tiny_batch(batch_size=size, seed=seed) for seed, size in enumerate((6, 5, 1))]


def score(model, method, granularity=UNITS, **changes):
    config = PruningConfig(method=method, granularity=granularity, sparsity=0.5, smooth_samples=2, seed=3)
    return score_groups(model, find_groups(model, granularity), batches(), config, disable_tqdm=True, **changes)


def assert_close(got, expected, tolerance):
    assert list(got) == list(expected)
    atol = tolerance * max(values.max().item() for values in expected.values())  # biases of keys have no gradient
    for name, values in got.items():
        torch.testing.assert_close(values, expected[name], rtol=tolerance, atol=atol)


def cases():
    """Every method that reads data, of units and of single weights."""
    units = [(UNITS, name) for name, method in SCORERS.items() if method.source != "weights"]
    weights = [(("weights",), name) for name, method in WEIGHT_SCORERS.items() if method.source != "weights"]
    more = [(UNITS, "flap"), (UNITS, "wanda_sp"), (UNITS, "obs")]
    return [pytest.param(*case, id=f"{case[0][0]}-{case[1]}") for case in [*units, *more, *weights]]


class Limited:
    """The loss of a model on a device whose memory holds so many examples."""

    def __init__(self, limit, message="CUDA out of memory. Tried to allocate 2.00 GiB."):
        self.limit, self.message, self.sizes = limit, message, []

    def __call__(self, model, batch):
        self.sizes.append(len(batch["input_ids"]))
        output = model(**batch).loss
        if self.sizes[-1] > self.limit:  # in mid-pass, with hooks and graphs in place
            raise torch.OutOfMemoryError(self.message)
        return output


@pytest.mark.parametrize(
    ("granularity", "method"),
    [(UNITS, "cam_cut"), (UNITS, "fisher"), (("weights",), "snip"), (("weights",), "cam_cut")],
)
@pytest.mark.parametrize("limit", [3, 1])
def test_out_of_memory_means_smaller_batches(granularity, method, limit, caplog):
    model, loss = tiny_model("bert"), Limited(limit)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = score(model, method, granularity, loss_function=loss)
    assert_close(got, score(model, method, granularity), 1e-5)
    tried, rest = [6, *([3] if limit == 1 else [])], [limit] * (6 // limit) + [limit] * (5 // limit)
    assert loss.sizes == [*tried, *rest, *([2] if limit == 3 else []), 1]  # once halved, later batches start there
    assert f"trying again with {limit} examples at once" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize(("granularity", "method"), cases())
def test_what_failed_leaves_no_trace_in_the_sums(granularity, method):
    """The second batch fails once, for whatever reason it may be, and is scored whole the next time."""
    model = tiny_model("bert")
    expected, calls, forward = score(model, method, granularity), [], model.forward

    def fail_once(**batch):
        calls.append(len(batch["input_ids"]))
        output = forward(**batch)
        if calls[-1] == 5 and calls.count(5) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return output

    model.forward = fail_once
    got = score(model, method, granularity)
    assert calls.count(5) == 1 and 2 in calls
    if "smooth" in method:  # whose noise is drawn anew for the smaller pieces
        assert_close(got, expected, 0.5)
    else:
        assert_close(got, expected, 1e-5)


class Failing(list):
    """Batches of which one cannot be made for lack of memory."""

    def __init__(self, batches, index):
        super().__init__(batches)
        self.index = index

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if index == self.index:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            yield batch


@pytest.mark.parametrize("index", [0, 2])
def test_lack_of_memory_outside_of_scoring_is_an_error(index):
    """Scoring again would help nothing, and count batches twice."""
    model = tiny_model("bert")
    config = PruningConfig(method="cam_cut", sparsity=0.5)
    with pytest.raises(torch.OutOfMemoryError):
        score_groups(model, find_groups(model), Failing(batches(), index), config, disable_tqdm=True)


@pytest.mark.parametrize("granularity", [UNITS, ("weights",)])
@pytest.mark.parametrize("task", ["CausalLM", "TokenClassification"])
@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut"])
def test_pieces_of_a_batch_with_labels_by_token(method, task, granularity):
    """Whose mean is over the labels that count: none of the first example, few of the second. Positions are for all
    examples."""
    model = tiny_model("llama" if task == "CausalLM" else "bert", task)
    batch = tiny_batch(batch_size=6, padding=False)
    batch["labels"] = batch["input_ids"].clone() % (99 if task == "CausalLM" else 3)
    batch["labels"][0], batch["labels"][1, 2:] = -100, -100
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    keywords = {"noise_std": 0.0} if method == "smooth_cut" else {}
    config = PruningConfig(method=method, granularity=granularity, sparsity=0.5, smooth_samples=1, **keywords)
    whole, halves, single = (
        score_groups(model, find_groups(model, granularity), [batch], config, loss_function=loss, disable_tqdm=True)
        for loss in (None, Limited(3), Limited(1))
    )
    assert_close(halves, whole, 1e-4)
    assert_close(single, whole, 1e-4)


@pytest.mark.parametrize("granularity", [UNITS, ("weights",)])
def test_a_single_example_that_does_not_fit(granularity):
    model = tiny_model("bert")
    with pytest.raises(RuntimeError, match="a single example does not fit into memory while scoring") as error:
        score(model, "cam_cut", granularity, loss_function=Limited(0))
    assert isinstance(error.value.__context__, torch.OutOfMemoryError)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_other_errors_are_no_matter_of_memory():
    def loss(model, batch):
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        score(tiny_model("bert"), "cam_cut", loss_function=loss)


REAL = """
import resource, sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from models import tiny_config
from transformers import AutoModelForSequenceClassification
from optimum_camcut import PruningConfig, find_groups, score_groups
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_config(tiny_config("bert", max_position_embeddings=512))
ids = torch.randint(3, 90, (256, 512))
config = PruningConfig(method="cam_cut", granularity=("neurons",), sparsity=0.5)
score = lambda size: score_groups(
    model, find_groups(model, "neurons"),
    [{{"input_ids": i, "labels": i[:, 0] % 3}} for i in ids.split(size)], config, disable_tqdm=True)
few = score(8)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))
many = score(256)
for name in few:
    torch.testing.assert_close(few[name], many[name], rtol=1e-4, atol=1e-9)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
def test_real_lack_of_memory():
    """256 sequences of 512 tokens in a process that may take 300 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", REAL.format(paths=PATHS)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory while scoring: trying again with 128 examples at once" in done.stderr


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("granularity", "method"), cases())
def test_gradient_checkpointing_changes_nothing(granularity, method, reentrant):
    model = tiny_model("bert")
    expected = score(model, method, granularity)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    calls = [0]
    count = lambda *_: calls.__setitem__(0, calls[0] + 1)  # noqa: E731
    model.bert.encoder.layer[0].attention.output.dense.register_forward_hook(count)
    got = score(model, method, granularity)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=0)
    passes = {"smooth": 2 * 2}.get(method.partition("_")[0], 2)  # every pass with gradients runs a block twice
    clean = granularity == UNITS and method.startswith("smooth")
    blind = method in ("activation", "wanda", "flap", "wanda_sp")
    assert calls[0] == 3 * (1 if blind else passes + clean)
    assert [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()] == functions
    assert not any(m.training for m in model.modules()) and model.is_gradient_checkpointing


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"albert", "mpnet"}))  # which have none
def test_gradient_checkpointing_of_every_architecture(architecture):
    model = tiny_model(architecture)
    expected = score(model, "smooth_cam_cut")
    model.gradient_checkpointing_enable()
    assert_close(score(model, "smooth_cam_cut"), expected, 1e-6)
    assert_close(score(model, "snip", ("weights",)), score(tiny_model(architecture), "snip", ("weights",)), 1e-6)


def test_gradient_checkpointing_saves_memory():
    """Tensors that autograd saves for the backward pass, in bytes."""

    def saved(model):
        peak = [0]

        def pack(tensor):
            peak[0] += tensor.numel() * tensor.element_size()
            return tensor

        def loss(model, batch):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return model(**batch).loss

        score(model, "smooth_cut", loss_function=loss)
        return peak[0]

    model = tiny_model("bert")
    before = saved(model)
    model.gradient_checkpointing_enable()
    assert saved(model) < before / 5


def offloads(tmp_path):
    return {
        "cpu": lambda model: cpu_offload(model, execution_device=torch.device("cpu")),
        "disk": lambda model: disk_offload(model, str(tmp_path), execution_device=torch.device("cpu")),
        "dispatched": lambda model: dispatch_model(
            model,
            {
                "bert.embeddings": "cpu",
                "bert.encoder": "disk",
                "bert.pooler": "cpu",
                "dropout": "cpu",
                "classifier": "cpu",
            },
            main_device="cpu",
            offload_dir=str(tmp_path),
            force_hooks=True,
        ),
    }


@pytest.mark.parametrize("where", ["cpu", "disk", "dispatched"])
@pytest.mark.parametrize("checkpointing", few([True, False]))
def test_offloaded_models(where, checkpointing, tmp_path):
    model = tiny_model("bert")
    methods = [*SCORERS, "flap", "wanda_sp", "obs"]
    expected = {method: score(model, method) for method in methods}
    model = offloads(tmp_path)[where](model)
    assert model.bert.encoder.layer[0].intermediate.dense.weight.is_meta
    if checkpointing:
        model.gradient_checkpointing_enable()
    for method in methods:
        assert_close(score(model, method), expected[method], 1e-6)
        left = [name for name, parameter in model.bert.encoder.named_parameters() if not parameter.is_meta]
        assert not left, "these weights would fill the device"


def test_single_weights_of_offloaded_models():
    model = tiny_model("bert")
    expected = {method: score(model, method, ("weights",)) for method in ("magnitude", "wanda", "random")}
    model = cpu_offload(model, execution_device=torch.device("cpu"))
    for method, scores in expected.items():
        assert_close(score(model, method, ("weights",)), scores, 1e-6)
    with pytest.raises(ValueError, match="are offloaded, where no gradients are kept: load the model whole"):
        score(model, "snip", ("weights",))


@pytest.mark.parametrize("granularity", [UNITS, ("weights",)])
def test_offloaded_models_are_not_cut(granularity):
    """The plan is a file; it cuts the same model loaded whole."""
    model = tiny_model("bert")
    whole, groups = copy.deepcopy(model), find_groups(model, granularity)
    config = PruningConfig(method="magnitude", granularity=granularity, sparsity=0.5)
    cpu_offload(model, execution_device=torch.device("cpu"))
    plan = make_plan(score(model, "magnitude", granularity), groups, config)
    with pytest.raises(ValueError, match="offloaded .* save the plan, load the model whole"):
        apply_plan(model, plan)
    assert isinstance(model.bert.encoder.layer[0].intermediate.dense, nn.Linear)
    assert apply_plan(whole, plan).pruning_plan.keep == plan.keep
