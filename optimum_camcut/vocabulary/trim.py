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
"""`trim_tokenizer`: a tokenizer without some of its tokens."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures.vocabulary import VOCABULARY
from ..utils.files import read_json, write_json
from .pieces import Pieces


if TYPE_CHECKING:
    from ..planning.plan import PruningPlan

logger = logging.getLogger(__name__)

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
FROM = "trimmed_from"  # setting of a trimmed tokenizer: embeddings that there were before each cut
SET_LATER = ("padding_side", "truncation_side", "model_max_length", "chat_template", "model_input_names")
TEXTS_AT_ONCE = 1000


def trim_tokenizer(tokenizer: Any, plan: PruningPlan, texts: Iterable[str] = ()) -> Any:
    """Makes a tokenizer without the tokens that a plan removes, for the model that the plan has cut.

    Text whose tokens all stay gets the same tokens, by their new numbers. Other text is written by smaller tokens.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): of the uncut model, also where this is cut once more. It stays as it is.
        plan (`PruningPlan`): made of the scores that `with_tokenizer` gave; or the `pruning_plan` of the cut model.
        texts (`Iterable[str]`, *optional*): to be tokenized by both, and compared.

    Returns:
        A tokenizer of the same class.

    Raises:
        `TypeError`: a slow tokenizer.
        `ValueError`: the plan removes no tokens, or one that the tokenizer cannot do without, which the message names;
            it counts from before an earlier cut, and the tokenizer is the one trimmed then; or a text of which all
            tokens stay gets other ones.
    """
    if VOCABULARY not in plan.keep:
        raise ValueError(f"the plan removes no tokens: it has no group {VOCABULARY!r}")
    if VOCABULARY not in plan.sizes:
        raise ValueError(
            "the plan does not know how many tokens there were: take model.pruning_plan after apply_plan, or give "
            f"sizes={{{VOCABULARY!r}: ...}}, the rows of the embeddings"
        )
    return trimmed(tokenizer, plan.keep[VOCABULARY], plan.sizes[VOCABULARY], texts)


def trimmed(tokenizer: Any, keep: Sequence[int], rows: int, texts: Iterable[str] = ()) -> Any:
    """`trim_tokenizer` by the numbers of the tokens that stay, ascending, of a model with so many embeddings."""
    pieces = Pieces.of(tokenizer)
    before = tokenizer.init_kwargs.get(FROM, [])
    if rows in before:
        raise ValueError(
            f"the plan numbers the {rows} tokens of the uncut model, and this tokenizer has lost some of them: give "
            "the tokenizer of the uncut model"
        )
    new = new_numbers(pieces, keep, rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for stale in {*tokenizer.vocab_files_names.values(), "added_tokens.json"} - {TOKENIZER}:
            (folder / stale).unlink(missing_ok=True)  # what slow tokenizers would be made from
        write_json(folder / TOKENIZER, _renumbered(pieces.data, new))
        settings = read_json(folder / SETTINGS)
        if "added_tokens_decoder" in settings:
            added = settings["added_tokens_decoder"].items()
            settings["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in added}
        write_json(folder / SETTINGS, settings)
        result = type(tokenizer).from_pretrained(folder)
    result.name_or_path = tokenizer.name_or_path
    result.init_kwargs |= {"name_or_path": tokenizer.name_or_path, FROM: [*before, rows]}
    for name in SET_LATER:
        setattr(result, name, getattr(tokenizer, name))
    found, expected = result.get_vocab(), {token: new[old] for token, old in pieces.numbers.items() if old in new}
    other = {token: number for token, number in expected.items() if found.get(token) != number}
    if other or len(found) != len(expected):
        token = min(other or set(found) - set(expected))
        raise ValueError(
            f"{type(tokenizer).__name__} numbers its tokens by itself: without those that go, {token!r} should be "
            f"{expected.get(token)} and is {found.get(token)}"
        )
    _compare(tokenizer, result, new, texts)
    return result


def check_trimmable(tokenizer: Any, rows: int) -> list[int]:
    """Numbers of the tokens that a tokenizer cannot do without, of a model with so many embeddings.

    Raises:
        `TypeError`: a slow tokenizer.
        `ValueError`: one that cannot lose all others.
    """
    pieces = Pieces.of(tokenizer)
    always = pieces.always()
    parts = pieces.parts([token for token, number in pieces.ids.items() if number in always])
    always |= {pieces.ids[part] for made in parts.values() for part in made}
    keep = sorted(number for number in always if number < rows)
    trimmed(tokenizer, keep, rows)
    return keep


def new_numbers(pieces: Pieces, keep: Sequence[int], rows: int) -> dict[int, int]:
    """Old number -> new one, of the tokens that stay.

    Args:
        keep: ascending.
        rows: embeddings that there were. Tokens beyond, which have none, stay beyond.

    Raises:
        `ValueError`: one goes that the tokenizer cannot do without, or an embedding without a token would stay between
            others.
    """
    names = {number: token for token, number in pieces.numbers.items()}
    new = {int(old): number for number, old in enumerate(keep)}
    beyond = sorted(number for number in names if number >= rows)
    new |= {old: len(keep) + number for number, old in enumerate(beyond)}
    advice = "score with the tokenizer's needs in mind: `scores = with_tokenizer(scores, tokenizer)`"
    gone = sorted(number for number in pieces.always() if number not in new)
    if gone:
        raise ValueError(
            f"the plan removes {names[gone[0]]!r} (number {gone[0]}), which the tokenizer cannot do without: it is a "
            f"special or added token, or a byte or character that other text is written by; {advice}"
        )
    for token, parts in pieces.parts([token for token, number in pieces.ids.items() if number in new]).items():
        lacking = sorted(part for part in parts if pieces.ids[part] not in new)
        if lacking:
            raise ValueError(f"the plan removes {lacking[0]!r}, which {token!r} is merged from; {advice}")
    last = max(number for number in names if number in new)
    bare = [number for number in new if number < last and number not in names]
    if bare:
        raise ValueError(
            f"the plan keeps the embedding {bare[0]}, which no token has, between those of tokens: remove it; {advice}"
        )
    return new


def _renumbered(data: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The tokenizer as `tokenizers` writes it, of the tokens that stay."""
    renumbered: dict[str, Any] = copy.deepcopy(dict(data))
    model = renumbered["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        kept = model["vocab"]
        model["merges"] = [[a, b] for a, b in pairs if a in kept and b in kept and a + b in kept]
    for token in renumbered["added_tokens"]:
        token["id"] = new[token["id"]]
    if renumbered["padding"] is not None:
        renumbered["padding"]["pad_id"] = new[renumbered["padding"]["pad_id"]]
    _renumber_processor(renumbered["post_processor"] or {}, new)
    return renumbered


def _renumber_processor(processor: Mapping[str, Any], new: Mapping[int, int]) -> None:
    """What is put around a text, in place."""
    for each in processor.get("processors", ()):
        _renumber_processor(each, new)
    for special in processor["special_tokens"].values() if processor.get("type") == "TemplateProcessing" else ():
        special["ids"] = [new[number] for number in special["ids"]]
    for name in ("sep", "cls"):  # of BERT and of RoBERTa
        if name in processor:
            processor[name][1] = new[processor[name][1]]


def encoded(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """The tokens of each text, without those around it, however many they are."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == TEXTS_AT_ONCE:
            yield from (each.ids for each in backend.encode_batch(batch, add_special_tokens=False))
            batch = []
    yield from (each.ids for each in backend.encode_batch(batch, add_special_tokens=False))


def _compare(old: Any, result: Any, new: Mapping[int, int], texts: Iterable[str]) -> None:
    """Raises `ValueError` if a text of which all tokens stay gets other tokens than before."""
    texts = list(texts)
    for text, before, after in zip(texts, encoded(old, texts), encoded(result, texts)):
        if all(number in new for number in before) and [new[number] for number in before] != after:
            raise ValueError(
                f"{text[:200]!r} was {old.convert_ids_to_tokens(before)[:50]}, of which all stay, and would be "
                f"{result.convert_ids_to_tokens(after)[:50]}: this tokenizer cannot be trimmed"
            )


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> int:
    """How many tokens texts take."""
    return sum(map(len, encoded(tokenizer, texts)))
