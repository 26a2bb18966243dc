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
"""Tokens by the numbers that they have after a cut, in examples and batches that were made before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .pieces import Pieces
from .trim import new_numbers


logger = logging.getLogger(__name__)

IDS = ("input_ids", "decoder_input_ids")
LABELS = "labels"
IGNORED = -100
# What would no longer fit longer examples.
BY_PLACE = ("start_positions", "end_positions", "offset_mapping", "position_ids")
OF_EACH = ("attention_mask", "token_type_ids", "special_tokens_mask", LABELS)  # what a token has, and its parts get


def _whole(values: Sequence[Any]) -> Iterator[int]:
    """The numbers of a list; nothing of one that holds lists."""
    return (each for each in values if isinstance(each, int))


class NewNumbers(dict[str, Any]):
    """A batch whose tokens have their new numbers."""


class Renumbering:
    """From the tokens of data to those of a model that has lost some, and back.

    A token that is gone is first written out by others, in each example, if that has nothing that goes by places in
    it. In a batch, what is still gone is read as the longest token left that it begins with.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): the data's.
        keep (`Sequence[int]`): those of its tokens that stay, ascending.
        rows (`int`): embeddings that the model had.
        writes (`bool`): labels are tokens.
        apart (`bool`): labels are a text of their own, which a decoder writes.
    """

    def __init__(
        self, tokenizer: Any, keep: Sequence[int], rows: int, writes: bool = False, apart: bool = False
    ) -> None:
        self.tokenizer, self.keep, self.rows, self.writes, self.apart = tokenizer, list(keep), rows, writes, apart
        self._pieces = Pieces.of(tokenizer)
        new = new_numbers(self._pieces, keep, rows)
        size = max(rows, *(number + 1 for number in self._pieces.numbers.values()))
        self._old = {token: number for token, number in self._pieces.numbers.items() if number in new}
        self._names = {number: token for token, number in self._pieces.ids.items() if number not in new}
        self._spelled: dict[int, list[int]] = {}
        self._special = {*self._pieces.added.values(), *tokenizer.all_special_ids}
        self._told = False
        self.kept = torch.zeros(size, dtype=torch.bool)
        self.kept[list(new)] = True
        self.table = torch.zeros(size, dtype=torch.int64)  # int64 of shape `(old tokens,)`
        self.table[list(new)] = torch.tensor(list(new.values()))
        for number, token in self._names.items():
            self.table[number] = new[self._old[self._pieces.spelled(token, self._old)[0]]]

    def spell(self, number: int) -> list[int]:
        """A token by those that stay, all by their old numbers."""
        if number not in self._names:
            return [number]
        if number not in self._spelled:
            spelled = self._pieces.spelled(self._names[number], self._old)
            self._spelled[number] = [self._old[token] for token in spelled]
        return self._spelled[number]

    def example(self, example: Any, longest: int) -> Any:
        """An example, of plain lists, without tokens that are gone; as it is if it has none, several texts, or
        something that may go by places in it. Of a token's label, the first of those in its place has it.

        Args:
            longest: tokens that the model takes. The end of a longer text is cut off, but for a special token.
        """
        if not isinstance(example, Mapping) or any(name in example for name in (*BY_PLACE, IDS[1])):
            return example
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in example.items()}
        ids: Any = plain.get(IDS[0])
        own = self.writes and self.apart and isinstance(plain.get(LABELS), list)
        texts = {IDS[0]: ids, **({LABELS: plain[LABELS]} if own else {})}
        if not isinstance(ids, list) or len([*_whole(ids)]) < len(ids):
            return example
        if not any(each in self._names for text in texts.values() for each in text):
            return example
        spelled = {name: [self.spell(number) for number in text] for name, text in texts.items()}
        ends = {name: text[-1:] for name, text in texts.items()}
        for name in set(plain) - set(texts):
            values = plain[name]
            if not isinstance(values, list) or len(values) != len(ids):
                continue
            if name == LABELS and all(isinstance(each, float) for each in values):  # of classes, by chance as many
                continue
            if name not in OF_EACH or len([*_whole(values)]) != len(ids):
                return example
            pairs = zip(values, ids, map(len, spelled[IDS[0]]))
            spelled[name] = [self._labels(*each) if name == LABELS else [each[0]] * each[2] for each in pairs]
        fitting = {name: self._fit(parts, ends.get(name, ids[-1:]), longest) for name, parts in spelled.items()}
        return {**example, **fitting}

    def _fit(self, parts: Sequence[Sequence[int]], end: Sequence[int], longest: int) -> list[int]:
        """What stands for a text, as long as a model takes.

        Args:
            end: the last token, of which a special one stays.
        """
        whole = [each for part in parts for each in part]
        if len(whole) <= longest:
            return whole
        if not self._told:
            self._told = True
            logger.warning(
                "a text is now of %d tokens, and the model takes %d: the last %d are cut off, and so are those of "
                "other texts, of which no more is said",
                len(whole),
                longest,
                len(whole) - longest,
            )
        return [*whole[: longest - 1], whole[-1]] if {*end} & self._special else whole[:longest]

    def _labels(self, label: int, number: int, count: int) -> list[int]:
        if self.writes and label == number:
            return self.spell(number)
        return [label, *[IGNORED] * (count - 1)]

    def batch(self, batch: Mapping[str, Any]) -> NewNumbers:
        """A batch by new numbers. Labels that are gone are ignored, since no model can predict them any more."""
        if isinstance(batch, NewNumbers):
            return batch
        found = NewNumbers(batch)
        for name in IDS:
            if isinstance(found.get(name), Tensor):
                found[name] = self._look_up(found[name], self.table)
        labels = found.get(LABELS)
        if self.writes and isinstance(labels, Tensor):
            new = self._look_up(labels.clamp(min=0), self.table)
            there = self._look_up(labels.clamp(min=0), self.kept)
            found[LABELS] = torch.where(labels < 0, labels, new.masked_fill(~there, IGNORED))
        return found

    def count_gone(self, batch: Mapping[str, Any]) -> Tensor:
        """How many tokens that a batch reads are gone."""
        ids = batch.get(IDS[0])
        if isinstance(batch, NewNumbers) or not isinstance(ids, Tensor):
            return torch.zeros(())
        return (~self._look_up(ids, self.kept)).sum()

    def back(self, tokens: Tensor) -> Tensor:
        """Tokens by the numbers that they had; what is no token stays."""
        old = torch.tensor(self.keep, device=tokens.device)
        inside = (tokens >= 0) & (tokens < len(old))
        return torch.where(inside, old[tokens.clamp(0, len(old) - 1)], tokens)

    def _look_up(self, ids: Tensor, table: Tensor) -> Tensor:
        return table.to(ids.device)[ids]
