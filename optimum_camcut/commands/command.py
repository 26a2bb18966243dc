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
"""`Command`: from flags and a file to settings, and from errors to one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from optimum.commands.base import BaseOptimumCLICommand

from ..utils.errors import ScoringError
from ..utils.files import nearest
from .options import COMMON, Option
from .settings import read_settings


SECTIONS = ("training",)  # of a config file, beside the flags
PROCESSES = """
Several processes on one machine, with GPUs or without (whatever the flag's name says):
  accelerate launch --multi_gpu --num_processes 2 --module optimum.commands.optimum_cli camcut {name} ...
"""


def set_up_logging(verbose: bool) -> None:
    """What is guessed, and where a run goes on, is told even if nobody asked for it, once and by the first process. So
    is how long each phase took, where there are no progress bars, which are for terminals."""
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(format=f"[%(levelname)s{'|%(name)s' if verbose else ''}] %(message)s", level=level)
    logging.getLogger("optimum_camcut").setLevel(min(level, logging.WARNING))
    phases = [] if sys.stderr.isatty() else ["training.logs"]
    for name in ("commands", "tasks", "training.resume", "scoring.sums", *phases):
        own = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
        logging.getLogger(f"optimum_camcut.{name}").setLevel(own)


class Command(BaseOptimumCLICommand):
    """One of the commands: its flags, its file and its errors."""

    DESCRIPTION: ClassVar[str]
    TOGETHER: ClassVar[bool] = False  # several processes can share the work

    @classmethod
    @abstractmethod
    def options(cls) -> tuple[Option, ...]:
        """Its flags."""

    @classmethod
    def parse_args(cls, parser: argparse.ArgumentParser) -> None:
        required = " ".join(f"--{option.name} {option.name.upper()}" for option in cls.options() if option.required)
        parser.usage = f"%(prog)s {required} [options]"
        parser.description = cls.DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        if cls.TOGETHER:
            parser.epilog = PROCESSES.format(name=parser.prog.rpartition(" ")[2])
        for option in (*cls.options(), *COMMON):
            option.add_to(parser)
        parse = parser.parse_known_args
        known = [f"--{option.name}" for option in (*cls.options(), *COMMON)]

        def parse_known_args(*arguments: Any) -> tuple[argparse.Namespace, list[str]]:
            """Else the parser of `optimum-cli` would tell of unknown flags, with a usage that says nothing."""
            found, unknown = parse(*arguments)
            if unknown:
                near = nearest(unknown[0].partition("=")[0], known)
                parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
            return found, unknown

        parser.parse_known_args = parse_known_args  # type: ignore[assignment,method-assign]  # there is no hook

    def run(self) -> None:
        """Runs the command. Errors that users can put right end it with a line and exit code 1; Ctrl-C ends it with a
        line and exit code 130, as a shell has it."""
        try:
            self._run()
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                print(f"{self.parser.prog}: {self.interrupted()}", file=sys.stderr)
            raise SystemExit(130) from None

    def interrupted(self) -> str:
        """What to tell who stops it."""
        return "interrupted"

    def _run(self) -> None:
        try:
            arguments = self.read()
            verbose = arguments.verbose
            if not self.TOGETHER and int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise ValueError("this command runs in one process: start it without accelerate")
        except (OSError, ValueError) as error:
            raise self.failure(error) from error
        set_up_logging(verbose)
        try:
            self.execute(arguments)
        except (ImportError, OSError, ScoringError, TypeError, ValueError) as error:
            if verbose:
                raise
            raise self.failure(error) from error

    def failure(self, error: Exception) -> SystemExit:
        return SystemExit(f"{self.parser.prog}: error: {' '.join(str(error).split())}")

    @abstractmethod
    def execute(self, arguments: argparse.Namespace) -> None:
        """Does what the command is for."""

    def read(self) -> argparse.Namespace:
        """All flags: from the command line, else from the file, else by default. `given` names the former two."""
        options = {option.name: option for option in (*self.options(), *COMMON)}
        flags = {name: value for name, value in vars(self.args).items() if name in options}
        from_file: dict[str, Any] = {}
        sections: dict[str, Any] = {name: {} for name in SECTIONS}
        if "config" in flags:
            from_file, sections = self._read_file(flags["config"], options)
        if "sparsity" in flags or "compression" in flags:  # one takes the place of the other
            from_file = {name: value for name, value in from_file.items() if name not in ("sparsity", "compression")}
        given = {**from_file, **flags}
        values = {**{name: option.default for name, option in options.items()}, **sections, **given}
        missing = [
            f"--{name}" + (f" (or --{option.unless})" if option.unless else "")
            for name, option in options.items()
            if option.required and values[name] is None and values.get(option.unless) is None
        ]
        if missing:
            self.parser.error(f"the following arguments are required: {', '.join(missing)}")
        for name, option in options.items():
            option.check(values[name])
        return argparse.Namespace(**values, given=given)

    def adapt(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the settings of a file that serves all commands are to this one."""
        return settings

    def _read_file(self, path: str, options: Mapping[str, Option]) -> tuple[dict[str, Any], dict[str, Any]]:
        values = self.adapt(read_settings(path))
        known = set(options).union(
            *({option.name for option in each.options()} for each in Command.__subclasses__()), SECTIONS
        )
        unknown = sorted(set(map(str, values)) - known)
        if unknown:
            near = nearest(unknown[0], known)
            raise ValueError(
                f"{path} has unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}{near}"
            )
        sections = {name: values.get(name) or {} for name in SECTIONS}
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise ValueError(f"{name!r} in {path} should be settings by name, got {section!r}")
        own = [(options[name], value) for name, value in values.items() if name in options and value is not None]
        tokens = [token for option, value in own for token in option.tokens(value)]
        parsed = vars(self.parser.parse_args(tokens))  # values of a wrong kind are told as on the command line
        return {name: parsed[name] for name in options if name in parsed}, sections
