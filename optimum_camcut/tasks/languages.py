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
"""Languages of translation models that are told them by tokens: mBART, NLLB, M2M100 and those like them."""

from __future__ import annotations

import logging
import re
from typing import Any


logger = logging.getLogger(__name__)

CODE = r"_*[a-z]{2,3}(_[A-Za-z]{2,4})?_*"  # eng_Latn, de_DE, __en__
ROTATING = ("mbart", "plbart")  # the last token of their labels is the first that the decoder reads


def language_codes(tokenizer: Any) -> dict[str, str]:
    """The codes of the languages that a tokenizer has tokens for, without underscores around them, and as it calls
    them; none if it is not told languages."""
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        return {}
    own = getattr(tokenizer, "lang_code_to_id", None)
    found = own or [token for token in tokenizer.all_special_tokens if re.fullmatch(CODE, token)]
    return {code.strip("_"): code for code in found}


def code_of(language: str, codes: dict[str, str]) -> str | None:
    """The code of a language: by its name, or by the part before the underscore where one code alone has it."""
    names = {code.lower(): code for code in codes.values()} | {name.lower(): code for name, code in codes.items()}
    wanted = language.lower().replace("-", "_")
    if wanted in names:
        return names[wanted]
    fitting = [code for name, code in codes.items() if name.lower().split("_")[0] == wanted]
    return fitting[0] if len(fitting) == 1 else None


def set_languages(model: Any, tokenizer: Any, source: str, target: str) -> None:
    """Lets a tokenizer mark texts by their languages, and a model write in the right one.

    Args:
        source: a code as the tokenizer has it.
        target: likewise.

    Raises:
        `ValueError`: the tokenizer puts the code where the model does not look for it.
    """
    tokenizer.src_lang, tokenizer.tgt_lang = source, target
    known = getattr(tokenizer, "lang_code_to_id", None) or {}
    code = known[target] if target in known else tokenizer.convert_tokens_to_ids(target)
    labels, generation = tokenizer(text_target="")["input_ids"], model.generation_config
    if labels[-1] == code and model.config.model_type in ROTATING:
        generation.decoder_start_token_id = model.config.decoder_start_token_id = code
        generation.forced_bos_token_id = None
    elif labels[0] == code:
        generation.forced_bos_token_id = code
    else:
        raise ValueError(
            f"the tokenizer does not put the language code {target} before a text to write, where "
            f"{model.config.model_type} models have it (NLLB: legacy_behaviour=False)"
        )
    logger.info("texts to read are marked as %s, those to write as %s", source, target)


def unknown_language(language: str, codes: dict[str, str]) -> ValueError:
    """What to say of a language without a code."""
    fitting = [name for name in codes if name.lower().split("_")[0] == language.lower()]
    problem = f"has several codes for {language!r}: {', '.join(fitting)}" if fitting else f"has none for {language!r}"
    told = ", ".join(list(codes)[:30]) + (", ..." if len(codes) > 30 else "")
    return ValueError(
        f"the tokenizer marks texts by codes of languages, and {problem}; call the texts in the data as it calls "
        f'their languages ({{"translation": {{CODE: ..., CODE: ...}}}}, or two columns): {told}'
    )
