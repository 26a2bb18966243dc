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
"""`optimum-cli camcut` in the process of a test."""

from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand

from optimum_camcut.commands.camcut import CamCutCommand


def flags(**values):
    found = []
    for name, value in values.items():
        if isinstance(value, bool):
            found += [f"--{name}"] if value else []
        elif isinstance(value, list | tuple):
            found += [f"--{name}", *map(str, value)]
        else:
            found += [f"--{name}", str(value)]
    return found


def main(*arguments):
    """`optimum-cli camcut` in this process."""
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(CamCutCommand, parent_command=root)
    parsed = root.parser.parse_args(["camcut", *map(str, arguments)])
    parsed.func(parsed).run()
