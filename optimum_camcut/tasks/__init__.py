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
"""Tasks of the command line: for each, the class that a model is loaded as, what its data look like, and what is
measured. A task is one class and one registration."""

from . import (  # noqa: I001 - registers the tasks, in the order in which they are told of
    text_classification,
    token_classification,
    multiple_choice,
    question_answering,
    language_modeling,
    text_to_text,
    feature_extraction,
    media_classification,
    speech_recognition,
)
from .task import TASKS, Task, get_task


__all__ = ["TASKS", "Task", "get_task"]
