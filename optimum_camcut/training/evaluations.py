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
"""What evaluation gave, of the dense model and of the weights as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from transformers import TrainerState

from ..planning.plan import PruningPlan


class Evaluations:
    """The last evaluation counts for as long as the weights are those that it measured.

    Attributes:
        dense (`dict[str, float]`): of the model just before its first cut, if it was measured.
    """

    def __init__(self) -> None:
        self.dense: dict[str, float] = {}
        self._step = 0
        self._plan: PruningPlan | None = None
        self._found: dict[int, dict[str, float]] = {}

    def record(self, state: TrainerState, plan: PruningPlan | None, metrics: Mapping[str, float]) -> None:
        """Of the weights as they are.

        Args:
            plan: that the model is cut by.
        """
        self._step, self._plan = state.global_step, plan
        self._found[self._step] = dict(metrics)

    def record_best(self, state: TrainerState, plan: PruningPlan | None) -> None:
        """The best weights so far are loaded: what was measured of them is known, or in the history of a run that was
        resumed."""
        best = [entry for entry in state.log_history if entry.get("step") == state.best_global_step]
        logged = {name: v for entry in best for name, v in entry.items() if name.startswith("eval_")}
        self.record(state, plan, self._found.get(state.best_global_step, logged))

    def forget(self) -> None:
        """The weights change."""
        self._step, self._plan, self._found = 0, None, {}

    def current(self, state: TrainerState, plan: PruningPlan | None) -> dict[str, float]:
        """Of the weights as they are; empty if they were not measured."""
        known = self._step == state.global_step and _keep(self._plan) == _keep(plan)
        return self._found.get(self._step, {}) if known else {}


def _keep(plan: PruningPlan | None) -> Mapping[str, Collection[int]] | None:
    return plan.keep if plan is not None else None
