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
"""A small Hub for tests: what `huggingface_hub` calls to push and load models, without Xet. All of it is in memory."""

import asyncio
import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field

import yaml
from aiohttp import web


TOKEN, USER = "hf_tests", "user"
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = set(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 gemma unknown other""".split()
)
MODEL_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]{0,95}")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def check_card(content):
    """Errors and warnings on the metadata of a model card, by the rules that the Hub documents: the card's
    specification, https://github.com/huggingface/hub-docs/blob/main/modelcard.md, and the list of licenses."""
    match = re.match(r"(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", content)
    if not match:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        return [f"invalid yaml: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors, warnings = [], []

    def strings(name, pattern=None, single=True):
        value = data.get(name)
        values = [value] if single and isinstance(value, str) else value
        if name in data and not (isinstance(values, list) and all(isinstance(v, str) and v for v in values)):
            errors.append(f'"{name}" must be {"a string or " if single else ""}an array of strings')
        elif name in data and pattern is not None:
            errors.extend(f'"{name}" with value "{v}" is not valid' for v in values if not pattern.fullmatch(v))

    for name in ("base_model", "datasets"):
        strings(name, MODEL_ID)
    strings("language", LANGUAGE)
    strings("license", re.compile("|".join(map(re.escape, LICENSES))))
    strings("license_name", re.compile("[a-z0-9.-]+"))
    strings("license_link", re.compile(r"LICENSE(\.md|\.txt)?|https?://\S+"))
    for name in ("tags", "metrics"):
        strings(name, single=False)
    for name in ("library_name", "pipeline_tag"):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    if data.get("license") == "other" and "license_name" not in data:
        warnings.append("license: other should come with a license_name")
    index = data.get("model-index", [])
    for number, entry in enumerate(index if isinstance(index, list) else [None]):
        where = f"model-index[{number}]"
        if not (isinstance(entry, dict) and isinstance(entry.get("name"), str) and "results" in entry):
            errors.append(f'"{where}" must have a name and results')
            continue
        for number, result in enumerate(entry["results"]):
            place = f"{where}.results[{number}]"
            for part, names in (("task", ["type"]), ("dataset", ["type", "name"])):
                found = result.get(part) or {}
                errors += [f'"{place}.{part}.{n}" is required' for n in names if not isinstance(found.get(n), str)]
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'"{place}.metrics" is required')
            elif any(not isinstance(m.get("type"), str) or m.get("value") is None for m in metrics):
                errors.append(f'"{place}.metrics" must have a type and a value')
    return errors, warnings


@dataclass
class Repository:
    """Commits never change; a push moves a name from one to the next, at once."""

    private: bool = False
    commits: dict = field(default_factory=dict)  # hash -> {"parent", "message", "tree": path -> (data, is LFS)}
    names: dict = field(default_factory=dict)  # branch or pull request -> hash

    def commit(self, name, parent, message, tree):
        listing = {path: (hashlib.sha256(data).hexdigest(), lfs) for path, (data, lfs) in sorted(tree.items())}
        oid = hashlib.sha1(json.dumps([parent, message, len(self.commits), listing]).encode()).hexdigest()
        self.commits[oid] = {"parent": parent, "message": message, "tree": dict(tree)}
        self.names[name] = oid
        return oid

    def resolve(self, revision):
        return self.names.get(revision, revision if revision in self.commits else None)


def refuse(status, code, message):
    error = {400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 404: web.HTTPNotFound, 409: web.HTTPConflict}[status]
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return error(text=json.dumps({"error": message}), content_type="application/json", headers=headers)


class Hub:
    """Serves from a thread: `with Hub() as hub: ... hub.url`. Large files have an address of their own, where no token
    should be sent.

    Attributes:
        repositories: id -> `Repository`.
        requests: "METHOD path" of all that came.
        drop: one of "upload", "commit", "answer": how connections break from now on. An upload or the body of a commit
            is read to the half and no further; an answer to a commit gets lost, which the client cannot tell from it.
    """

    def __init__(self):
        self.repositories, self.objects, self.requests, self.drop = {}, {}, [], None
        model = "/{owner:[^/]+}/{name:[^/]+}"
        self.app = web.Application(client_max_size=2**30, middlewares=[self.log])
        self.app.add_routes(
            [
                web.post("/api/repos/create", self.create),
                web.post("/api/validate-yaml", self.validate),
                web.post(f"/api/models{model}/preupload/{{revision}}", self.preupload),
                web.post(f"/api/models{model}/commit/{{revision}}", self.commit),
                web.post(f"/api/models{model}/branch/{{branch}}", self.branch),
                web.get(f"/api/models{model}/tree/{{revision}}{{folder:(/.*)?}}", self.tree),
                web.get(f"/api/models{model}/revision/{{revision}}", self.info),
                web.get(f"/api/models{model}", self.info),
                web.post(f"{model}.git/info/lfs/objects/batch", self.batch),
                web.get(f"{model}/resolve/{{revision}}/{{path:.+}}", self.download),  # HEAD, too
                web.put("/objects/{oid}", self.put_object),
                web.get("/objects/{oid}", self.get_object),
            ]
        )

    def __enter__(self):
        self.loop, self.runner = asyncio.new_event_loop(), web.AppRunner(self.app)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result()
        return self

    async def start(self):
        await self.runner.setup()
        for _ in range(2):
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url, self.storage = ("http://{}:{}".format(*address) for address in self.runner.addresses)

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @web.middleware
    async def log(self, request, handler):
        self.requests.append(f"{request.method} {request.path}")
        if request.path.startswith("/objects/") and "Authorization" in request.headers:
            raise refuse(400, None, "A token was sent to the storage")
        return await handler(request)

    # ------------------------------------------------------------------------------------------------------- details

    def repository(self, request, write=False):
        repo_id = "{owner}/{name}".format(**request.match_info)
        found = self.repositories.get(repo_id)
        known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            raise refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        if write and not known:
            raise refuse(401, None, "Invalid username or password.")
        return repo_id, found

    def revision(self, request, repository):
        oid = repository.resolve(request.match_info.get("revision", "main"))
        if oid is None:
            raise refuse(404, "RevisionNotFound", "Invalid rev id: " + request.match_info["revision"])
        return oid, repository.commits[oid]["tree"]

    async def body(self, request, fault):
        """All of the body, unless the connection is to break on the way."""
        if self.drop == fault:
            await request.content.read(max(request.content_length or 2, 2) // 2)
            request.transport.abort()
            raise ConnectionResetError
        return await request.read()

    async def create(self, request):
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise refuse(401, None, "Invalid username or password.")
        wanted = await request.json()
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer, private = {"url": f"{self.url}/{repo_id}", "name": repo_id}, wanted.get("visibility") == "private"
        if repo_id in self.repositories:
            return web.json_response(answer | {"error": "You already created this model repo"}, status=409)
        self.repositories[repo_id] = new = Repository(private or bool(wanted.get("private")))
        new.commit("main", None, "initial commit", {".gitattributes": (ATTRIBUTES.encode(), False)})
        return web.json_response(answer)

    async def validate(self, request):
        errors, warnings = check_card((await request.json())["content"])
        found = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        return web.json_response(found, status=400 if errors else 200)

    async def preupload(self, request):
        _, repository = self.repository(request, write=True)
        _, tree = self.revision(request, repository)
        patterns = [line.split()[0] for line in tree[".gitattributes"][0].decode().splitlines() if "lfs" in line]
        files = []
        for file in (await request.json())["files"]:
            data, was_lfs = tree.get(file["path"], (None, False))
            oid = data if data is None else hashlib.sha256(data).hexdigest() if was_lfs else git_hash(data)
            lfs = any(fnmatch.fnmatch(file["path"], p) for p in patterns) or b"\0" in base64.b64decode(file["sample"])
            mode = "lfs" if lfs or file["size"] > 10_000_000 else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return web.json_response({"files": files})

    async def batch(self, request):
        self.repository(request, write=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            actions = {"upload": {"href": f"{self.storage}/objects/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.objects else {"actions": actions}))
        return web.json_response({"transfer": "basic", "objects": objects})

    async def put_object(self, request):
        data = await self.body(request, "upload")
        if hashlib.sha256(data).hexdigest() != request.match_info["oid"]:
            raise refuse(400, None, "The content is not what its hash says")
        self.objects[request.match_info["oid"]] = data
        return web.Response()

    async def commit(self, request):
        repo_id, repository = self.repository(request, write=True)
        parent, tree = self.revision(request, repository)
        name = request.match_info["revision"]
        if name not in repository.names:
            raise refuse(400, None, "Commits go to a branch or a pull request")
        header, *operations = map(json.loads, (await self.body(request, "commit")).splitlines())
        if header["value"].get("parentCommit") not in (None, parent):
            raise refuse(400, None, "The branch has moved on")
        new = dict(tree)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                new[value["path"]] = (base64.b64decode(value["content"]), False)
            elif kind == "lfsFile" and value["oid"] in self.objects:
                new[value["path"]] = (self.objects[value["oid"]], True)
            elif kind == "deletedFile" and value["path"] in new:
                del new[value["path"]]
            else:
                raise refuse(400, None, f"Cannot do {operation}")
        if "README.md" in new and check_card(new["README.md"][0].decode())[0]:
            raise refuse(400, None, "Invalid metadata in README.md")
        answer = {"success": True}
        if request.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.names)
            name, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{self.url}/{repo_id}/discussions/{number}"
        oid = repository.commit(name, parent, header["value"]["summary"], new)
        if self.drop == "answer":
            request.transport.abort()
            raise ConnectionResetError
        return web.json_response(answer | {"commitOid": oid, "commitUrl": f"{self.url}/{repo_id}/commit/{oid}"})

    async def branch(self, request):
        _, repository = self.repository(request, write=True)
        if request.match_info["branch"] in repository.names:
            raise refuse(409, None, "Reference already exists")
        start = repository.resolve((await request.json()).get("startingPoint", "main"))
        repository.names[request.match_info["branch"]] = start
        return web.json_response({})

    async def info(self, request):
        repo_id, repository = self.repository(request)
        oid, tree = self.revision(request, repository)
        siblings = [{"rfilename": path} for path in sorted(tree)]
        answer = {"id": repo_id, "sha": oid, "siblings": siblings, "private": repository.private, "tags": []}
        return web.json_response(answer | {"modelId": repo_id})

    async def tree(self, request):
        _, repository = self.repository(request)
        _, tree = self.revision(request, repository)
        folder = request.match_info["folder"].strip("/")
        found = []
        for path, (data, lfs) in sorted(tree.items()):
            if folder in ("", path.rpartition("/")[0]):
                pointer = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                found.append({"type": "file", "path": path, "size": len(data), "oid": git_hash(data)})
                found[-1] |= {"lfs": pointer} if lfs else {}
        if folder and not found:
            raise refuse(404, "EntryNotFound", "Entry not found")
        return web.json_response(found)

    async def download(self, request):
        _, repository = self.repository(request)
        oid, tree = self.revision(request, repository)
        headers = {"X-Repo-Commit": oid}
        if request.match_info["path"] not in tree:
            error = refuse(404, "EntryNotFound", "Entry not found")
            error.headers.update(headers)
            raise error
        data, lfs = tree[request.match_info["path"]]
        if not lfs:
            return web.Response(body=data, headers=headers | {"ETag": f'"{git_hash(data)}"'})
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"'}
        return web.Response(status=302, headers=headers | {"Location": f"{self.storage}/objects/{digest}"})

    async def get_object(self, request):
        digest = request.match_info["oid"]
        return web.Response(body=self.objects[digest], headers={"ETag": f'"{digest}"'})
