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
"""How fast the ONNX export of a pruned model runs in onnxruntime, beside that of the dense one, of both in 8 bits, and
torch itself.

Both are exported with a dynamic batch size and length and checked against torch on another shape; onnxruntime then
makes 8 bits of the weights (`quantize_dynamic`). Every round runs each once, so that a busy machine slows all alike.

    python examples/benchmarks/onnx_speed.py --output onnx_speed.json

Without `--model_name_or_path`, a BERT-base shape with random weights: the speed does not depend on their values. Needs
onnx, onnxruntime and onnxscript.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from study import add, add_arguments, make_parser, settings_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups


class Logits(nn.Module):
    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def inputs(vocabulary: int, batch_size: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(5, vocabulary, (batch_size, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def run_torch(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def run_onnx(session: onnxruntime.InferenceSession, batch: dict[str, Tensor]) -> Tensor:
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])


def export(model: PreTrainedModel, file: Path) -> None:
    batch = inputs(model.config.vocab_size, 2, 16)
    shapes = {name: {0: "batch", 1: "tokens"} for name in batch}
    torch.onnx.export(
        Logits(model).eval(),
        (),
        str(file),
        kwargs=batch,
        dynamo=True,
        input_names=list(batch),
        dynamic_shapes=shapes,
        verbose=False,
    )


def open_session(model: PreTrainedModel, file: Path, threads: int) -> tuple[onnxruntime.InferenceSession, float]:
    """A session, and its largest difference to torch's logits on a shape that it was not exported with."""
    other = inputs(model.config.vocab_size, 3, 11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session, (run_onnx(session, other) - run_torch(model, other)).abs().max().item()


def main() -> None:
    parser = make_parser(__doc__)
    add_arguments(parser, "model_name_or_path", "sparsity", "tokens", "output", rounds={"default": 20, "help": None})
    add_arguments(parser, batch_size=1)
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.model_name_or_path:
        dense = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path, dtype=torch.float32)
    else:
        dense = BertForSequenceClassification(BertConfig())
    groups, config = find_groups(dense.eval()), PruningConfig(method="magnitude", sparsity=options.sparsity)
    plan = make_plan(score_groups(dense, groups, None, config), groups, config)
    models = {"dense": dense, "pruned": apply_plan(copy.deepcopy(dense), plan)}
    threads, batch = torch.get_num_threads(), inputs(dense.config.vocab_size, options.batch_size, options.tokens)

    tasks: dict[str, Callable[[], Tensor]] = {}
    differences, megabytes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            file = Path(folder) / name / "model.onnx"
            file.parent.mkdir()
            export(model, file)
            megabytes[name] = sum(each.stat().st_size for each in file.parent.iterdir()) / 1e6
            quantize_dynamic(file, file.with_name("int8.onnx"), weight_type=QuantType.QInt8)
            megabytes[f"{name} int8"] = file.with_name("int8.onnx").stat().st_size / 1e6
            for label, path in ((name, file), (f"{name} int8", file.with_name("int8.onnx"))):
                session, differences[label] = open_session(model, path, threads)
                tasks[f"onnx {label}"] = lambda session=session: run_onnx(session, batch)
            tasks[f"torch {name}"] = lambda model=model: run_torch(model, batch)
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for number in range(options.rounds + 1):
            for name, task in tasks.items():
                start = time.perf_counter()
                task()
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - start)

    results = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        own = times[f"{name.split()[0]} dense"]
        ratio = statistics.median(value / other for value, other in zip(values, own))
        results[name] = {"median": median, "first_quartile": low, "third_quartile": high, "to_dense": ratio}
    shape = f"{options.batch_size} x {options.tokens} tokens"
    print(f"{shape}, {options.rounds} rounds, {threads} threads, medians (first to third quartile) in milliseconds")
    for name, r in results.items():
        low, middle, high = (1e3 * r[key] for key in ("first_quartile", "median", "third_quartile"))
        print(f"{name:<18}{f'{middle:.1f} ({low:.1f} - {high:.1f})':>28}{r['to_dense']:>8.2f} of dense")
    for name in megabytes:
        print(f"{name}: {megabytes[name]:.0f} MB, logits differ by at most {differences[name]:.1e} from torch's")
    if options.output:
        settings = {**settings_of(options), "threads": threads}
        figures = {"megabytes": megabytes, "largest_difference": differences, "results": results}
        add(options.output, {"settings": settings, **figures}, ["settings"])


if __name__ == "__main__":
    main()
