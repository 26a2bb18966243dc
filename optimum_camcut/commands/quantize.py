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
"""`prune --quantize`: the pruned model in fewer bits, measured beside the others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .job import Job


KINDS = ("int8", "int4")
GROUP = 128  # weights that share a scale, in 4 bits


def check_quantize(kind: str | None, processes: int) -> None:
    """Raises an error if weights cannot be quantized here, before any work is done."""
    if kind is None:
        return
    import importlib.util

    import torch
    import transformers

    if importlib.util.find_spec("torchao") is None:
        raise ImportError("--quantize needs torchao: pip install torchao")
    if transformers.__version__.startswith("4."):
        raise ValueError("--quantize needs transformers 5: 4 cannot save what torchao has quantized as safetensors")
    if processes > 1:
        raise ValueError("--quantize runs in one process: quantize what several have pruned by load_pruned(...)")
    if kind == "int4" and not torch.cuda.is_available():
        raise ValueError(
            "torchao packs 4 bits on GPUs alone, and there is none here; for language models on a CPU, "
            "`optimum-cli camcut export --format gguf --quantize Q4_0` writes them"
        )


def quantize(job: Job, pruned: Path, kind: str) -> tuple[Any, Path]:
    """Quantizes the weights of a pruned checkpoint, saves it in a folder of that, and returns the model and the
    folder."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    from ..checkpoints.checkpoint import load_pruned

    config = Int8WeightOnlyConfig() if kind == "int8" else Int4WeightOnlyConfig(group_size=GROUP)
    options = {"dtype": job.model.dtype, "device_map": str(job.model.device)}
    model = load_pruned(pruned, quantization_config=TorchAoConfig(config), **options)
    folder = pruned / kind
    model.save_pretrained(folder)
    if job.trainer.processing_class is not None:
        job.trainer.processing_class.save_pretrained(folder)
    return model, folder


def evaluate(job: Job, model: Any) -> dict[str, float]:
    """Metrics of another model, as those of the job's own are measured; its records stay as they are."""
    trainer = job.trainer
    before = trainer.model, trainer.model_wrapped
    prepared, trainer.accelerator._models = trainer.accelerator._models, []
    trainer.model = trainer.model_wrapped = model
    try:
        return job.evaluate(copy.copy(trainer.eval_dataset))
    finally:
        trainer.model, trainer.model_wrapped = before
        trainer.accelerator._models = prepared
