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
"""Pushing to the Hub, in one commit: readers see all files of a push, or none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path


def make_repo(
    repo_id: str, private: bool | None, token: bool | str | None, revision: str | None, create_pr: bool
) -> str:
    """Makes a model repository, and the branch to push to, if need be.

    Returns:
        `str`: the id with its namespace, which may be left out of `repo_id`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/") and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def fetch(folder: Path, name: str, repo_id: str, token: bool | str | None, revision: str | None) -> None:
    """Copies a file of the repository into a folder, if the repository has it."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    if api.file_exists(repo_id, name, revision=revision):
        shutil.copyfile(api.hf_hub_download(repo_id, name, revision=revision), folder / name)


def push(
    folder: str | Path,
    repo_id: str,
    commit_message: str,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    replaced: re.Pattern[str] | None = None,
) -> str:
    """Uploads the files in a folder in one commit; subfolders, and names that begin with `.` or `_`, stay behind.

    `HfApi.upload_folder` may spread a folder over several commits, and is not used for that reason.

    Args:
        replaced: files of the repository that go in the same commit, by their name, unless they are uploaded: weights
            of an earlier push, which would be loaded in place of these or beside them.

    Returns:
        `str`: the address of the commit.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and path.name[0] not in "._"]
    names = {path.name for path in paths}
    gone: list[str] = []
    if replaced is not None:
        there = api.list_repo_files(repo_id, revision=None if create_pr else revision)
        gone = [name for name in there if replaced.fullmatch(name) and name not in names]
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path_in_repo=name) for name in gone),
            *(CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths),
        ],
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
