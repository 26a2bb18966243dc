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
"""What `mkdocs build` adds to the pages: the pictures in `examples`, and the options of every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OPTIONS = "<!-- options: made by docs/hooks.py -->"


def on_files(files: Any, config: Any) -> Any:
    """Pages show `../examples/NAME.png`, which GitHub finds; the site has it in `images`."""
    from mkdocs.structure.files import File

    for path in EXAMPLES.glob("*.png"):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = markdown.replace("](../examples/", "](images/")
    return markdown.replace(OPTIONS, command_options()) if OPTIONS in markdown else markdown


def command_options() -> str:
    """A section for each command, with a table of its options, from its parser."""
    from optimum_camcut.commands.camcut import COMMANDS

    sections = []
    for command in COMMANDS:
        name = command.COMMAND.name
        parser = argparse.ArgumentParser(prog=f"optimum-cli camcut {name}", add_help=False)
        command.parse_args(parser)
        sections += [f"## {name}", command.COMMAND.help, "| option | what |\n|---|---|"]
        sections[-1] += "".join(_row(action) for action in parser._actions if action.help is not argparse.SUPPRESS)
    return "\n\n".join(sections)


def _row(action: argparse.Action) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    values = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    many = " ..." if action.nargs == "+" else ""
    shown = f"{flags} `{values}{many}`" if values else flags
    text = action.help.replace("%%", "%")
    for character in "|*_<":
        text = text.replace(character, f"\\{character}")
    return f"\n| {shown} | {text} |"
