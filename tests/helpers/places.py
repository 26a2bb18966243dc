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
"""Where things are, for tests and for the processes that they start."""

import os
from pathlib import Path


HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
PATHS = [*sorted(str(folder) for folder in TESTS.iterdir() if folder.is_dir()), str(TESTS), str(REPOSITORY)]
PATH = os.pathsep.join([*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])
