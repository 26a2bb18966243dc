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
"""`optimum-cli camcut export`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimum.commands.base import CommandInfo

from ..export.kinds import OTHERS, OWN
from .command import Command
from .job import check_model
from .options import Option
from .output import check_file, check_output, quiet


logger = logging.getLogger(__name__)

# Of a checkpoint that was in the folder before.
LEFT_BY_OTHERS = ("model*.safetensors*", "modeling_camcut.py", "configuration_decilm.py", "pruning_*", "README.md")


class ExportCommand(Command):
    COMMAND = CommandInfo(name="export", help="Write a pruned model for engines that do not run transformers.")
    DESCRIPTION = f"""
Writes a pruned model in the format of another engine. ONNX and OpenVINO are for `optimum-cli export`, which takes
pruned models as they are.

  gguf    one file for llama.cpp, of decoders like llama; --quantize takes {", ".join(OWN)}
          (or Q4_K_M and others, by llama-cpp-python)
  decilm  a folder for vLLM (--trust-remote-code), of decoders like llama
  plain   an ordinary checkpoint of any model, for whatever takes those: smaller layers are filled up with zeros

  optimum-cli camcut export --model outputs/llama --format gguf --quantize Q8_0 --output llama-q8.gguf
"""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return (
            Option("model", "The pruned model: a folder or a Hub id.", required=True),
            Option("revision", "Its branch, tag or commit on the Hub."),
            Option("format", "What to write.", required=True, choices=("gguf", "decilm", "plain")),
            Option("output", "File to write, or folder.", required=True),
            Option("dtype", "Of the weights. Default: as they are.", choices=("float32", "bfloat16", "float16")),
            Option("quantize", "gguf: kind of numbers. Default: as they are.", choices=(*OWN, *OTHERS)),
            Option("tokenizer_gguf", "gguf: another GGUF file to take the tokenizer from, the dense model's, say."),
            Option("multiple_of", "plain: fill neurons up to a multiple of it.", kind=int, least=1),
            Option("all_heads", "plain: fill heads up to those before the cut, for optimum-onnx.", kind=bool),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        own = {"gguf": ("quantize", "tokenizer_gguf"), "plain": ("multiple_of", "all_heads"), "decilm": ()}
        for kind, names in own.items():
            for name in names:
                if kind != arguments.format and getattr(arguments, name) is not None:
                    raise ValueError(f"--{name} is for --format {kind}, not for {arguments.format}")
        if arguments.format == "gguf":
            if Path(arguments.output).is_dir():
                raise ValueError(f"the output {arguments.output} is a folder; name a file")
            check_file(Path(arguments.output), arguments.overwrite)
            if arguments.tokenizer_gguf and not Path(arguments.tokenizer_gguf).is_file():
                raise FileNotFoundError(f"there is no file {arguments.tokenizer_gguf} (--tokenizer_gguf)")
        else:
            check_output(arguments.output, arguments.overwrite, arguments.model)
        check_model(arguments.model, arguments.revision)
        quiet(arguments.verbose)
        import torch

        from ..planning.measure import count_parameters
        from ..tasks.models import load_model

        dtype = getattr(torch, arguments.dtype) if arguments.dtype else "auto"
        model = load_model(arguments.model, dtype=dtype, revision=arguments.revision)
        if getattr(model, "hf_quantizer", None) is not None:
            raise ValueError(f"{arguments.model} is quantized: export the pruned model that it was made from")
        tokenizer = _tokenizer(arguments)
        print(f"{count_parameters(model):,} parameters of {arguments.model}")
        self._write(model, tokenizer, arguments)
        print(f"Written to {arguments.output}.")

    def _write(self, model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
        output = Path(arguments.output)
        if arguments.format == "gguf":
            from ..export.gguf import export_gguf

            export_gguf(
                model,
                output,
                tokenizer=tokenizer,
                tokenizer_gguf=arguments.tokenizer_gguf,
                quantize=arguments.quantize,
                disable_tqdm=not sys.stderr.isatty(),
            )
            print(f"{output.stat().st_size / 1e6:,.1f} MB")
            return
        with _replacing_folder(output) as folder:
            if arguments.format == "decilm":
                from ..export.decilm import export_decilm

                export_decilm(model, folder)
            else:
                from ..export.plain import fill_up
                from ..planning.measure import count_parameters
                from ..planning.twin import dense_shapes

                filled = fill_up(model, arguments.multiple_of or 1, bool(arguments.all_heads))
                print(f"{count_parameters(filled):,} parameters with the zeros")
                before = count_parameters(dense_shapes(model))
                print(f"{count_parameters(filled) / before:.0%} of the dense model's")
                filled.save_pretrained(folder)
            if tokenizer is None:
                logger.warning("%s has no tokenizer to save beside the model", arguments.model)
            else:
                tokenizer.save_pretrained(folder)


@contextmanager
def _replacing_folder(output: Path) -> Iterator[Path]:
    """Gives a temporary folder, whose files go to `output` when all are written. What an earlier model has left there
    goes, and nothing else."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.writing-") as folder:
        yield Path(folder)
        output.mkdir(exist_ok=True)
        for pattern in LEFT_BY_OTHERS:
            for path in output.glob(pattern):
                path.unlink()
        for path in Path(folder).iterdir():
            os.replace(path, output / path.name)


def _tokenizer(arguments: argparse.Namespace) -> Any:
    """The model's own, or what processes images or sound in its place, if there is one."""
    from transformers import AutoProcessor, AutoTokenizer

    for kind in (AutoTokenizer, AutoProcessor):
        try:
            found = kind.from_pretrained(arguments.model, revision=arguments.revision or "main")
        except (OSError, ValueError, KeyError):
            continue
        if kind is not AutoTokenizer or len(found) > len(found.all_special_tokens):  # transformers 5 makes empty ones
            return found
    return None
