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
"""`optimum-cli camcut evaluate`: what lm-evaluation-harness measures, against sums of log-likelihoods by hand."""

import json
import math
import subprocess
import sys

import pytest
import torch
import yaml
from command_line import flags, main
from models import random_plan, tiny_config
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from optimum_camcut import apply_plan, load_pruned


pytestmark = pytest.mark.once
TEXT = "the war was in the city. what is the name of the first state?"
QUESTIONS = [("the war was in", ["the city", "a name"], 0), ("what is", ["first", "the year of war"], 1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense decoder, the same with uneven layers, a text, and a task of one's own."""
    folder = tmp_path_factory.mktemp("evaluate")
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *sorted(ByteLevel.alphabet())])}
    letters = Tokenizer(BPE(vocabulary, merges=[]))
    letters.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        tiny_config("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder / "dense")
    apply_plan(model, random_plan(model, 1)).save_pretrained(folder / "pruned")
    for name in ("dense", "pruned"):
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(TEXT)
    rows = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    task = {
        "task": "own_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text(yaml.safe_dump(task))
    return folder


@torch.no_grad()
def log_likelihood(model, before, ids):
    """Of tokens, given those before."""
    logits = model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(before) - 1 + i, token] for i, token in enumerate(ids)))


def test_a_text_and_a_task_by_hand(folders, tmp_path, capsys):
    output = tmp_path / "new" / "found.json"
    main("evaluate", *flags(model=folders / "pruned", dense=folders / "dense", text=[folders / "text.txt"]),
         *flags(tasks=["own_questions"], task_folder=folders / "tasks", batch_size=2, output=output))  # fmt: skip
    results = json.loads(output.read_text())["results"]
    assert list(results) == [str(folders / "dense"), str(folders / "pruned")]
    tokenizer = AutoTokenizer.from_pretrained(folders / "dense")
    models = [AutoModelForCausalLM.from_pretrained(folders / "dense").eval(), load_pruned(folders / "pruned")]
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    printed = capsys.readouterr().out
    name = str(folders / "text.txt")
    for model, found in zip(models, results.values()):
        loss = -log_likelihood(model, [tokenizer.bos_token_id], ids)
        assert found[name]["byte_perplexity"] == pytest.approx(math.exp(loss / len(TEXT)), rel=1e-4)
        assert found[name]["word_perplexity"] == pytest.approx(math.exp(loss / len(TEXT.split())), rel=1e-4)
        assert f"{found[name]['byte_perplexity']:.4g}" in printed
        right = 0
        for question, choices, answer in QUESTIONS:
            before = tokenizer(question, add_special_tokens=False)["input_ids"]
            chances = []
            for choice in choices:
                whole = tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]
                chances.append(log_likelihood(model, before, whole[len(before) :]))
            right += chances.index(max(chances)) == answer
        assert found["own_questions"]["acc"] == right / 2 and "acc_stderr" in found["own_questions"]
    assert results[str(folders / "dense")][name] != results[str(folders / "pruned")][name]


def test_a_shorter_window_knows_less_of_the_text(folders, tmp_path, caplog):
    found = {}
    for length in (4, 64):
        output = tmp_path / f"{length}.json"
        main("evaluate", *flags(model=folders / "dense", text=[folders / "text.txt"], max_length=length),
             *flags(output=output))  # fmt: skip
        found[length] = json.loads(output.read_text())["results"][str(folders / "dense")][str(folders / "text.txt")]
    assert found[4] != found[64] and "was made for" not in caplog.text
    main("evaluate", *flags(model=folders / "dense", text=[folders / "text.txt"], max_length=4096))
    assert "tokens at most, not 4096 (--max_length)" in caplog.text


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as raised:
        main("evaluate", *arguments)
    code = raised.value.code
    return code if isinstance(code, str) else capsys.readouterr().err


def test_what_cannot_be_measured_is_told(folders, model_path, tmp_path, capsys):
    text = flags(text=[folders / "text.txt"])
    assert "required: --tasks (or --text)" in refused(capsys, *flags(model=folders / "dense"))
    told = refused(capsys, *flags(model=folders / "dense", tasks=["hellaswagg"]))
    assert "has no task hellaswagg" in told and "did you mean 'hellaswag'?" in told
    assert "no file gone.txt to read" in refused(capsys, *flags(model=folders / "dense", text=["gone.txt"]))
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert "empty.txt holds no text (--text)" in refused(capsys, *flags(model=folders / "dense", text=[empty]))
    assert "binary.txt is no text in UTF-8" in refused(capsys, *flags(model=folders / "dense", text=[binary]))
    assert "no folder gone (--task_folder)" in refused(
        capsys, *flags(model=folders / "dense", task_folder="gone"), *text
    )
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(model_path).save_pretrained(encoder)
    assert "is a BertModel, and evaluate is for models that write text" in refused(
        capsys, *flags(model=encoder), *text
    )
    (tmp_path / "there.json").touch()
    assert "is there already" in refused(
        capsys, *flags(model=folders / "dense", output=tmp_path / "there.json"), *text
    )


def test_without_the_extra_it_says_what_to_install(folders):
    code = (
        "import sys; sys.modules['lm_eval'] = None; sys.argv[0] = 'optimum-cli';"
        "from optimum.commands.optimum_cli import main; main()"
    )
    arguments = ["camcut", "evaluate", *flags(model=folders / "dense", text=[folders / "text.txt"])]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'evaluate needs lm-evaluation-harness: pip install "optimum-camcut[evaluate]"' in done.stderr
