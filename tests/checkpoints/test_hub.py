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
"""Pushing to a Hub and loading from it, over HTTP, and the model card that goes along.

`huggingface_hub` reads its settings when it is imported, so what talks to the local Hub runs in another process: the
functions that are given to `client`."""

import dataclasses
import os
import re
import subprocess
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import huggingface_hub
import pytest
import torch
import transformers
from checkpoints import FILES, OfTheUsersOwn, edit_json, logits, pruned_model
from hub import TOKEN, Hub, check_card
from huggingface_hub import ModelCard
from marks import few
from models import tiny_batch, tiny_model
from trainers import make_trainer, pruning

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    prune_heads,
    score_groups,
)
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.reporting import numbers
from optimum_camcut.reporting.card import recipe
from optimum_camcut.training.records import measured


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def client(environment):
    """Calls a function of this module in a process whose Hub is the local one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            executor.submit(torch.set_num_threads, 1).result()  # the process starts here
        yield lambda *args, **kwargs: executor.submit(call, *args, **kwargs).result()


@pytest.fixture(autouse=True)
def a_hub_that_works(request):
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").drop = None


# --- in the other process -------------------------------------------------------------------------------------------


def call(function, *args, **kwargs):
    """Some errors of the client cannot be sent to another process."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def push(repo_id, seed=1, **kwargs):
    return str(pruned_model(seed=seed).push_to_hub(repo_id, **kwargs))


def push_without_patience(*args, **kwargs):
    """The client waits between its attempts."""
    sleep, time.sleep = time.sleep, lambda seconds: None
    try:
        push(*args, **kwargs)
    finally:
        time.sleep = sleep


def load(repo_id, **kwargs):
    return logits(load_pruned(repo_id, **kwargs))


def push_with(method, repo_id, folder):
    model = pruned_model()
    if method == "save_pretrained":
        model.save_pretrained(folder, push_to_hub=True, repo_id=repo_id)
    else:
        model.push_to_hub(repo_id)


def push_config(*args, **kwargs):
    commit = PruningConfig(method="taylor", sparsity=0.25).push_to_hub(*args, **kwargs)
    return commit.commit_url, commit.pr_url


def load_config(*args, **kwargs):
    return PruningConfig.from_pretrained(*args, **kwargs)


def validate(repo_id):
    card = ModelCard.load(repo_id)
    if not huggingface_hub.__version__.startswith("0."):  # those ask huggingface.co, whatever HF_ENDPOINT says
        card.validate()


def run_card(text):
    """Runs the two ways to load a model that a card shows, as they stand there."""
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    results = []
    for part in lines.split("\n\n"):
        scope = {}
        exec(part, scope)
        results.append((type(scope["model"]).__name__, logits(scope["model"].eval())))
    return results


def push_masked(repo_id):
    model = tiny_model("bert")
    apply_plan(model, PruningPlan({"bert.pooler.dense.weight": range(0, 1024, 2)})).push_to_hub(repo_id)
    return logits(model)


def push_plain(repo_id):
    keep = {f"layer.{layer}.neurons": range(9) for layer in range(3)}
    model = apply_plan(tiny_model("bert"), PruningPlan(keep))
    model.push_to_hub(repo_id)
    return logits(model)


def push_of(base, repo_id, folder):
    """Prunes what is pushed as `base` or lies in a folder of that name, saves it, and pushes it."""
    model = transformers.BertForSequenceClassification.from_pretrained(base)
    prune_heads(model, {0: [1]}).save_pretrained(folder)
    model.push_to_hub(repo_id)
    return ModelCard.load(folder / "README.md").data.to_dict(), ModelCard.load(repo_id).data.to_dict()


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train_and_push(folder, repo_id, **changes):
    changes = {"push_to_hub": True, "hub_model_id": repo_id, "hub_always_push": True, **changes}
    trainer = make_trainer(folder, pruning(method="magnitude", dense_epochs=1), compute_metrics=accuracy, **changes)
    trainer.train()
    measured = trainer.evaluate()
    trainer._finish_current_push()
    commit = trainer.push_to_hub(dataset_tags="user/data", dataset="Data", dataset_args="all")
    return str(commit), logits(trainer.model.eval()), measured


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", few(["push_to_hub", "save_pretrained"]))
def test_a_pushed_model_loads_back(method, hub, client, tmp_path):
    """In one commit, and to the bit. Folders beside the checkpoint stay behind."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.pt").touch()
    client(push_with, method, method, tmp_path)
    repository = hub.repositories[f"user/{method}"]
    assert len(repository.commits) == 2
    files = set(repository.commits[repository.names["main"]]["tree"])
    assert files >= FILES | {"pruning_heads.png", "pruning_kept.png"} and not any("/" in name for name in files)
    assert torch.equal(client(load, f"user/{method}"), logits(pruned_model()))


def test_revisions(hub, client, environment, python_without_package, tmp_path):
    """A branch and a commit, loaded with the package and without it, each from a cache that knows nothing of them."""
    first = client(push, "revisions", 1).rpartition("/")[2]
    second = client(push, "user/revisions", 2, revision="small/two").rpartition("/")[2]
    client(push, "user/revisions", 3)
    repository = hub.repositories["user/revisions"]
    assert repository.commits[second]["parent"] == first == repository.commits[repository.names["main"]]["parent"]
    seeds = {"main": 3, "small/two": 2, first: 1, second: 2}
    for revision, seed in seeds.items():
        assert torch.equal(client(load, "user/revisions", revision=revision), logits(pruned_model(seed=seed)))
    torch.save((tiny_batch(labels=False), list(seeds)), tmp_path / "given.pt")
    script = """
        import importlib.util, torch
        assert importlib.util.find_spec("optimum_camcut") is None
        from transformers import AutoModelForSequenceClassification
        torch.set_num_threads(1)
        batch, revisions = torch.load("given.pt")
        results = {}
        for revision in revisions:
            model = AutoModelForSequenceClassification.from_pretrained(
                "user/revisions", trust_remote_code=True, revision=revision
            )
            with torch.no_grad():
                results[revision] = model(**batch).logits
        torch.save(results, "results.pt")
    """
    environment = {**os.environ, **environment, "HF_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    command = [python_without_package, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    results = torch.load(tmp_path / "results.pt")
    assert all(torch.equal(results[revision], logits(pruned_model(seed=seed))) for revision, seed in seeds.items())


# The weights and the pictures of the card go up side by side, and whichever breaks first is told.
UPLOADING = r"while uploading '(model\.safetensors|pruning_\w+\.png)'"


@pytest.mark.once
@pytest.mark.parametrize(("fault", "seed"), [("upload", 11), ("commit", 12), ("answer", 13)])
def test_a_connection_that_breaks(fault, seed, hub, client):
    """The repository is as before; only where the answer got lost is it as after. Pushing again succeeds."""
    name = f"user/broken-{fault}"
    client(push, name, 1)
    repository = hub.repositories[name]
    before = dict(repository.names)
    hub.drop = fault
    with pytest.raises(RuntimeError, match=UPLOADING if fault == "upload" else "disconn|reset|aborted"):
        client(push_without_patience, name, seed)
    if fault == "answer":
        assert len(repository.commits) == 3
    else:
        assert repository.names == before and len(repository.commits) == 2
    assert torch.equal(client(load, name), logits(pruned_model(seed=seed if fault == "answer" else 1)))
    hub.drop = None
    client(push, name, seed)
    assert len(repository.commits) == 3
    assert torch.equal(client(load, name), logits(pruned_model(seed=seed)))


def test_a_connection_that_breaks_in_the_first_push(hub, client):
    hub.drop = "upload"
    with pytest.raises(RuntimeError, match=UPLOADING):
        client(push_without_patience, "user/new", 14)
    repository = hub.repositories["user/new"]
    assert set(repository.commits[repository.names["main"]]["tree"]) == {".gitattributes"}


def test_weights_of_an_earlier_push_go(hub, client):
    """A single file would be loaded in place of newer shards."""
    client(push, "user/shards", 1)
    client(push, "user/shards", 2, max_shard_size="20KB")
    repository = hub.repositories["user/shards"]
    tree = repository.commits[repository.names["main"]]["tree"]
    assert "model.safetensors" not in tree and "model.safetensors.index.json" in tree
    assert torch.equal(client(load, "user/shards"), logits(pruned_model(seed=2)))
    client(push, "user/shards", 3)
    tree = repository.commits[repository.names["main"]]["tree"]
    assert [name for name in tree if "safetensors" in name] == ["model.safetensors"]
    assert torch.equal(client(load, "user/shards"), logits(pruned_model(seed=3)))


def test_a_config_is_pushed(hub, client):
    url, pull_request = client(push_config, "user/config", private=True)
    repository = hub.repositories["user/config"]
    assert url == f"{hub.url}/user/config/commit/{repository.names['main']}" and pull_request is None
    assert repository.private and repository.commits[repository.names["main"]]["message"] == "Upload pruning config"
    main = repository.names["main"]
    client(push_config, "user/config", revision="branch", commit_message="Mine")
    assert repository.names == {"main": main, "branch": main}  # it is there already
    url, pull_request = client(push_config, "user/open", create_pr=True)
    assert pull_request == f"{hub.url}/user/open/discussions/1"
    assert set(hub.repositories["user/open"].names) == {"main", "refs/pr/1"}
    for repo_id, revision in (("user/config", "branch"), ("user/config", main), ("user/open", "refs/pr/1")):
        config = client(load_config, repo_id, revision=revision)
        assert config == PruningConfig(method="taylor", sparsity=0.25)
    with pytest.raises(RuntimeError, match="RepositoryNotFoundError"):
        client(load_config, "user/config", token=False)


# --- the trainer ----------------------------------------------------------------------------------------------------


def test_the_trainer_pushes(hub, client, tmp_path):
    _, expected, measured = client(
        train_and_push, tmp_path, "user/trained", push_to_hub=False, eval_strategy="epoch", hub_revision="main"
    )
    repository = hub.repositories["user/trained"]
    tree = repository.commits[repository.names["main"]]["tree"]
    assert set(tree) >= FILES | {"pruning_config.json", "training_args.bin"} and len(repository.commits) == 2
    assert torch.equal(client(load, "user/trained"), expected)
    client(validate, "user/trained")
    text = tree["README.md"][0].decode()
    data = ModelCard(text).data
    assert data.datasets == ["user/data"] and data.metrics == ["accuracy"]
    assert {"optimum-camcut", "pruned", "generated_from_trainer"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type) == ("user/data", "accuracy")
    assert result.metric_value == measured["eval_accuracy"]
    dense, pruned = re.search(r"\| accuracy \| ([\d.]+) \| ([\d.]+) \|", text).groups()
    assert float(pruned) == pytest.approx(measured["eval_accuracy"], abs=1e-3) and 0 <= float(dense) <= 1
    assert "Training hyperparameters" in text and 'load_pruned("user/trained")' in text
    page = tree["report.html"][0].decode()
    assert f'<td class="number">{pruned}</td>' in page and "load_pruned(&#34;user/trained&#34;)" in page


@pytest.mark.once
@pytest.mark.parametrize("strategy", few(["every_save", "checkpoint"]))
def test_every_save_is_whole(strategy, hub, client, tmp_path):
    """Every commit on the way loads, with its plan and card; a checkpoint to resume from is not marked unfinished."""
    name = f"user/{strategy}"
    changes = {"save_strategy": "steps", "save_steps": 2, "hub_strategy": strategy}
    _, expected, _ = client(train_and_push, tmp_path, name, **changes)
    repository = hub.repositories[name]
    commits = {oid: c for oid, c in repository.commits.items() if c["message"].startswith("Training in progress")}
    assert len(commits) == 3 * (1 if strategy == "every_save" else 2)  # none in the dense epochs
    for oid in commits:
        tree = repository.commits[oid]["tree"]
        assert set(tree) >= FILES | {"pruning_config.json"}
        assert check_card(tree["README.md"][0].decode())[0] == []
        assert f'load_pruned("{name}")' in tree["README.md"][0].decode()
        client(load, name, revision=oid)
        assert not any("unfinished" in path or path.startswith(("_", "checkpoint-")) for path in tree)
    assert torch.equal(client(load, name), expected)
    if strategy == "checkpoint":
        assert {f"last-checkpoint/{name}" for name in [*FILES, "optimizer.pt", "trainer_state.json"]} <= set(tree)


@pytest.mark.once
def test_checkpoints_are_pushed_when_they_are_whole(monkeypatch, tmp_path):
    """The upload runs in the background: a mark that goes in the meantime may be found or not."""
    seen = []
    record = lambda self, folder: seen.append(os.listdir(folder))  # noqa: E731
    monkeypatch.setattr(transformers.Trainer, "_push_from_checkpoint", record)
    trainer = make_trainer(tmp_path, pruning(method="magnitude"), save_strategy="epoch", num_train_epochs=2)
    trainer.args.push_to_hub, trainer.push_in_progress = True, None
    trainer.train()
    assert len(seen) == 2 and all("optimizer.pt" in names and ".unfinished" not in names for names in seen)


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_shows_the_exact_lines(hub, client):
    client(push, "user/lines", 1)
    client(push, "user/lines", 2, revision="two")
    for branch, seed in (("main", 1), ("two", 2)):
        text = hub.repositories["user/lines"].commits[hub.repositories["user/lines"].names[branch]]["tree"]
        for name, got in client(run_card, text["README.md"][0].decode()):
            assert name == "BertForSequenceClassification" and torch.equal(got, logits(pruned_model(seed=seed)))
    expected = client(push_masked, "user/masked")
    repository = hub.repositories["user/masked"]
    text = repository.commits[repository.names["main"]]["tree"]["README.md"][0].decode()
    assert "trust_remote_code" not in text and "512 single weights" in text
    assert all(torch.equal(got, expected) for _, got in client(run_card, text))
    expected = client(push_plain, "user/plain")
    repository = hub.repositories["user/plain"]
    text = repository.commits[repository.names["main"]]["tree"]["README.md"][0].decode()
    assert 'BertForSequenceClassification.from_pretrained("user/plain")' in text and "trust_remote_code" not in text
    assert all(torch.equal(got, expected) for _, got in client(run_card, text))


@pytest.mark.once
def test_the_card_says_what_holds_for_its_kind_of_cut(tmp_path):
    """Equal sizes are not told to differ, heads that transformers 4 removes by itself not to fail there, a further cut
    not to be of the uncut model; and the tokenizer, which is not saved with a model, is spoken of."""
    plans = {
        "heads": {"layer.0.heads": [0, 2]},
        "no heads": {"layer.0.heads": ()},  # transformers 4 does not run these
        "even": {f"layer.{layer}.heads": [0, 2] for layer in range(3)},
        "both": {"layer.0.heads": [0, 2], "layer.1.neurons": range(9)},
        "plain": {f"layer.{layer}.neurons": range(9) for layer in range(3)},
    }
    cards = {}
    for kind, keep in plans.items():
        apply_plan(tiny_model("bert"), PruningPlan(keep)).save_pretrained(tmp_path / kind)
        cards[kind] = (tmp_path / kind / "README.md").read_text()
    prune_heads(tiny_model("mpnet"), {0: [1]}).save_pretrained(tmp_path / "mpnet")
    cards["mpnet"] = (tmp_path / "mpnet" / "README.md").read_text()
    assert not any("differ" in text for text in cards.values())
    native = {kind for kind, text in cards.items() if "4.57 reads `pruned_heads`" in text}
    assert native == {"heads", "even"}
    assert {kind for kind, text in cards.items() if ".from_pretrained` fails" in text} == {*cards} - {"plain"}
    assert all("take that of the base model" in text for text in cards.values())

    config = PruningConfig(method="magnitude", sparsity=0.5)
    model = prune_heads(tiny_model("bert"), {0: [1, 2]})
    groups = find_groups(model)
    apply_plan(model, make_plan(score_groups(model, groups, None, config), groups, config)).save_pretrained(tmp_path)
    assert (
        "`sparsity=0.5`, `allocation='per_kind'` of the budget `params`, of what earlier cuts had left."
        in (tmp_path / "README.md").read_text()
    )
    model = tiny_model("bert")
    groups = find_groups(model)
    apply_plan(model, make_plan(score_groups(model, groups, None, config), groups, config))
    assert "earlier cuts" not in recipe(model.pruning_plan)
    budget = dataclasses.replace(config, budget="latency", sequence_length=32)
    assert "of the budget `latency`, at 8 x 32 tokens." in recipe(
        dataclasses.replace(model.pruning_plan, config=budget)
    )


def test_heads_that_transformers_4_has_pruned_are_no_plain_checkpoint(tmp_path):
    model = prune_heads(tiny_model("bert"), {0: [1, 2]})
    model.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda values: values.pop(RECORD))
    (tmp_path / "pruning_plan.json").unlink()
    loaded = load_pruned(tmp_path)
    loaded.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "trust_remote_code=True" in text and "plain transformers checkpoint" not in text


@pytest.mark.once
def test_the_card_of_the_repository_stays(hub, client):
    client(push, "user/mine", 1)
    repository = hub.repositories["user/mine"]
    words = b"---\nlicense: mit\ntags: [mine]\n---\n\n# My words\n"
    tree = {**repository.commits[repository.names["main"]]["tree"], "README.md": (words, False)}
    repository.commit("main", repository.names["main"], "Words", tree)
    client(push, "user/mine", 2)
    text = repository.commits[repository.names["main"]]["tree"]["README.md"][0].decode()
    assert ModelCard(text).data.license == "mit" and "mine" in ModelCard(text).data.tags
    assert "# My words" in text and 'load_pruned("user/mine")' in text
    client(validate, "user/mine")


def test_the_licence_is_that_of_the_base_model(hub, client, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: my-own\nlicense_link: LICENSE\n---\n"
    )
    files = {path.name: (path.read_bytes(), False) for path in (tmp_path / "base").iterdir()}
    client(push_config, "user/base")
    hub.repositories["user/base"].commit("main", None, "Base", files)
    for found in client(push_of, "user/base", "user/of-base", tmp_path / "one"):
        assert found["base_model"] == "user/base" and found["license"] == "other"
        assert found["license_name"] == "my-own" and found["license_link"] == f"{hub.url}/user/base/blob/main/LICENSE"
    assert hub.requests.count("HEAD /user/base/resolve/main/README.md") == 1  # and not at every save
    client(validate, "user/of-base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: user/base\n---\n")
    for found in client(push_of, str(tmp_path / "base"), "user/of-folder", tmp_path / "two"):
        assert found["base_model"] == "user/base" and found["license"] == "apache-2.0"
    # offline, which these tests are, it is not known and nobody is asked
    model, asked = pruned_model(), len(hub.requests)
    model.config._name_or_path = "user/base"
    model.save_pretrained(tmp_path / "three")
    data = ModelCard.load(tmp_path / "three" / "README.md").data
    assert data.base_model == "user/base" and data.license is None and len(hub.requests) == asked


def test_a_card_that_is_not_valid_is_not_pushed(hub, client):
    client(push, "user/bad", 1)
    repository = hub.repositories["user/bad"]
    tree = repository.commits[repository.names["main"]]["tree"]
    bad = {**tree, "README.md": (b"---\nlicense: Apache 2\n---\n", False)}
    oid = repository.commit("main", repository.names["main"], "Bad", bad)
    with pytest.raises(RuntimeError, match='ValueError: .*\n.*"license" with value "Apache 2" is not valid'):
        client(push, "user/bad", 2)
    assert repository.names["main"] == oid


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: [mit, gnu]", '"license" with value "gnu"'),
        ("datasets: [null]", '"datasets" must be a string or an array'),
        ("tags: one", '"tags" must be an array'),
        ("base_model: ./here", '"base_model" with value "./here"'),
        ("language: English", '"language" with value'),
        ("library_name: 3", '"library_name" must be a string'),
        ("model-index: [{name: a, results: [{task: {type: b}, metrics: []}]}]", "dataset.name"),
        ("[1]", "must be a mapping"),
        ("a: [", "invalid yaml"),
    ],
)
def test_the_local_hub_validates_in_earnest(metadata, message):
    assert any(message in error for error in check_card(f"---\n{metadata}\n---\n# Card\n")[0])


def test_the_table_of_dense_against_pruned(tmp_path):
    """By hand, from the sizes of the tiny BERT: 32 hidden, 3 layers of 4 heads and 37 neurons."""
    model = tiny_model("bert")
    dense = sum(parameter.numel() for parameter in model.parameters())
    apply_plan(model, PruningPlan({"layer.0.heads": [1, 3], "layer.1.feed_forward": (), "layer.2.neurons": range(7)}))
    model.save_pretrained(tmp_path)
    removed = 2 * (4 * 8 * 32 + 3 * 8) + (2 * 32 * 37 + 37 + 32 + 2 * 32) + 30 * (2 * 32 + 1)
    text = (tmp_path / "README.md").read_text()
    assert f"| parameters | {dense:,} | {dense - removed:,} | {(dense - removed) / dense:.2f} |" in text
    # Of 64 tokens, since the model takes no more.
    flops = [64 * (3 * (2 * 4 * 32 * 32 + 4 * 32 * 64) + 2 * 2 * 32 * n) for n in (3 * 37,)]
    less = 64 * (2 * (2 * 4 * 8 * 32 + 4 * 8 * 64) + 2 * 2 * 32 * (37 + 30))
    flops += [flops[0] - less]
    assert (
        "1 x 64 tokens (G) | {:.3g} | {:.3g} | {:.2f} |".format(*(n / 1e9 for n in flops), flops[1] / flops[0]) in text
    )
    for row in ("| 0 | heads | 2 / 4 | `░█░█` |", "| 1 | feed_forward | 0 / 1 | `░` |", "| 2 | neurons | 7 / 37 | `█"):
        assert row in text
    assert re.search(r"7 / 37 \| `█{6}░{26}` \|", text) and "accuracy" not in text


def test_models_whose_dense_size_is_not_known(tmp_path, monkeypatch):
    class Wider(OfTheUsersOwn):
        def __init__(self, config, width):
            super().__init__(config)

    prune_heads(Wider(tiny_model("bert").config, 3), {0: [1]}).save_pretrained(tmp_path / "one")
    text = (tmp_path / "one" / "README.md").read_text()
    assert "| parameters |  | 25,818 |" in text and 'load_pruned("one", model_class=Wider)' in text
    pruned_model("albert").save_pretrained(tmp_path / "two")  # its layers run several times
    text = (tmp_path / "two" / "README.md").read_text()
    assert "| parameters |" in text and "FLOPs" not in text
    monkeypatch.setattr(numbers, "is_deepspeed_zero3_enabled", lambda: True)
    pruned_model().save_pretrained(tmp_path / "three")
    assert "| parameters |" not in (tmp_path / "three" / "README.md").read_text()


@pytest.mark.once
def test_metrics_are_those_of_these_weights(tmp_path):
    """A figure that was measured before further training, or on other data, is none of the model in the folder."""

    def row(trainer):
        trainer.save_model()
        found = re.search(r"\| accuracy \| (.*?) \| (.*?) \|", (tmp_path / "README.md").read_text())
        return found and found.groups()

    trainer = make_trainer(tmp_path, pruning(method="magnitude"), compute_metrics=accuracy)
    dense = f"{trainer.evaluate()['eval_accuracy']:.4g}"
    trainer.train()
    assert row(trainer) == (dense, "")
    trainer.evaluate(trainer.train_dataset.select(range(5)))
    assert row(trainer) == (dense, "")
    pruned = f"{trainer.evaluate()['eval_accuracy']:.4g}"
    assert row(trainer) == (dense, pruned)
    trainer.train()
    assert row(trainer) == (dense, "")

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    steps = {"eval_strategy": "steps", "eval_steps": 2, "callbacks": [Stop()]}
    trainer = make_trainer(tmp_path, pruning(method="magnitude"), compute_metrics=accuracy, **steps)
    trainer.train()
    assert "eval_accuracy" in str(trainer.state.log_history) and row(trainer) is None
    trainer = make_trainer(tmp_path / "b", pruning(method="magnitude", dense_epochs=1), compute_metrics=accuracy)
    trainer.evaluate()
    trainer.train()  # the dense epochs come after the measurement
    assert trainer.run.evaluations.dense == {}


def test_metrics_of_a_model_that_is_then_cut_by_hand(tmp_path):
    """Are none of the cut one."""
    trainer = make_trainer(tmp_path, compute_metrics=accuracy)
    trainer.evaluate()
    prune_heads(trainer.model, {0: [1]})
    trainer.save_model()
    assert "accuracy" not in (tmp_path / "README.md").read_text()
    found = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    assert f"| accuracy |  | {found:.4g} |" in (tmp_path / "README.md").read_text()


class OtherData(transformers.TrainerCallback):
    """Evaluates on the training data after every evaluation, under the same names."""

    busy = False

    def on_evaluate(self, args, state, control, **kwargs):
        if not self.busy:
            self.busy = True
            self.trainer.evaluate(self.trainer.train_dataset.select(range(5)))
            self.busy = False


@pytest.mark.once
def test_the_best_model_has_its_own_metrics(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    each = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3}
    other = OtherData()
    trainer = make_trainer(
        tmp_path, pruning(method="magnitude"), compute_metrics=accuracy, callbacks=[other], **best, **each
    )
    other.trainer = trainer
    trainer.train()
    assert trainer.state.best_global_step == 6 and trainer.state.global_step == 18
    known = measured(trainer)
    assert known["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
