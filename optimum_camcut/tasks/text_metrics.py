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
"""Metrics of texts against one reference each, which no library has to be there for."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence


CHRF_LENGTH, CHRF_BETA = 6, 2


def words_of(text: str) -> list[str]:
    """In lower case, without punctuation but apostrophes inside a word. A letter is the same however it is written
    (composed or not, of whatever width), and marks of vowels count."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).replace("\u2019", "'")
    kept = (
        letter if letter == "'" or unicodedata.category(letter)[0] in "LMN" else _instead(letter) for letter in text
    )
    return [word for word in (each.strip("'") for each in "".join(kept).split()) if word]


def _instead(letter: str) -> str:
    """Nothing for what is not seen (joiners, soft hyphens), a space for other punctuation."""
    return "" if unicodedata.category(letter) == "Cf" else " "


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items must be inserted, removed or replaced to make one sequence of the other."""
    row = list(range(len(other) + 1))
    for number, item in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, each in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (item != each))
    return row[-1]


def error_rates(predicted: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer`: edits of all words, and of all their characters, over how many the references have; capitals
    and punctuation do not count. 1 for every edit where the references have none."""
    edits, totals = Counter[str](), Counter[str]()
    for guess, reference in zip(predicted, true):
        pairs = {"wer": (words_of(guess), words_of(reference))}
        pairs["cer"] = (list(" ".join(pairs["wer"][0])), list(" ".join(pairs["wer"][1])))
        for name, (mine, theirs) in pairs.items():
            edits[name] += edit_distance(mine, theirs)
            totals[name] += len(theirs)
    return {name: edits[name] / max(totals[name], 1) for name in ("wer", "cer")}


def rouge(predicted: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """`rougeL`, `rouge1` and `rouge2` (Lin, 2004): F1 of the longest common subsequence, of words and of pairs of
    words; the mean over examples, from 0 to 1. Words are not stemmed."""
    sums = dict.fromkeys(("rougeL", "rouge1", "rouge2"), 0.0)
    for guess, reference in zip(map(words_of, predicted), map(words_of, true)):
        sums["rougeL"] += _f1(_common(guess, reference), len(guess), len(reference))
        for size in (1, 2):
            mine, theirs = _grams(guess, size), _grams(reference, size)
            sums[f"rouge{size}"] += _f1((mine & theirs).total(), mine.total(), theirs.total())
    return {name: sums[name] / max(len(true), 1) for name in sums}


def chrf(predicted: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """`chrf` (Popović, 2015), from 0 to 1: F2 of sequences of 1 to 6 characters without spaces, counted over all
    examples; the mean over the lengths that both sides have."""
    found = []
    for size in range(1, CHRF_LENGTH + 1):
        hits = mine = theirs = 0
        for guess, reference in zip(predicted, true):
            one, other = (_grams("".join(text.split()), size) for text in (guess, reference))
            hits, mine, theirs = hits + (one & other).total(), mine + one.total(), theirs + other.total()
        if mine and theirs:
            found.append((hits / mine, hits / theirs))
    if not found:
        return {"chrf": 0.0}
    precision, recall = (sum(each) / len(found) for each in zip(*found))
    weight = CHRF_BETA**2
    return {"chrf": (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0}


def _grams(items: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[start : start + size]) for start in range(len(items) - size + 1))


def _f1(hits: int, mine: int, theirs: int) -> float:
    return 2 * hits / (mine + theirs) if mine + theirs else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for item in one:
        before = 0
        for place, each in enumerate(other, 1):
            before, row[place] = row[place], before + 1 if item == each else max(row[place], row[place - 1])
    return row[-1]
