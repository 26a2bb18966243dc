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
"""How often scoring waits for the device: each number that Python reads of it empties the queue of a GPU. This is
counted on the CPU, where the same operations run."""

import pytest
import torch
from models import tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from optimum_camcut import PruningConfig, find_groups, score_groups
from optimum_camcut.search.supernet import Supernet


class Waits(TorchDispatchMode):
    """Counts what would wait: numbers that are read, and results whose size depends on values. Places in the pool of
    noise are drawn on the CPU, wherever the model is."""

    def __init__(self):
        super().__init__()
        self.count, self.drawn = 0, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if name == "randint":
            self.drawn = result
        own = name == "_local_scalar_dense" and self.drawn is not None and args[0].data_ptr() == self.drawn.data_ptr()
        by_mask = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        if name in ("nonzero", "equal", "_local_scalar_dense") and not own or by_mask:
            self.count += 1
        return result


def waits(method, kinds, batches, layers, size=4):
    model = tiny_model("bert", num_hidden_layers=layers)
    config = PruningConfig(method, sparsity=0.5, granularity=kinds)
    data = [tiny_batch(size, seed=number) for number in range(batches)]
    with Waits() as counted:
        score_groups(model, find_groups(model, kinds), data, config, disable_tqdm=True)
    return counted.count


UNITS, WEIGHTS = ("heads", "neurons"), ("weights",)


@pytest.mark.parametrize(
    "method, kinds",
    [(method, UNITS) for method in ("cam_cut", "taylor", "fisher", "activation", "smooth_cut", "smooth_cam_cut")]
    + [(method, WEIGHTS) for method in ("cam_cut", "snip", "smooth_cut", "wanda")],
)
def test_a_batch_waits_as_often_whatever_the_depth_and_the_passes(method, kinds):
    """Twice: for how many of its labels count, and whether its losses are finite. What the model itself does comes to
    that, in every pass."""
    of_model = Waits()
    with of_model, torch.no_grad():
        tiny_model("bert", num_hidden_layers=1)(**tiny_batch())
    noisy = PruningConfig(method, sparsity=0.5, granularity=kinds).smooth_samples
    passes = noisy + (kinds == UNITS) if "smooth" in method else 1
    each = [waits(method, kinds, 3, layers) - waits(method, kinds, 1, layers) for layers in (1, 4)]
    own = 0 if method in ("activation", "wanda") else 2  # which compute no loss
    assert each == [2 * (own + passes * of_model.count)] * 2


@pytest.mark.parametrize("method", ["obs", "flap"])
def test_methods_that_pick_the_real_tokens_wait_once_a_group(method):
    groups = 2
    each = [waits(method, UNITS, 2, layers) - waits(method, UNITS, 1, layers) for layers in (1, 2)]
    assert each[1] - each[0] == groups


def test_the_parts_of_a_divergence_are_read_at_once():
    counts = []
    for layers in (1, 4):
        model = tiny_model("bert", num_hidden_layers=layers).requires_grad_(False)
        groups = find_groups(model, UNITS)
        with Supernet(model, groups, {g.name: list(range(g.size)) for g in groups}, [tiny_batch()], True) as supernet:
            supernet.set({group.name: 2 for group in groups})
            with supernet.differentiable(), torch.enable_grad():
                value = model(**tiny_batch()).loss
                with Waits() as counted:
                    parts = supernet.parts(value)
        counts.append(counted.count)
        assert len(parts) == len(groups) and all(parts)
    assert counts[0] == counts[1]
