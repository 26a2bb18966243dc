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
"""What importing the package changes in how Python imports: short names of modules, and calls behind an import.

Finders and loaders by their methods alone: the base classes of `importlib.abc` take longer to import than the package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ShortNames:
    """Imports a module by its short name as the one it stands for: there is one of each, and one table in it.

    Args:
        package: where the short names are.
        modules: short name -> name inside of the package.
    """

    def __init__(self, package: str, modules: Mapping[str, str]) -> None:
        self.package, self.modules = package, modules

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, short = name.rpartition(".")
        loader: Any = self
        return ModuleSpec(name, loader) if package == self.package and short in self.modules else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f".{self.modules[spec.name.rpartition('.')[2]]}", self.package)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import has put the short name there


class AfterImport:
    """Calls a function with a module as soon as that is imported: what is not, costs nothing.

    The other finders find it; its loader makes the call.
    """

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute: Callable[[ModuleType], None] = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.call(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]  # of this loader alone
        return spec


def after_import(name: str, call: Callable[[ModuleType], None]) -> None:
    """Calls a function with a module: now if it is there, else when it is imported."""
    if name in sys.modules:
        call(importlib.import_module(name))  # which waits, should another thread be importing it
    else:
        find(AfterImport(name, call))


def find(finder: Any) -> None:
    """Puts a finder before all others."""
    sys.meta_path.insert(0, finder)
