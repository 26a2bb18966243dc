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
"""`optimum-cli camcut score | prune | report | benchmark | compare | evaluate`.

Every call of `optimum-cli` imports this, so torch, transformers and the like are imported where a command runs.
Tables go to the standard output by `print`: they are what these commands are for. What users can put right ends in one
line on the standard error and exit code 1.
"""

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .benchmark import BenchmarkCommand
from .compare import CompareCommand
from .evaluate import EvaluateCommand
from .export import ExportCommand
from .prune import PruneCommand
from .report import ReportCommand
from .score import ScoreCommand


COMMANDS = (
    ScoreCommand,
    PruneCommand,
    ReportCommand,
    BenchmarkCommand,
    CompareCommand,
    EvaluateCommand,
    ExportCommand,
)


class CamCutCommand(BaseOptimumCLICommand):
    """`optimum-cli camcut`."""

    COMMAND = CommandInfo(name="camcut", help="Prune Transformers by interpretability (Cam-Cut, Smooth-Cut).")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in COMMANDS
    )
