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
"""What stands in, on this machine, for what the pages name: tiny models and a few rows, in folders of the same names.

A library that is given a name looks for a folder of this name first. So the blocks run as they stand.
"""

import random
from pathlib import Path

import media
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from models import tiny_config
from transformers import AutoTokenizer


# Of every model: what it is loaded as, and its architecture.
MODELS = {
    "MODEL": ("SequenceClassification", "bert"),
    "FOUR_LAYERS": ("SequenceClassification", "bert"),
    "google-bert/bert-base-uncased": ("MaskedLM", "bert"),
    "sentence-transformers/all-MiniLM-L6-v2": ("", "bert"),
    "google-bert/bert-base-cased": ("MaskedLM", "bert"),
    "distilbert/distilbert-base-uncased": ("MaskedLM", "distilbert"),
    "openai-community/gpt2": ("CausalLM", "gpt2"),
    "meta-llama/Llama-2-7b-hf": ("CausalLM", "llama"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("CausalLM", "llama"),
    "google-t5/t5-small": ("Seq2SeqLM", "t5"),
}
MEDIA = {
    "nateraw/vit-base-beans": media.make_image_classifier,
    "superb/wav2vec2-base-superb-ks": media.make_audio_classifier,
    "openai/whisper-tiny.en": media.make_whisper,
    "facebook/wav2vec2-base-960h": media.make_ctc,
    "photos": media.write_images,
    "sounds": media.write_recordings,
    "speech": media.write_speech,
}
SIZES = {
    "bert": {"num_hidden_layers": 2, "intermediate_size": 320, "max_position_embeddings": 512},
    "distilbert": {"n_layers": 2, "hidden_dim": 320, "max_position_embeddings": 512},
    "gpt2": {"n_layer": 2, "n_inner": 320, "n_positions": 512},
    "llama": {"num_hidden_layers": 2, "intermediate_size": 320, "max_position_embeddings": 2048},
}
SIZES["t5"] = {"d_ff": 320, "num_layers": 2, "decoder_start_token_id": 0}
ROWS = {"train": 16, "validation": 8}
WORDS = {0: ["war", "state", "city", "year"], 1: ["name", "first", "what", "is"]}
CLASSES = {"label": ClassLabel(names=["negative", "positive"]), "idx": Value("int32")}
TAGS = Sequence(ClassLabel(names=["O", "B-PER", "I-PER"]))
ANSWERS = {"text": Sequence(Value("string")), "answer_start": Sequence(Value("int32"))}
FEATURES = {
    "nyu-mll/glue:sst2": Features({"sentence": Value("string"), **CLASSES}),
    "nyu-mll/glue:mrpc": Features({"sentence1": Value("string"), "sentence2": Value("string"), **CLASSES}),
    "nyu-mll/glue:stsb": Features(
        {"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("float32"), "idx": Value("int32")}
    ),
    "unimelb-nlp/wikiann:en": Features({"tokens": Sequence(Value("string")), "ner_tags": TAGS}),
    "rajpurkar/squad": Features({"question": Value("string"), "context": Value("string"), "answers": ANSWERS}),
    "EdinburghNLP/xsum": Features({"document": Value("string"), "summary": Value("string")}),
    "Salesforce/wikitext:wikitext-2-raw-v1": Features({"text": Value("string")}),
    "HuggingFaceTB/smoltalk:all": Features({"messages": [{"role": Value("string"), "content": Value("string")}]}),
}
FILES = ("wiki.valid.txt", "wiki.test.txt")  # of lines
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def make_stand_ins(folder: Path, tokenizer_path: Path) -> None:
    """Writes all models and data sets."""
    for name, (task, architecture) in MODELS.items():
        make_model(folder / name, task, architecture, tokenizer_path)
    for name, make in MEDIA.items():
        make(folder / name)
    for name in FEATURES:
        make_data(folder, name)
    for name in FILES:
        draw = random.Random(name)
        (folder / name).write_text("".join(f"{cell('text', number, draw)}\n" for number in range(32)))


def make_model(folder: Path, task: str, architecture: str, tokenizer_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, model_max_length=512)
    if architecture != "bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if task == "CausalLM":
        tokenizer.eos_token, tokenizer.chat_template = "[SEP]", TEMPLATE
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    if folder.name == "FOUR_LAYERS":
        ids["num_hidden_layers"] = 4
    config = tiny_config(architecture, vocab_size=len(tokenizer), num_labels=2, **{**SIZES[architecture], **ids})
    model = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel").from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(folder: Path, name: str) -> None:
    """`owner/name:configuration` is a folder for the command line; for `datasets`, `owner/name` has configurations."""
    plain, _, configuration = name.partition(":")
    where = folder / plain / configuration
    where.mkdir(parents=True)
    for split, count in ROWS.items():
        draw = random.Random(split)
        rows = [{column: cell(column, number, draw) for column in FEATURES[name]} for number in range(count)]
        Dataset.from_list(rows, features=FEATURES[name]).to_parquet(str(where / f"{split}.parquet"))
    if not configuration:
        return
    (folder / name).symlink_to(where)
    names = sorted(each.name for each in (folder / plain).iterdir() if each.is_dir())
    lines = [f"- config_name: {each}\n  data_dir: {each}\n" for each in names]
    (folder / plain / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")


def cell(column: str, number: int, draw: random.Random):
    """Words tell the class; every fourth text of a corpus is an empty line, as in WikiText."""
    kind = number % 2
    words = [draw.choice(WORDS[kind]) for _ in range(6)]
    if column == "text":
        return "" if number % 4 == 3 else " ".join(words)
    return {
        "label": kind,
        "idx": number,
        "tokens": words,
        "ner_tags": [0, 1, 2, 0, 1, 2],
        "answers": {"text": ["city"], "answer_start": [10]},
        "messages": [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": "the city"}],
        "context": "the first city is " + " ".join(words),
    }.get(column, " ".join(words))
