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
"""Models that transformers read from GGUF files."""

from __future__ import annotations

from typing import Any


def forget_gguf(model: Any) -> None:
    """transformers 5 calls a model from a GGUF file quantized, which it neither trains nor saves, even where it has
    unpacked all weights. Such a model is made an ordinary one.

    Raises:
        `ValueError`: its weights are still packed.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or getattr(quantizer.quantization_config, "quant_method", None) != "gguf":
        return
    if getattr(quantizer, "quantized", None) or getattr(quantizer, "packed_modules", None):
        raise ValueError(
            "the weights of the model are packed as in its GGUF file, and cannot be cut so: load it with "
            "quantization_config=GgufConfig(dequantize=True) of transformers"
        )
    model.hf_quantizer, model.is_quantized = None, False
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        vars(owner).pop(name, None)
