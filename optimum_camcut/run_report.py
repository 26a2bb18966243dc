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

import logging
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from .card import Metrics
from .files import write_text
from .report import REPORT_NAME, render_report


logger = logging.getLogger(__name__)


class RunReport:
    """Gathers what the page shows, writes it, and brings it up to date. Whatever fails here must not lose a trained
    model.

    Attributes:
        scores (`dict[str, Tensor]`): of the last cut, by the indices of the uncut model.
    """

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}
        self._page: bytes | None = None

    def write(self, folder: str | Path, model: PreTrainedModel, arguments: str, metrics: Metrics) -> None:
        """Writes `report.html` into a folder.

        Args:
            arguments, metrics: see `render_report`.
        """
        path = Path(folder) / REPORT_NAME
        try:
            page = render_report(model, arguments, scores=self.scores, metrics=metrics)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, page)
            self._page = page.encode()
        except ImportError as error:
            logger.info("no %s was written: %s", REPORT_NAME, error)
        except Exception as error:
            logger.warning("%s could not be written: %s", path, error, exc_info=True)
        else:
            logger.info("wrote %s", path)

    def update(self, folder: str | Path, model: PreTrainedModel, arguments: str, metrics: Metrics) -> None:
        """Writes it anew where it is, but not over one that somebody else wrote there with more in it."""
        path = Path(folder) / REPORT_NAME
        if self._page is not None and path.is_file() and path.read_bytes() == self._page:
            self.write(folder, model, arguments, metrics)
