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
"""What only a GPU can tell of the package, as functions that raise where something is wrong.

Each checks one thing, and runs in a process of its own: `run.py` starts them, several at a time where there are cores.
On a CPU, those that compare two devices are rehearsed, and those that need a device's memory or kernels left out; both
say `skipped`. Nothing is imported but torch, transformers, accelerate and what these bring.

    python examples/benchmarks/gpu/checks.py            # the names
    python examples/benchmarks/gpu/checks.py scores     # one check; its last line is `pass: ...` or `skipped: ...`
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch
import transformers
from small import (
    CHECKS,
    DEVICE,
    ON_GPU,
    SHAPES,
    UNITS,
    Skipped,
    batches_of,
    build,
    check,
    correlation,
    cut,
    distance,
    logits,
    masked,
    near,
    rehearsed,
    score,
    scores_near,
    uneven,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimum_camcut import (
    PruningConfig,
    apply_plan,
    find_groups,
    make_plan,
    reconstruct,
    score_groups,
    search_plan,
)


def equal(names: Sequence[str], attention: str, dtype: torch.dtype, tolerance: float, padding: bool = True) -> str:
    """Cut equals masked."""
    worst = 0.0
    for name in names:
        batch = batches_of(name, count=1)[0] if padding else unpadded(name)
        dense = build(name, attention).to(DEVICE, dtype)
        plan = uneven(dense)
        wanted = logits(masked(dense, plan), batch)
        worst = max(worst, near(logits(cut(dense, plan), batch), wanted, tolerance, f"{name}, {attention}"))
        changed = distance(logits(dense, batch), wanted)
        assert changed > 5 * tolerance, f"{name}: the cut changes nothing"
    return f"{', '.join(names)}: at most {worst:.1g} apart"


def unpadded(name: str) -> dict[str, Tensor]:
    batch = batches_of(name, count=1)[0]
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


# --- cut equals masked ----------------------------------------------------------------------------------------------


@check
def equal_eager() -> str:
    return equal(list(SHAPES), "eager", torch.float32, 1e-4)


@check
def equal_sdpa() -> str:
    return equal(["bert", "gpt2", "llama", "vit"], "sdpa", torch.float32, 1e-4)


@check
def equal_flash() -> str:
    """torch's own kernel, and the library if it is there; both compute in half precision alone."""
    if not ON_GPU:
        raise Skipped("no GPU: flash attention runs on no CPU")
    seen, names = "the library flash_attn is not there", ["gpt2", "llama"]
    if find_spec("flash_attn") is not None:
        seen = f"the library, {equal(names, 'flash_attention_2', torch.bfloat16, 0.05)}"
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # it takes no mask: nothing is padded
        try:
            for name in names:
                logits(build(name, "sdpa").to(DEVICE, torch.bfloat16), unpadded(name))
        except RuntimeError as error:
            raise Skipped(f"torch's kernel does not take dense models here: {error}; {seen}") from error
        return f"torch's kernel, {equal(names, 'sdpa', torch.bfloat16, 0.05, padding=False)}; {seen}"


@check
def without_heads() -> str:
    """A layer without heads and neurons: no kernel of attention was written for it."""
    if transformers.__version__.startswith("4."):
        raise Skipped("transformers 4 cannot run a layer without heads")
    worst, batch = 0.0, batches_of(count=1)[0]
    for attention in ("eager", "sdpa"):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
            dense = build("bert", attention).to(DEVICE, dtype)
            plan = uneven(dense, empty=True)
            model, what = cut(dense, plan), f"{attention}, {dtype}"
            near(logits(model, batch), logits(masked(dense, plan), batch), tolerance, what)
            found = score(model, batches_of(), "taylor")
            assert all(torch.isfinite(each).all() for each in found.values()), f"{what}: scores"
            reconstruct(model, dense, plan, batches_of(), disable_tqdm=True)
            worst = max(worst, distance(logits(model, batch), logits(dense, batch)))
    return f"eager and sdpa, float32 and bfloat16; rebuilt, {worst:.2g} from dense"


# --- the CPU and the GPU agree --------------------------------------------------------------------------------------


@check
def scores() -> str:
    worst, ranks = 0.0, 1.0
    for name in ("bert", "llama"):
        for method in ("cam_cut", "taylor", "fisher", "activation", "flap", "wanda_sp"):
            model = build(name, "sdpa")
            wanted = score(model, batches_of(name), method)
            found = score(model.to(DEVICE), batches_of(name), method)
            worst = max(worst, scores_near(found, wanted, 1e-3, f"{name}, {method}"))
        # A GPU draws other noise; and of near ties, `obs` takes one first, which changes what the others add.
        for method in ("smooth_cut", "smooth_cam_cut", "obs"):
            model, settings = build(name, "sdpa"), {"smooth_samples": 8} if method != "obs" else {}
            wanted = score(model, batches_of(name), method, **settings)
            least = correlation(score(model.to(DEVICE), batches_of(name), method, **settings), wanted)
            assert least > 0.8, f"{name}, {method}: ranks correlate by {least:.2f}; expected more than 0.8"
            ranks = min(ranks, least)
    wanted, found = (
        score(build().to(each), batches_of(), "block_influence", granularity=("layers",), layer_unit="block")
        for each in ("cpu", DEVICE)
    )
    worst = max(worst, scores_near(found, wanted, 1e-3, "block_influence"))
    return rehearsed(f"at most {worst:.1g} apart; ranks of the smooth methods and of obs correlate by {ranks:.2f}")


@check
def single_weights() -> str:
    """Scores of single weights, and masks made of them."""
    worst, changes = 0.0, {"granularity": ("weights",), "dropout": False}
    for method in ("cam_cut", "snip", "wanda"):
        wanted = score(build(), batches_of(), method, **changes)
        found = score(build().to(DEVICE), batches_of(), method, **changes)
        worst = max(worst, scores_near(found, wanted, 1e-3, method))
    model, config = build().to(DEVICE), PruningConfig("smooth_cut", sparsity=0.5, **changes)
    groups = find_groups(model, config.granularity)
    plan = make_plan(score_groups(model, groups, batches_of(), config, disable_tqdm=True), groups, config)
    apply_plan(model, plan)
    values = torch.cat([model.get_parameter(group.name).flatten() for group in groups])
    zeros, total = int((values == 0).sum()), len(values)
    assert 0.48 < zeros / total < 0.52, f"{zeros / total:.2f} of the weights are 0; expected half"
    assert torch.isfinite(logits(model, batches_of()[0])).all(), "the masked model gives NaN"
    return rehearsed(f"at most {worst:.1g} apart; {zeros / total:.2f} masked")


@check
def rebuild() -> str:
    """On the CPU, on the GPU, and on the CPU with one block at a time on the GPU."""
    worst, batches = 0.0, batches_of(count=8)
    for name in ("bert", "llama"):
        data = batches if name == "bert" else batches_of(name, count=8)
        dense = build(name, "sdpa")
        plan, found = uneven(dense), []
        for place, settings in (("cpu", {}), (DEVICE, {}), ("cpu", {"device": DEVICE})):
            whole = copy.deepcopy(dense).to(place)
            model = cut(whole, plan)
            before = distance(logits(model, data[0]), logits(whole, data[0]))
            reconstruct(model, whole, plan, data, disable_tqdm=True, **settings)
            found.append(logits(model, data[0]))
            after = distance(found[-1], logits(whole, data[0]))
            assert after < before, f"{name}: {before:.2g} from dense before, {after:.2g} rebuilt"
        worst = max(worst, *(near(each, found[0], 0.05, f"{name}, rebuilt") for each in found[1:]))
    return rehearsed(f"at most {worst:.1g} apart")


@check
def search() -> str:
    """The search fits its budget on any device; measured numbers are near ties, so sizes may differ a little."""
    sizes = []
    for place in ("cpu", DEVICE):
        model, config = build("llama").to(place), PruningConfig("obs", sparsity=0.3, allocation="search")
        groups = find_groups(model, config.granularity)
        found = score_groups(model, groups, batches_of("llama"), config, disable_tqdm=True)
        plan = search_plan(model, groups, found, config, batches_of("llama"), disable_tqdm=True)
        apply_plan(model, plan)
        sizes.append([len(units) for units in plan.keep.values()])
    return rehearsed(f"{sum(sizes[0])} units kept on the CPU, {sum(sizes[1])} on the GPU")


@check
def experts() -> str:
    """Mixtures of experts: products of all experts at once have kernels of their own on a GPU."""
    if transformers.__version__.startswith("4."):
        raise Skipped("experts are cut in transformers 5 alone")
    SHAPES["mixtral"] = ("CausalLM", {**SHAPES["llama"][1], "intermediate_size": 64, "num_local_experts": 4})
    worst = 0.0
    for kinds, method in ((("experts",), "reap"), (UNITS, "taylor")):
        cpu, gpu = build("mixtral", "sdpa"), build("mixtral", "sdpa").to(DEVICE)
        wanted = score(cpu, batches_of("mixtral"), method, granularity=kinds)
        found = score(gpu, batches_of("mixtral"), method, granularity=kinds)
        worst = max(worst, scores_near(found, wanted, 1e-2, method))
        config = PruningConfig(method, sparsity=0.5, granularity=kinds)
        plan = make_plan(wanted, find_groups(cpu, kinds), config)
        batch = batches_of("mixtral", count=1)[0]
        near(logits(apply_plan(gpu, plan), batch), logits(apply_plan(cpu, plan), batch), 1e-3, "what is left")
        assert torch.isfinite(logits(gpu.bfloat16(), batch)).all(), "NaN in bfloat16"
    return rehearsed(f"scores at most {worst:.1g} apart; cut alike")


@check
def bfloat16() -> str:
    """The whole job in half precision, by methods of both kinds."""
    batches, seen = batches_of(count=8), []
    exact = score(build("bert", "sdpa").to(DEVICE), batches, "taylor")
    least = correlation(score(build("bert", "sdpa").to(DEVICE, torch.bfloat16), batches, "taylor"), exact)
    assert least > 0.8, f"ranks correlate with those of float32 by {least:.2f}; expected more than 0.8"
    for method in ("cam_cut", "smooth_cut", "obs"):
        dense = build("bert", "sdpa").to(DEVICE, torch.bfloat16)
        groups, config = find_groups(dense, UNITS), PruningConfig(method, sparsity=0.5)
        model = copy.deepcopy(dense)
        found = score_groups(model, groups, batches, config, disable_tqdm=True)
        plan = make_plan(found, groups, config)
        apply_plan(model, plan)
        before = distance(logits(model, batches[0]), logits(dense, batches[0]))
        reconstruct(model, dense, plan, batches, disable_tqdm=True)
        after = distance(logits(model, batches[0]), logits(dense, batches[0]))
        assert after < before, f"{method}: {before:.2g} from dense before, {after:.2g} rebuilt"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}, "other dtypes than before"
        seen.append(f"{method} {before:.2g} to {after:.2g}")
    return f"from dense, cut and rebuilt: {', '.join(seen)}; ranks correlate with float32's by {least:.2f}"


def main() -> None:
    import systems  # noqa: F401  # more checks

    if len(sys.argv) < 2:
        print("\n".join(CHECKS))
        return
    logging.basicConfig(level=logging.WARNING)
    try:
        print(f"pass: {CHECKS[sys.argv[1]]()}", flush=True)
    except Skipped as reason:
        print(f"skipped: {reason}", flush=True)


if __name__ == "__main__":
    main()
