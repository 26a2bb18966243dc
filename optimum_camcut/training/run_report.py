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
"""The report that a trainer leaves in `output_dir`, from what comes up on the way."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import release_memory
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import WEIGHTS, PrunableGroup
from ..architectures.vocabulary import VOCABULARY
from ..checkpoints.places import Place
from ..config import PruningConfig
from ..planning.allocation import make_plan
from ..planning.latency import device_name
from ..planning.measure import LatencyResult, input_size, longest_input, measure_latency
from ..planning.plan import PruningPlan, plan_of
from ..planning.times import LatencyTable
from ..planning.twin import dense_twin
from ..reporting.numbers import Metrics
from ..reporting.report import REPORT_NAME, Picture, check_libraries, draw_pictures, render_report
from ..scoring.loop import score_groups
from ..utils.files import write_text


logger = logging.getLogger(__name__)

BASELINES = ("magnitude", "random")  # they read no data
WEIGHTS_TO_PLAN = 10**8  # at most: a plan of the baselines takes some 16 bytes for each while it is made
REPEATS = 5


class RunReport:
    """Gathers what the page shows, writes it, and brings it up to date. Whatever fails here must not lose a trained
    model.

    Attributes:
        scores (`dict[str, Tensor]`): of the last cut, by the indices of the uncut model.
        times (`bool`): whether it measures the latency; if not, who runs the trainer does, and calls `take_times`.
    """

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}
        self.times = True
        self._plans: dict[str, PruningPlan] = {}
        self._latency: dict[str, LatencyResult] = {}
        self._conditions = ""  # that the latency was measured in
        self._drawn: tuple[tuple[object, ...], list[Picture]] = ((), [])  # of what, and what
        self._page: bytes | None = None
        self._path: Path | None = None  # of the page

    def plan_by_baselines(
        self,
        model: PreTrainedModel,
        groups: Sequence[PrunableGroup],
        config: PruningConfig,
        latency: LatencyTable | None = None,
    ) -> None:
        """Keeps what the methods that read no data would remove in place of the config's own. Not of a model that was
        cut before, where all of them would agree on what is gone.

        Args:
            model, groups: before the cut.
            config: of the whole run.
            latency: for `budget="latency"`.
        """
        if plan_of(model) is not None:
            return
        if WEIGHTS in config.granularity and sum(group.size for group in groups) > WEIGHTS_TO_PLAN:
            return
        kinds = [kind for kind in config.granularity if kind != VOCABULARY]  # which goes by counts alone
        if not kinds:
            return
        for method in BASELINES:
            if method == config.method:
                continue
            allocation = "global" if config.allocation == "search" else config.allocation  # without hours of search
            other = dataclasses.replace(
                config, method=method, allocation=allocation, granularity=kinds, min_frequency=None
            )
            try:
                scores = score_groups(model, groups, None, other, disable_tqdm=True)
                with _silent(make_plan.__module__):  # its warnings are about plans that are carried out
                    self._plans[method] = make_plan(scores, groups, other, latency=latency)
            except Exception as error:  # all scores of a kind are zero, no memory, ...
                logger.info("the report shows no plan by the method %r, which failed: %r", method, error)

    def time(self, model: PreTrainedModel, config: PruningConfig, dense: PreTrainedModel | None = None) -> None:
        """Times the model in turn with one as it was before it was cut.

        Args:
            dense: the model from before the run, if it is at hand. If it is not, or was cut before, a twin of the
                uncut shapes is built.
        """
        wrapped = model.__dict__.pop("forward", None)  # mixed precision, which the twin does not run in
        try:
            shape = config.latency_batch_size, longest_input(model, config.sequence_length)
            uncut = dense is not None and plan_of(dense) is None
            models = {"dense": dense if uncut else dense_twin(model), "pruned": model}
            self.take_times(measure_latency(models, *shape, repeats=REPEATS), model, shape)
        except Exception as error:  # no memory, a class of the user's own, ...
            logger.info("the report tells no latency, which could not be measured: %r", error)
        finally:
            models = {}
            release_memory()
            if wrapped is not None:
                model.__dict__["forward"] = wrapped

    def take_times(self, latency: Mapping[str, LatencyResult], model: PreTrainedModel, shape: tuple[int, int]) -> None:
        """Takes note of the latency of the `"dense"` and the `"pruned"` model, at so many examples and tokens."""
        dtype = str(model.dtype).removeprefix("torch.")
        self._latency = dict(latency)
        self._conditions = f"{shape[0]} x {input_size(model, shape[1])} in {dtype} on {device_name(model.device)}"

    def write(self, folder: str | Path, model: PreTrainedModel, place: Place | None, metrics: Metrics) -> None:
        """Writes `report.html` into a folder.

        Args:
            place, metrics: see `render_report`.
        """
        path = self._path = Path(folder) / REPORT_NAME
        try:
            page = render_report(
                model,
                place,
                scores=self.scores,
                metrics=metrics,
                latency=self._latency,
                latency_conditions=self._conditions,
                plans=self._plans,
                draw=self._draw,
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, page)
            self._page = page.encode()
        except ImportError as error:
            logger.info("no %s was written: %s", REPORT_NAME, error)
        except Exception as error:
            logger.warning("%s could not be written: %s", path, error, exc_info=True)
        else:
            logger.info("wrote %s", path)

    def _draw(
        self, plan: PruningPlan, scores: Mapping[str, Tensor], plans: Mapping[str, PruningPlan]
    ) -> list[Picture]:
        """As `draw_pictures`, but once for what stays the same while metrics come in."""
        of = (plan, scores, *plans.values())
        if list(map(id, self._drawn[0])) != list(map(id, of)):
            self._drawn = of, list(draw_pictures(plan, scores, plans))
        return self._drawn[1]

    def update(self, tell: Callable[[], tuple[PreTrainedModel, Place | None, Metrics]]) -> None:
        """Writes it anew where it is, but not over one that somebody else wrote there with more in it.

        Args:
            tell: gives what `write` takes; only asked if it is written.
        """
        path = self._path
        if self._page is not None and path is not None and path.is_file() and path.read_bytes() == self._page:
            self.write(path.parent, *tell())


def can_report() -> bool:
    """Whether the libraries that a report needs are there."""
    try:
        check_libraries()
    except ImportError:
        return False
    return True


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Without what a logger says."""
    silenced = logging.getLogger(name)
    before, silenced.disabled = silenced.disabled, True
    try:
        yield
    finally:
        silenced.disabled = before
