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
"""`optimum-cli camcut export`: a file or a folder of each format, and what is refused before any work."""

import json

import pytest
import torch
from checkpoints import tokenizer
from command_line import flags, main
from models import random_plan, tiny_batch, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_camcut import apply_plan


pytestmark = pytest.mark.once


@pytest.fixture
def pruned(tmp_path):
    model = tiny_model("llama", task="CausalLM")
    apply_plan(model, random_plan(model, 1)).save_pretrained(tmp_path / "pruned")
    tokenizer().save_pretrained(tmp_path / "pruned")
    return model, tmp_path / "pruned"


def test_plain_takes_the_place_of_a_pruned_checkpoint(pruned, tmp_path, capsys):
    """Of which nothing is left in the folder; what else is there stays."""
    model, folder = pruned
    output = tmp_path / "out"
    model.save_pretrained(output)
    (output / "notes.txt").write_text("mine")
    (output / "pruning_heads.png").write_text("")
    with pytest.raises(SystemExit, match="is not empty"):
        main("export", *flags(model=folder, format="plain", output=output))
    main("export", *flags(model=folder, format="plain", output=output, multiple_of=4, overwrite=True))
    assert "parameters with the zeros" in capsys.readouterr().out
    left = {path.name for path in output.iterdir()}
    assert (
        "notes.txt" in left
        and not {"modeling_camcut.py", "pruning_plan.json", "pruning_heads.png", "README.md"} & left
    )
    assert not [path for path in tmp_path.iterdir() if "writing" in path.name]
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert loaded.config.intermediate_size % 4 == 0 and AutoTokenizer.from_pretrained(output)("w5")["input_ids"] == [5]
    with torch.no_grad():
        batch = tiny_batch(labels=False)
        assert torch.allclose(loaded(**batch).logits, model(**batch).logits, atol=1e-5)


def test_decilm(pruned, tmp_path):
    _, folder = pruned
    main("export", *flags(model=folder, format="decilm", output=tmp_path / "out", dtype="bfloat16"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True).block_configs) == 3
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gguf"}, "not of the kind|not WordLevel"),  # the tokenizer
        ({"format": "gguf", "quantize": "Q9"}, "^2$"),  # as argparse tells it
        ({"format": "gguf", "tokenizer_gguf": "nowhere.gguf"}, "there is no file nowhere.gguf"),
        ({"format": "gguf", "multiple_of": 4}, "--multiple_of is for --format plain, not for gguf"),
        ({"format": "decilm", "quantize": "Q8_0"}, "--quantize is for --format gguf, not for decilm"),
        ({"format": "plain", "model": "nowhere/at/all"}, "there is no folder"),
    ],
)
def test_what_is_refused(changes, message, pruned, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main("export", *flags(**{"model": pruned[1], "output": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer(tmp_path):
    """transformers 5 would make an empty one."""
    model = tiny_model("llama", task="CausalLM")
    apply_plan(model, random_plan(model, 1)).save_pretrained(tmp_path / "pruned")
    with pytest.raises(SystemExit, match="holds the tokenizer"):
        main("export", *flags(model=tmp_path / "pruned", format="gguf", output=tmp_path / "m.gguf"))
