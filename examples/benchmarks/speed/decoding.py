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
"""How fast a causal language model reads a prompt and writes after it, dense and pruned, in turn; and how much its
key-value cache takes then.

Magnitude scores: the time does not depend on values. Without `--model_name_or_path`, a llama with random weights, of
SmolLM2-135M's shape.

    python examples/benchmarks/speed/decoding.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse

import torch
from common import MEGABYTE, TINY, add_arguments, clock, cut, in_turn, parse, parser, report, spread
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from optimum_camcut import find_groups
from optimum_camcut.measure import count_parameters


SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def load(options: argparse.Namespace) -> PreTrainedModel:
    if options.model_name_or_path:
        model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path)
    else:
        model = LlamaForCausalLM(LlamaConfig(**(TINY if options.quick else SMOLLM2)))
    return model.to(options.device, getattr(torch, options.dtype)).eval()


@torch.inference_mode()
def write(model: PreTrainedModel, prompt: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of both parts; the likeliest token is taken each time."""
    start, cache = clock(options), DynamicCache(config=model.config)
    token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    read = clock(options)
    for _ in range(options.new_tokens):
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    return {"prompt": read - start, "decoding": clock(options) - read}


@torch.inference_mode()
def cache_size(model: PreTrainedModel, prompt: torch.Tensor) -> int:
    """Bytes of keys and values behind a prompt."""
    cache = DynamicCache(config=model.config)
    model(prompt, past_key_values=cache)
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


def main() -> None:
    made = parser(__doc__, batch_size=1, tokens=512)
    add_arguments(made, keep=[0.8, 0.7, 0.5])
    made.add_argument("--new_tokens", type=int, default=32, help="to write after the prompt")
    options = parse(made, keep=[0.5], tokens=8, new_tokens=2)

    dense = load(options)
    # A model may share one key-value head among all queries.
    kinds = tuple(dict.fromkeys(group.kind for group in find_groups(dense) if group.size > 1))
    pruned = {f"{keep:.0%}": cut(dense, keep, granularity=kinds, min_units=0) for keep in options.keep}
    models = {"dense": dense, **pruned}
    prompt = torch.randint(0, dense.config.vocab_size, (options.batch_size, options.tokens), device=options.device)
    times = in_turn(options, {name: lambda m=model: write(m, prompt, options) for name, model in models.items()})
    rows = []
    for name, model in models.items():
        row = {"model": name, "parameters_million": count_parameters(model) / 1e6}
        for part, count in (("prompt", 1), ("decoding", options.new_tokens)):
            own, of_dense = (times[f"{each}/{part}"] for each in (name, "dense"))
            column = "prompt_milliseconds" if part == "prompt" else "milliseconds_per_token"
            row |= {column: spread(own, scale=1e3 / count), f"{part}_speed_up": spread(of_dense, own)}
        rows.append({**row, "cache_mb": cache_size(model, prompt) / MEGABYTE})
    report(options, rows)


if __name__ == "__main__":
    main()
