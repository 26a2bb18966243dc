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
"""Checks of memory, of processes and of whole runs; see `checks.py`."""

from __future__ import annotations

import copy
import logging
import os
import socket
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate import PartialState, disk_offload, dispatch_model
from accelerate.state import AcceleratorState
from small import (
    DEVICE,
    ON_GPU,
    UNITS,
    Skipped,
    batches_of,
    build,
    check,
    correlation,
    cut,
    distance,
    logits,
    near,
    rehearsed,
    score,
    scores_near,
    uneven,
)
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification, TrainingArguments

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    find_groups,
    latency_table,
    load_pruned,
    make_plan,
    reconstruct,
)
from optimum_camcut.sharding import gather


# --- memory ---------------------------------------------------------------------------------------------------------


@check
def out_of_memory() -> str:
    """A batch that does not fit is scored in halves: the allocator of this process is held to less than it needs."""
    if not ON_GPU:
        raise Skipped("no GPU, whose memory could be limited")
    model = build("bert", hidden_size=256, intermediate_size=1024, max_position_embeddings=256).to(DEVICE)
    large = batches_of(count=1, size=64, tokens=128)

    def needed(batches: list[dict]) -> tuple[dict, int]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return score(model, batches), torch.cuda.max_memory_reserved()

    quarters = [{name: value[start : start + 16] for name, value in large[0].items()} for start in range(0, 64, 16)]
    needed(quarters)  # libraries take memory of their own the first time
    (wanted, few), (_, many) = needed(quarters), needed(large)
    limit, told = (few + many) // 2, []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("optimum_camcut.scoring.batches").addHandler(handler)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    found, _ = needed(large)
    assert any("out of memory while scoring" in each for each in told), f"it fitted into {limit} of {many} bytes"
    off = scores_near(found, wanted, 1e-3, "in pieces")
    return f"{many / 1e6:.0f} MB at once, {limit / 1e6:.0f} MB allowed; {told[-1]}; scores {off:.1g} apart"


@check
def device_map() -> str:
    """Scores and rebuilds where a part of the model is offloaded: to CPU memory, and without a GPU to disk."""
    whole, batches = build("bert", "sdpa"), batches_of(count=8)
    wanted = {method: score(whole, batches, method) for method in ("cam_cut", "fisher", "obs")}
    main, rest = (0, "cpu") if ON_GPU else ("cpu", "disk")
    parts = dict.fromkeys(["bert.embeddings", "bert.encoder.layer.0", "bert.pooler", "dropout", "classifier"], main)
    parts |= dict.fromkeys(["bert.encoder.layer.1", "bert.encoder.layer.2"], rest)
    with tempfile.TemporaryDirectory() as folder:
        model = dispatch_model(copy.deepcopy(whole), parts, main, offload_dir=folder, force_hooks=True)
        assert model.bert.encoder.layer[1].output.dense.weight.is_meta, "nothing was offloaded"
        found = {method: score(model, batches, method) for method in wanted}
        off = max(scores_near(found[each], wanted[each], 1e-3, each) for each in ("cam_cut", "fisher"))
        assert correlation(found["obs"], wanted["obs"]) > 0.9, "obs: other ranks"
        plan = uneven(whole)
        pruned, expected = cut(whole, plan), cut(whole, plan)
        reconstruct(expected, whole, plan, batches, disable_tqdm=True)
        dense = disk_offload(copy.deepcopy(whole), f"{folder}/dense", execution_device=DEVICE)
        reconstruct(pruned, dense, plan, batches, device=DEVICE, disable_tqdm=True)
        rebuilt = near(logits(pruned, batches[0]), logits(expected, batches[0]), 0.05, "rebuilt from an offloaded one")
    return f"{main} and {rest}: scores at most {off:.1g} apart, rebuilt {rebuilt:.1g}"


# --- several processes, of which there is one -----------------------------------------------------------------------


def distributed(**more: str) -> None:
    """From here on, accelerate starts torch.distributed with this process alone: nccl, without a GPU gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **ranks, **more})
    AcceleratorState._reset_state(reset_partial_state=True)


def backend() -> str:
    """Ends torch.distributed; says what it was."""
    found, wanted = dist.get_backend(), "nccl" if ON_GPU else "gloo"
    dist.destroy_process_group()
    assert wanted in found, f"the processes spoke {found}; expected {wanted}"
    return found


def trained(folder: str, name: str = "run", model: Any = None, config: dict | None = None, **changes: Any) -> Any:
    """A trainer that has trained, scored, cut and recovered; a list is its data set."""
    rows = [
        {key: value[row] for key, value in batch.items()}
        for batch in batches_of(count=6)
        for row in range(len(batch["labels"]))
    ]
    # Adam would make whole steps of gradients that are rounding alone.
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "optim": "sgd",
        "learning_rate": 0.02,
        "seed": 3,
    }
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    trainer = CamCutTrainer(
        model=model or build("bert", "sdpa", **still),
        args=TrainingArguments(f"{folder}/{name}", use_cpu=not ON_GPU, **settings, **quiet, **changes),
        train_dataset=rows,
        eval_dataset=rows[:16],
        pruning_config=PruningConfig(**{"method": "taylor", "sparsity": 0.5, "num_samples": 24, **(config or {})}),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(loss == loss and loss < 100 for loss in losses), f"losses {losses}"
    return trainer


def same_weights(found: Any, wanted: Any) -> float:
    """Of two models on any devices."""
    expected = {name: value.float().cpu() for name, value in wanted.state_dict().items()}
    assert list(found.state_dict()) == list(expected), "other weights"
    pairs = [(value.float().cpu(), expected[name], name) for name, value in found.state_dict().items()]
    return max(near(*pair[:2], 1e-2, pair[2]) for pair in pairs if pair[0].numel())


@check
def ddp() -> str:
    """`CamCutTrainer` under DDP: the plan and the weights that one process alone comes to."""
    with tempfile.TemporaryDirectory() as folder:
        alone = trained(folder, "alone")
        distributed()
        together = trained(folder, "together")
        assert dist.is_initialized(), "torch.distributed was not started"
        assert together.pruning_plan == alone.pruning_plan, "the plans differ"
        off = same_weights(together.model, alone.model)
    return f"{backend()}; the same plan, weights at most {off:.1g} apart"


@check
def fsdp2() -> str:
    """Scores of a model that torch's `fully_shard` has sharded, and the cut of what is gathered from it."""
    whole, batches = build("bert", "sdpa").to(DEVICE), batches_of()
    wanted = {method: score(whole, batches, method) for method in ("cam_cut", "taylor", "activation")}
    plan = uneven(whole)
    expected = logits(cut(whole, plan), batches[0])
    distributed()
    PartialState(cpu=not ON_GPU)
    for layer in whole.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(whole)
    off = max(scores_near(score(whole, batches, each), wanted[each], 1e-3, each) for each in wanted)
    near(logits(cut(gather(whole), plan), batches[0]), expected, 1e-3, "gathered and cut")
    return f"{backend()}; scores at most {off:.1g} apart"


@check
def fsdp2_trainer() -> str:
    """`CamCutTrainer` under FSDP2 as accelerate starts it, which on a CPU it does not."""
    if not ON_GPU:
        raise Skipped("no GPU: accelerate starts FSDP2 on GPUs and the like alone")
    if transformers.__version__.startswith("4."):
        raise Skipped("the training arguments of transformers 4 ask for FSDP 1 alone")
    with tempfile.TemporaryDirectory() as folder:
        alone = trained(folder, "alone")
        distributed()
        together = trained(folder, "together", fsdp=True, fsdp_config={"version": 2})
        assert together.is_fsdp_enabled, "accelerate did not start FSDP"
        assert together.pruning_plan == alone.pruning_plan, "the plans differ"
        off = same_weights(gather(together.model), alone.model)
    return f"{backend()}; the same plan, weights at most {off:.1g} apart"


# --- whole runs -----------------------------------------------------------------------------------------------------


@check
def trainer() -> str:
    """A run in bfloat16 with dense epochs, a teacher, checkpointing and a rebuild; saved, and loaded on the device."""
    with tempfile.TemporaryDirectory() as folder:
        config = {"method": "smooth_cut", "dense_epochs": 1, "distill_weight": 0.5, "recovery": "reconstruct+finetune"}
        run = trained(folder, config=config, bf16=True, gradient_checkpointing=True)
        run.evaluate()
        run.save_model(f"{folder}/saved")
        batch, model = batches_of(count=1)[0], run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False).eval()
        placed = load_pruned(f"{folder}/saved", device_map={"": 0} if ON_GPU else "cpu")
        assert placed.device.type == DEVICE.type, f"loaded on {placed.device}"
        alone = AutoModelForSequenceClassification.from_pretrained(f"{folder}/saved", trust_remote_code=True)
        for loaded in (placed, alone.to(DEVICE)):
            assert torch.equal(logits(loaded.eval(), batch), logits(model, batch)), "loaded, it gives other logits"
    return f"evaluated at {run.state.log_history[-1].get('eval_loss', float('nan')):.3g}; loaded bit for bit"


@check
def cuda_graphs() -> str:
    """A pruned model as `torch.compile` makes it, with CUDA graphs."""
    if not ON_GPU:
        raise Skipped("no GPU: there are no CUDA graphs")
    dense, batch = build("bert", "sdpa").to(DEVICE), batches_of(count=1)[0]
    model = cut(dense, uneven(dense))
    wanted, fast = logits(model, batch), torch.compile(model, mode="reduce-overhead", dynamic=False)
    inputs = {name: value.to(DEVICE) for name, value in batch.items()}
    with torch.no_grad():
        off = max(distance(fast(**inputs).logits.float().cpu(), wanted) for _ in range(4))  # the third is a replay
    assert off < 1e-3, f"logits are off by {off:.2g}"
    return f"logits at most {off:.1g} apart"


@check
def budget() -> str:
    """A latency table of the device, and a plan by it."""
    # On a GPU large enough, so that its time depends on its size.
    shape = {"hidden_size": 1024, "intermediate_size": 4096} if ON_GPU else {"intermediate_size": 512}
    model, conditions = build("bert", "sdpa", **shape).to(DEVICE), {"latency_batch_size": 256 if ON_GPU else 4}
    config = PruningConfig("magnitude", sparsity=0.2, budget="latency", sequence_length=64, **conditions)
    with tempfile.TemporaryDirectory() as folder:
        table = latency_table(model, config, cache_dir=folder, disable_tqdm=True)
    plan = make_plan(score(model, [], "magnitude"), find_groups(model, UNITS), config, latency=table)
    kept = sum(map(len, plan.keep.values())) / sum(plan.sizes.values())
    return rehearsed(f"{1e3 * table.total:.2f} ms whole; {kept:.0%} of the units are kept in 80% of the time")
