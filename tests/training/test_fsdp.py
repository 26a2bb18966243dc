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
"""FSDP2 in two real processes on the CPU: sharded scoring, the cut, sharding again, checkpoints; and DeepSpeed."""

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from models import tiny_batch, tiny_model
from trainers import arguments, examples, same, weights
from workers import run_together

from optimum_camcut import CamCutTrainer, PruningConfig, find_groups, load_pruned, score_groups


in_two_processes = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="its training arguments ask for FSDP 1 only"
)
METHODS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher", "activation", "magnitude", "random")


def start_fsdp_on_the_cpu():
    """Does after `AcceleratorState.__init__` what that does itself for GPUs. All else of accelerate, transformers and
    torch runs FSDP2 on the CPU as it is."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def model_of(**changes):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny_model("bert", num_hidden_layers=2, **still, **changes)


def pruning(**changes):
    # Five batches of four: an odd number, so that one process has a batch less to score than the other.
    return PruningConfig(
        **{"method": "smooth_cut", "sparsity": 0.5, "num_samples": 20, "smooth_samples": 2, **changes}
    )


def make_trainer(folder, config=None, model=None, fsdp=None, **changes):
    """The batches of two processes under FSDP are those of one without."""
    # Or transformers multiplies BERT's loss by the processes, as if it were no mean, before the teacher's comes in.
    mode = {"per_device_train_batch_size": 8, "average_tokens_across_devices": False}
    if fsdp is not None:
        mode |= {"per_device_train_batch_size": 4, "fsdp": True, "fsdp_config": {"version": 2, **fsdp}}
    trainer = CamCutTrainer(
        model=model or model_of(),
        args=arguments(folder, **{**mode, **changes}),
        train_dataset=examples(24),
        eval_dataset=examples(24, seed=1),
        pruning_config=config,
        # Adam would make whole steps of gradients that are rounding alone.
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    )
    # One process also scores in batches of four: what noise is drawn goes by the batch.
    trainer.get_scoring_dataloader = lambda: [
        {name: value[start : start + 4] for name, value in batch.items()}
        for batch in CamCutTrainer.get_scoring_dataloader(trainer)
        for start in range(0, len(batch["labels"]), 4)
    ]
    return trainer


def assert_close(scores, expected):
    assert list(scores) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(scores[name], values, rtol=1e-4, atol=1e-5 * values.max().item(), msg=name)


# --- scoring --------------------------------------------------------------------------------------------------------

SCORES = """
import os
import sys
import pytest
import torch
from accelerate import PartialState
from models import tiny_model
from test_fsdp import METHODS, examples, make_trainer, model_of, pruning, same, start_fsdp_on_the_cpu, weights
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from optimum_camcut import PruningPlan, apply_plan, find_groups, reconstruct, score_groups
from optimum_camcut import sharding
from optimum_camcut.training import steps
from optimum_camcut.surgery.masking import hold_masks
from optimum_camcut.utils.sharding import gather, is_sharded

folder, rank = sys.argv[1], PartialState(cpu=True).process_index
batches = make_trainer(folder, pruning()).get_scoring_dataloader()

# torch's own fully_shard, no trainer
model = model_of()
before = weights(model)
for layer in model.bert.encoder.layer:
    fully_shard(layer)
fully_shard(model)
results = {"functions": score_groups(model, find_groups(model), batches, pruning())}

# going on from files, of which one process has fewer batches than the other
progress = f"{folder}/sums"
for files in ([], ["sums.0"], ["sums.0", "sums.1"]):
    if rank == 0:
        for name in files:
            os.remove(f"{folder}/{name}")
    torch.distributed.barrier()
    for _ in range(2):
        scores = score_groups(model, find_groups(model), batches, pruning(), progress_file=progress)
        assert same(scores, results["functions"])

plan = PruningPlan({"layer.0.neurons": range(5)})
for action in (lambda: apply_plan(model, plan), lambda: reconstruct(model, model, plan, batches)):
    with pytest.raises(ValueError, match="needs the whole model, and this one is sharded by FSDP"):
        action()
with pytest.raises(ValueError, match="hold_masks needs the whole model"):
    with hold_masks(model):
        pass
config = pruning(method="snip", granularity=("weights",))
with pytest.raises(ValueError, match="single weights cannot be scored under FSDP"):
    score_groups(model, find_groups(model, ("weights",)), batches, config)

model.bert.embeddings.requires_grad_(False)
model(**batches[0])  # the root stays whole after a forward pass
whole = gather(model)
assert same(weights(whole), before) and type(whole) is type(model_of()) and not is_sharded(whole)
assert [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in model.parameters()]
assert whole.bert.embeddings.position_ids.equal(model_of().bert.embeddings.position_ids)
apply_plan(whole, plan)
assert whole(**batches[0]).logits.shape == (4, 3)

tied = tiny_model("gpt2", "CausalLM", num_hidden_layers=2)
before = weights(tied)
tied.generation_config.max_new_tokens = 3
whole = gather(fully_shard(tied))
assert same(weights(whole), before) and whole.lm_head.weight is whole.transformer.wte.weight
assert whole.generation_config.max_new_tokens == 3

# the trainer, before anything was trained
start_fsdp_on_the_cpu()


def gathered(model):
    raise AssertionError("scoring should not gather the model")


seen = []
steps.gather = sharding.gather = gathered
for method in METHODS:
    trainer = make_trainer(folder, pruning(method=method), fsdp={})
    layers = trainer.model.bert.encoder.layer
    layers[1].register_forward_pre_hook(lambda *_: seen.append(layers[0].output.dense.weight))
    results[method] = trainer.score()
    assert is_sharded(trainer.model) and all(isinstance(p, DTensor) and p.requires_grad for p in layers.parameters())
assert seen and all(isinstance(weight, DTensor) and weight.grad is None for weight in seen)
torch.save(results, f"{folder}/{rank}.pt")
"""


@in_two_processes
@pytest.mark.long
def test_scores_of_shards_are_those_of_the_whole_model(tmp_path):
    """Also from torch's `fully_shard` alone, and where the running sums of an interrupted run differ in length."""
    one, two = run_together(2, SCORES, tmp_path)
    assert list(one) == ["functions", *METHODS]
    trainer, model = make_trainer(tmp_path, pruning()), model_of()
    for method, scores in one.items():
        config = pruning(method="smooth_cut" if method == "functions" else method)
        assert same(scores, two[method])
        batches = trainer.get_scoring_dataloader()
        assert_close(scores, score_groups(model, find_groups(model), batches, config))


# --- training -------------------------------------------------------------------------------------------------------

RUNS = {
    "taught": {"dense_epochs": 1, "distill_weight": 0.5, "rewind": True},
    "layers": {
        "granularity": ("layers", "heads", "neurons"),
        "sparsity": 0.6,
        "min_units": 1,
        "dense_epochs": 1,
        "rounds": 2,
    },
    "rebuilt": {"recovery": "reconstruct", "method": "taylor"},
}


def killed(names):
    """How a run keeps its checkpoints, and the loop and the step in which it is killed."""
    return [("SHARDED_STATE_DICT", 2, 2), *([("FULL_STATE_DICT", 1, 2)] if len(names) > 1 else [])]


TRAINING = """
import os
import sys
import torch
from accelerate import PartialState
from models import tiny_batch
from test_fsdp import RUNS, killed, make_trainer, model_of, pruning, same, start_fsdp_on_the_cpu, weights
from trainers import Interrupt
from optimum_camcut.utils.sharding import gather, is_sharded

folder, names, rank = sys.argv[1], sys.argv[2:], PartialState(cpu=True).process_index
start_fsdp_on_the_cpu()
results = {}
for name, changes in [(name, RUNS[name]) for name in names]:
    model, fsdp = model_of(), {}
    if name == "layers":
        # As `from_pretrained` then leaves it, only the first process has read the weights.
        fsdp = {"cpu_ram_efficient_loading": True}
        if rank == 1:
            model.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
            model.classifier.to("meta")
    trainer = make_trainer(f"{folder}/{name}", pruning(**changes), model=model, fsdp=fsdp, save_strategy="epoch")
    trainer.train()
    assert is_sharded(trainer.model) and trainer.accelerator.is_fsdp2
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    whole = gather(trainer.model).eval()
    results[name] = {
        "plan": trainer.pruning_plan.to_dict(),
        "weights": weights(whole),
        "logits": whole(**tiny_batch()).logits.detach(),
        "loss": loss,
    }

# the steps apart; with a neuron in each layer, so that the second process has empty shards
fsdp = {"auto_wrap_policy": "NO_WRAP"}
model = model_of(intermediate_size=2)
trainer = make_trainer(f"{folder}/steps", pruning(allocation="uniform"), model, fsdp, save_strategy="epoch")
results["steps"] = {"plan": trainer.prune().to_dict()}
trainer.evaluate()
trainer.train()
trainer.save_model()

# killed in the dense epoch and in the recovery, with the checkpoints of FSDP whole and in shards
steps = {"save_strategy": "steps", "save_steps": 1}
for kind, loop, step in killed(names):
    fsdp = {"state_dict_type": kind, "cpu_ram_efficient_loading": True}
    trainer = make_trainer(f"{folder}/{kind}", pruning(**RUNS["taught"]), fsdp=fsdp, **steps)
    trainer.add_callback(Interrupt(loop, step))
    try:
        trainer.train()
        raise AssertionError("not interrupted")
    except KeyboardInterrupt:
        pass
    trainer = make_trainer(f"{folder}/{kind}", pruning(**RUNS["taught"]), fsdp=fsdp, **steps)
    trainer.train(resume_from_checkpoint=True)
    assert same(weights(gather(trainer.model)), results["taught"]["weights"])
    trainer.save_model()
torch.save(results, f"{folder}/{rank}.pt")
"""


@in_two_processes
@pytest.mark.parametrize("names", [("taught",), pytest.param(tuple(RUNS), marks=pytest.mark.long)])
def test_dense_epochs_cut_and_recovery(names, tmp_path):
    """Whole runs, against one process that has no FSDP; their checkpoints; and resuming, to the bit."""
    one, two = run_together(2, TRAINING, tmp_path, *names)
    for name, changes in [(name, RUNS[name]) for name in names]:
        got, other = one[name], two[name]
        assert got["plan"] == other["plan"] and same(got["weights"], other["weights"]), name
        reloaded = load_pruned(tmp_path / name)
        assert same(weights(reloaded), got["weights"]) and reloaded.pruning_plan.to_dict() == got["plan"], name
        assert torch.equal(reloaded(**tiny_batch()).logits, got["logits"]), name
        trainer = make_trainer(tmp_path / f"expected-{name}", pruning(**changes))
        trainer.train()
        assert trainer.pruning_plan.to_dict() == got["plan"], name
        expected = weights(trainer.model)
        assert list(expected) == list(got["weights"])
        for key, value in expected.items():
            torch.testing.assert_close(got["weights"][key], value, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(got["loss"], rel=1e-4)
    trainer = make_trainer(tmp_path, pruning(allocation="uniform"), model_of(intermediate_size=2))
    assert one["steps"]["plan"] == trainer.prune().to_dict()
    assert load_pruned(tmp_path / "steps").pruning_plan.to_dict() == one["steps"]["plan"]
    for kind, *_ in killed(names):
        assert same(weights(load_pruned(tmp_path / kind)), one["taught"]["weights"])


# --- what cannot be -------------------------------------------------------------------------------------------------

REFUSALS = """
import sys
import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, fsdp2_prepare_model
from test_fsdp import make_trainer, model_of, pruning, start_fsdp_on_the_cpu
from torch import nn
from transformers import BertForSequenceClassification
from optimum_camcut import PruningPlan, apply_plan
from optimum_camcut.utils.sharding import check_fsdp

folder, rank = sys.argv[1], PartialState(cpu=True).process_index

# Fails when accelerate starts FSDP on the CPU: then take `start_fsdp_on_the_cpu` out, and the limit in docs/limits.md.
accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
assert accelerator.num_processes == 2 and accelerator.distributed_type == DistributedType.MULTI_CPU
with pytest.raises(ValueError, match="on cpu accelerate does not start it .* train under MULTI_CPU without a word"):
    make_trainer(folder, pruning(), fsdp={})
make_trainer(folder, None, fsdp={})  # which is then a plain Trainer

start_fsdp_on_the_cpu()
accelerator = make_trainer(folder, pruning(), fsdp={}).accelerator
accelerator.state.fsdp_plugin.fsdp_version = 1  # accelerate refuses to start that without a GPU
with pytest.raises(ValueError, match="FSDP 1 flattens the parameters"):
    check_fsdp(accelerator, asked=True)
with pytest.raises(ValueError, match="use gradient_checkpointing=True"):
    make_trainer(folder, pruning(), fsdp={"activation_checkpointing": True})
with pytest.raises(ValueError, match="single weights cannot be scored and masked under FSDP"):
    make_trainer(folder, pruning(granularity=("weights",)), fsdp={})


class Extra(BertForSequenceClassification):
    def __init__(self, config, more):
        super().__init__(config)


with pytest.raises(ValueError, match="a Extra cannot be built from its config alone"):
    make_trainer(folder, pruning(), Extra(model_of().config, 1), fsdp={})
changed = model_of()
changed.classifier = nn.Linear(32, 7)
with pytest.raises(ValueError, match="is not what its config describes.*They differ in classifier.bias"):
    make_trainer(folder, pruning(), changed, fsdp={})
masked = model_of()
name = "bert.encoder.layer.0.output.dense.bias"
apply_plan(masked, PruningPlan({name: range(8)}, {name: 32}))
with pytest.raises(ValueError, match="cannot be held at zero under FSDP"):
    make_trainer(folder, None, masked, fsdp={}).train()

# Fails when accelerate shards a BERT by its `_no_split_modules`: then take `shard_by_block` out.
trainer = make_trainer(folder, None, fsdp={})
with pytest.raises(TypeError, match="value was None when it should not be"):
    fsdp2_prepare_model(trainer.accelerator, model_of())
torch.save({}, f"{folder}/{rank}.pt")
"""


@in_two_processes
def test_what_fsdp_cannot_do_is_refused_before_anything_happens(tmp_path):
    assert run_together(2, REFUSALS, tmp_path) == [{}, {}]  # what both write at their end


def test_deepspeed_is_refused(tmp_path):
    """By a trainer that finds itself under DeepSpeed, which need not be installed for that."""

    class UnderDeepSpeed(CamCutTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True

    with pytest.raises(ValueError, match="Prune under DDP or FSDP2 .* and then train `load_pruned"):
        UnderDeepSpeed(model=model_of(), args=arguments(tmp_path), pruning_config=pruning())
    assert UnderDeepSpeed(model=model_of(), args=arguments(tmp_path)).pruning_config is None
