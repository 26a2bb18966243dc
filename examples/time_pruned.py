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
"""Load a pruned checkpoint, and time it in turn with the dense model that it comes from.

    python examples/time_pruned.py --dense google-bert/bert-base-uncased --pruned outputs/classifier

`optimum-cli camcut benchmark` does the same, and writes JSON.
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification

from optimum_camcut import load_pruned
from optimum_camcut.measure import count_flops, count_parameters, measure_latency


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dense", required=True, help="folder or Hub id of the dense model")
parser.add_argument("--pruned", required=True, help="folder or Hub id of the pruned model")
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--tokens", type=int, default=128, help="in each sequence")
parser.add_argument("--repeats", type=int, default=20)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
models = {
    # A plain `from_pretrained` loads the dense model only; the pruned one has other sizes in every layer.
    "dense": AutoModelForSequenceClassification.from_pretrained(options.dense, dtype=torch.float32),
    "pruned": load_pruned(options.pruned, dtype=torch.float32),
}
models = {name: model.to(device).eval() for name, model in models.items()}
times = measure_latency(
    models, batch_size=options.batch_size, sequence_length=options.tokens, repeats=options.repeats
)  # one pass of each in turn, so that what else the machine does slows both alike

print(f"{options.batch_size} x {options.tokens} tokens on {device}")
for name, model in models.items():
    flops = count_flops(model, options.batch_size, options.tokens)
    print(
        f"{name:>6}: {count_parameters(model) / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOPs, "
        f"{1e3 * times[name].median:.1f} ms"
    )
print(f"{times['dense'].median / times['pruned'].median:.2f} times as fast")
