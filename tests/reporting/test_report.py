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
"""The report, read in a real browser, and its figures."""

import dataclasses
import html
import json
import logging
import re
import shutil
import struct
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from marks import few
from models import tiny_batch, tiny_model
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from trainers import Elsewhere, Minimal, make_trainer, pruning, sizes
from transformers import TrainerCallback

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    mask_iou,
    prune_heads,
    score_groups,
)
from optimum_camcut.planning.measure import LatencyResult, count_parameters, measure_latency
from optimum_camcut.reporting.card import write_card
from optimum_camcut.reporting.plots import plot_head_importance, plot_kept, plot_scores
from optimum_camcut.reporting.report import uncut_scores, write_report
from optimum_camcut.training import run_report
from optimum_camcut.training.steps import finish


pytestmark = pytest.mark.report

KEEP = {"layer.0.heads": [1, 3], "layer.1.feed_forward": (), "layer.2.neurons": range(7)}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail(
            "the report is tested in a real browser, which is missing here; install it with: "
            "apt-get install -y chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, "--window-size=1000,900", f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


def read(browser, path, scheme="light"):
    """Opens a page, with what holds for every report: figures that are seen and told of, no errors, no requests."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(path.as_uri())
    for details in browser.find_elements(By.TAG_NAME, "summary"):
        details.click()
    assert browser.find_elements(By.CSS_SELECTOR, "figure svg")
    for picture in browser.find_elements(By.CSS_SELECTOR, "svg, img"):
        assert picture.size["width"] > 150 and picture.size["height"] > 100
        assert picture.get_attribute("role") == "img" and len(picture.get_attribute("aria-label")) > 20
    for table in browser.find_elements(By.TAG_NAME, "table"):
        assert table.accessible_name and table.find_elements(By.CSS_SELECTOR, "th[scope=col]")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    urls = [
        found[1]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
        for found in [re.search(r'"url":"(.*?)"', entry["message"])]
    ]
    assert path.as_uri() in urls
    assert not [url for url in urls if url != path.as_uri() and not url.startswith("data:")]
    return browser


def table(browser):
    """First cell of every row -> the others, of dense against pruned."""
    rows = browser.find_elements(By.CSS_SELECTOR, "table[aria-labelledby=comparison] tbody tr")
    cells = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]
    return {name: others for name, *others in cells}


def tiles(browser):
    names, values = (browser.find_elements(By.CSS_SELECTOR, f".tiles {tag}") for tag in ("dt", "dd"))
    return {name.text: value.text for name, value in zip(names, values)}


def titles(browser):
    return [title.text for title in browser.find_elements(By.CSS_SELECTOR, "figure h2")]


def scores_of(model):
    return score_groups(model, find_groups(model), None, PruningConfig(method="magnitude", sparsity=0.5))


# --- the page -------------------------------------------------------------------------------------------------------


def test_a_report_with_everything(browser, tmp_path):
    dense = tiny_model("bert")
    groups, scores = find_groups(dense), scores_of(dense)
    others = {
        name: make_plan(scores, groups, PruningConfig(method="magnitude", sparsity=0.5, allocation=allocation))
        for name, allocation in (("<b>one</b>", "uniform"), ("$a_b$", "per_kind"))
    }
    model = apply_plan(tiny_model("bert"), PruningPlan(KEEP, config=PruningConfig(method="cam_cut", sparsity=0.25)))
    model.save_pretrained(tmp_path)
    path = write_report(
        tmp_path,
        model,
        dense_model=dense,
        scores=scores,
        metrics={
            "dense": {"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 3.0},
            "pruned": {"eval_loss": 0.625, "eval_accuracy": 0.72},
        },
        latency={"dense": LatencyResult(0.012, 0.011, 0.0131), "pruned": LatencyResult(0.008, 0.0075, 0.009)},
        plans=others,
    )
    assert path == tmp_path / "report.html"
    read(browser, path)
    before, after = count_parameters(dense), count_parameters(model)
    rows = table(browser)
    flops = 3 * (2 * 4 * 32 * 32 + 4 * 32 * 64) + 2 * 2 * 32 * 3 * 37  # of a token; the model takes 64
    left = flops - 2 * (2 * 4 * 8 * 32 + 4 * 8 * 64) - 2 * 2 * 32 * (37 + 30)
    assert rows.pop("FLOPs of the layers, 1 x 64 tokens (G)")[2] == f"{left / flops:.2f}"
    assert rows == {
        "parameters": [f"{before:,}", f"{after:,}", f"{after / before:.2f}"],
        "size of the weights (MB)": ["0.1", "0.1", f"{after / before:.2f}"],
        "latency of a forward pass (ms)": ["12.0", "8.0", "0.67"],
        "loss": ["0.5", "0.625", "1.25"],
        "accuracy": ["0.75", "0.72", "0.96"],
    }
    assert tiles(browser) == {
        "of the parameters": f"{after / before:.0%}",
        "of the FLOPs": f"{left / flops:.0%}",
        "as fast": "1.50×",
        "accuracy, dense 0.75": "0.72",
    }
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "11.0 to 13.1 ms (dense) and 7.5 to 9.0 ms (pruned)" in text
    assert "scored with cam_cut and removed at sparsity=0.25" in text
    assert f'load_pruned("{tmp_path.name}")' in text and "AutoModelForSequenceClassification.from_pretrained" in text
    assert titles(browser) == ["Heads", "What every layer keeps", "Scores and the cut", "Agreement"]
    heads, kept, _, agreement = (
        picture.get_attribute("aria-label") for picture in browser.find_elements(By.TAG_NAME, "svg")
    )
    assert "3 layers by 4 heads" in heads and "Heads kept, layer by layer: 2, 4, 4 of 4." in heads
    assert "Neurons kept, layer by layer: 37, 0, 7 of 37." in kept
    iou = mask_iou(model.pruning_plan, others["$a_b$"]).total
    assert f"this model and $a_b$: {iou:.2f}." in agreement and "this model and <b>one</b>:" in agreement
    shown = [element.text for element in browser.find_elements(By.CSS_SELECTOR, "svg text")]
    assert "$a_b$" in shown and "<b>one</b>" in shown and not browser.find_elements(By.CSS_SELECTOR, "svg b")


def test_light_and_dark(browser, tmp_path):
    """The text of the page and of the figures is dark on light, and light on dark."""
    path = write_report(tmp_path / "dark.html", apply_plan(tiny_model("bert"), PruningPlan(KEEP)))
    colours = {}
    for scheme in ("light", "dark"):
        read(browser, path, scheme)
        elements = [browser.find_element(By.CSS_SELECTOR, css) for css in ("body", "figure", "figure svg text")]
        page, panel, ink = (
            element.value_of_css_property(name)
            for element, name in zip(elements, ("background-color", "background-color", "fill"))
        )
        colours[scheme] = [sum(map(float, re.findall(r"[\d.]+", c)[:3])) / 765 for c in (page, panel, ink)]
        assert ink in elements[0].value_of_css_property("color").replace("rgba", "rgb").replace(", 1)", ")")
    assert min(colours["light"][:2]) > 0.9 and colours["light"][2] < 0.2
    assert max(colours["dark"][:2]) < 0.2 and colours["dark"][2] > 0.8


def test_masked_weights(browser, tmp_path):
    """Of single weights, the report counts what is zero; nothing is cut."""
    model = tiny_model("bert")
    names = ["bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.1.output.dense.bias"]
    groups = [group for group in find_groups(model, "weights") if group.name in names]
    config = PruningConfig(method="magnitude", sparsity=0.5, granularity=("weights",))
    scores = score_groups(model, groups, None, config)
    total = count_parameters(model)
    apply_plan(model, make_plan(scores, groups, config))
    masked = (32 * 37 + 32) // 2
    model.save_pretrained(tmp_path)
    read(browser, write_report(tmp_path, model, scores=scores, latency={"pruned": LatencyResult(0.01, 0.01, 0.01)}))
    assert table(browser) == {
        "parameters not masked": [f"{total:,}", f"{total - masked:,}", f"{(total - masked) / total:.2f}"],
        "latency of a forward pass (ms)": ["", "10.0", ""],
    }
    assert titles(browser) == ["What every layer keeps", "Scores and the cut"]
    zeros = browser.find_element(By.CSS_SELECTOR, "table[aria-labelledby=zeros] tbody").text
    assert zeros == f"1 {masked}"
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "BertForSequenceClassification.from_pretrained" in text and "trust_remote_code" not in text


def test_where_to_load_from(tmp_path):
    """A report in a checkpoint's folder names that; one elsewhere, where the model came from, if that holds it."""
    prune_heads(tiny_model("bert"), {0: [1]}).save_pretrained(tmp_path / "stored")
    model = load_pruned(tmp_path / "stored")
    (tmp_path / "elsewhere").mkdir()
    place = f'load_pruned("{tmp_path / "stored"}")'.replace('"', "&#34;")
    assert place in write_report(tmp_path / "elsewhere", model).read_text()
    model.save_pretrained(tmp_path / "copy")
    page = write_report(tmp_path / "copy", model).read_text()
    assert "load_pruned(&#34;copy&#34;)" in page and "Run this in the folder that holds <code>copy</code>" in page
    prune_heads(model, {1: [1]})  # which no folder holds
    for name in (str(tmp_path / "stored"), "user/not-in-the-cache"):
        model.config._name_or_path = name
        page = write_report(tmp_path / "copy", model).read_text()
        assert "load_pruned(" not in page and "the model was not saved where it could be loaded from" in page


def test_a_folder_named_like_a_repository_is_not_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("user/name").mkdir(parents=True)
    write_card("user/name", prune_heads(tiny_model("bert"), {0: [1]}), location="user/name")
    text = Path("user/name/README.md").read_text()
    assert 'load_pruned("user/name")' in text and "The path begins" not in text


def test_without_a_report_no_plan_is_read(tmp_path, monkeypatch):
    """At every checkpoint, to say in the report where the model is."""

    def load(*args):
        raise AssertionError("not needed")

    trainer = make_trainer(tmp_path, pruning(method="magnitude"), save_strategy="epoch", num_train_epochs=2)
    monkeypatch.setattr("optimum_camcut.training.trainer.finish", lambda *_: None)
    monkeypatch.setattr(PruningPlan, "load", load)
    trainer.train()
    assert (tmp_path / "checkpoint-12").is_dir()


def test_a_dense_model_that_was_not_evaluated_is_told(tmp_path):
    model, advice = prune_heads(tiny_model("bert"), {0: [1]}), "was not evaluated just before the cut"
    assert advice in write_report(tmp_path, model, metrics={"pruned": {"accuracy": 0.5}}).read_text()
    both = {"dense": {"accuracy": 0.6}, "pruned": {"accuracy": 0.5}}
    for metrics in (both, None):
        assert advice not in write_report(tmp_path, model, metrics=metrics).read_text()


def test_what_cannot_be_reported(tmp_path):
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="this BertForSequenceClassification has no pruning plan.*load_pruned"):
        write_report(tmp_path, model)
    scores = scores_of(model)
    apply_plan(model, PruningPlan(KEEP))
    with pytest.raises(ValueError, match="expected scores of the 4 units that 'layer.0.heads' has.*got 3"):
        write_report(tmp_path, model, scores={**scores, "layer.0.heads": torch.ones(3)})
    with pytest.raises(ValueError, match="'layer.0.heads' has 4 units in the this model plan and 5 in the other plan"):
        write_report(tmp_path, model, plans={"other": PruningPlan({"layer.0.heads": [0]}, {"layer.0.heads": 5})})
    assert not list(tmp_path.iterdir())


# --- figures --------------------------------------------------------------------------------------------------------


def crosses(axes):
    return {tuple(map(int, point[::-1])) for marks in axes.collections for point in marks.get_offsets()}


def test_the_map_of_heads():
    model = tiny_model("bert")
    scores = scores_of(model)
    apply_plan(model, PruningPlan({**KEEP, "layer.2.attention": ()}))
    removed = {(0, 0), (0, 2), *((2, head) for head in range(4))}
    figure = plot_head_importance(scores, model.pruning_plan)
    axes, bar = figure.axes
    (image,) = axes.images
    expected = torch.stack([scores[f"layer.{layer}.heads"] for layer in range(3)])
    np.testing.assert_array_equal(image.get_array(), expected)
    assert crosses(axes) == removed and axes.get_title() == "6 of 12 heads kept"
    assert (bar.get_ylabel(), image.norm.vmin, image.norm.vmax) == ("importance", expected.min(), expected.max())

    figure = plot_head_importance(None, model.pruning_plan, "bare")
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 1, 0, 1], [1] * 4, [0] * 4])
    assert crosses(axes) == removed and axes.get_title() == "bare"
    with pytest.raises(ValueError, match="the plan names no heads.*plot_kept shows other plans"):
        plot_head_importance(scores, PruningPlan({"layer.0.neurons": [1]}, {"layer.0.neurons": 3}))
    with pytest.raises(ValueError, match="does not know the size of 'layer.0.heads'.*give `sizes`"):
        plot_kept(PruningPlan({"layer.0.heads": [1]}))


def test_heads_without_a_score_are_grey():
    model = apply_plan(tiny_model("bert"), PruningPlan(KEEP))
    scores = {name: values.clone() for name, values in scores_of(tiny_model("bert")).items()}
    scores["layer.0.heads"][0] = torch.nan
    (image,) = plot_head_importance(scores, model.pruning_plan).axes[0].images
    colours = image.to_rgba(image.get_array())
    assert len(set(colours[0, 0, :3])) == 1 and 0 < colours[0, 0, 3] < 1  # whatever the page's colour is
    assert (colours[..., 3] == 1).sum() == 11


@pytest.mark.parametrize("highest", [0.02, 0.05, 0.2, 2.0, 1e6])
def test_the_labels_of_scores_do_not_overlap(highest):
    names = ("layer.0.heads", "layer.0.neurons")
    plan = PruningPlan(dict.fromkeys(names, range(20)), dict.fromkeys(names, 40))
    figure = plot_scores(dict.fromkeys(names, torch.logspace(np.log10(0.003), np.log10(highest), 40)), plan)
    figure.canvas.draw()
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        boxes = [box for box in boxes if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        assert boxes and all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:]))


def bars(axes):
    """Lengths of the bars in front, by their row, and of those behind."""
    behind, front = axes.containers
    return [{round(b.get_y() + b.get_height() / 2): b.get_width() for b in part} for part in (front, behind)]


def test_the_bars_of_what_is_kept():
    model = apply_plan(tiny_model("bert"), PruningPlan(KEEP))
    heads, neurons = plot_kept(model.pruning_plan).axes
    assert bars(heads) == [{0: 2, 1: 4, 2: 4}, {0: 4, 1: 4, 2: 4}]
    assert bars(neurons) == [{0: 37, 1: 0, 2: 7}, {0: 37, 1: 37, 2: 37}]
    assert neurons.get_title() == "neurons: 44 of 111" and heads.yaxis_inverted()
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.attention": (), "layer.2.attention": [0]}))
    (attention,) = plot_kept(model.pruning_plan).axes
    assert bars(attention) == [{0: 1, 1: 0, 2: 1}, {0: 1, 1: 1, 2: 1}]
    name, size = "bert.encoder.layer.3.output.dense", {"weight": 6, "bias": 2}
    keep = {f"{name}.weight": [0, 5], f"{name}.bias": [1]}
    (weights,) = plot_kept(PruningPlan(keep, {n: size[n.rpartition(".")[2]] for n in keep})).axes
    assert bars(weights) == [{0: 3}, {0: 8}] and [text.get_text() for text in weights.texts] == ["38%"]


def test_the_distributions_and_the_cut():
    plan = PruningPlan({"layer.0.heads": [0, 1, 2], "layer.1.heads": [2, 3]}, {f"layer.{n}.heads": 4 for n in (0, 1)})
    scores = {"layer.0.heads": torch.tensor([8.0, 9, 10, 0]), "layer.1.heads": torch.tensor([2, torch.nan, 8, 9])}
    (axes,) = plot_scores(scores, plan).axes
    counts = [sum(bar.get_height() for bar in part) for part in axes.containers]
    assert counts == [5, 2] and axes.get_xscale() == "log"  # the unknown one does not count; the zero does
    (cut,) = axes.lines
    assert cut.get_xdata() == pytest.approx([4, 4])  # between 2 and 8, on a logarithmic scale
    scores["layer.1.heads"] = torch.tensor([-2.0, 0, 8, 9])
    (axes,) = plot_scores(scores, plan).axes
    assert axes.get_xscale() == "linear" and axes.lines[0].get_xdata() == pytest.approx([4, 4])  # half-way from 0
    scores["layer.1.heads"] = torch.tensor([1.0, 9, 7, 9])
    (axes,) = plot_scores(scores, plan).axes
    band = axes.patches[-1]
    assert not axes.lines and (band.get_x(), band.get_width()) == (7, 2)
    for odd in (torch.zeros(4), torch.ones(4)):
        plot_scores(dict.fromkeys(scores, odd), plan).canvas.draw()
    with pytest.raises(
        ValueError, match="no scores of the plan's groups: the scores are of layer.9.heads, the plan of"
    ):
        plot_scores({"layer.9.heads": torch.ones(4)}, plan)


def test_scores_by_the_indices_of_the_uncut_model():
    model = prune_heads(tiny_model("bert"), {1: [0, 2]})
    groups = find_groups(model, "heads")
    full = uncut_scores({group.name: torch.arange(group.size) + 1.0 for group in groups}, groups)
    assert torch.isnan(full["layer.1.heads"]).tolist() == [True, False, True, False]
    assert full["layer.1.heads"][[1, 3]].tolist() == [1, 2] and full["layer.0.heads"].tolist() == [1, 2, 3, 4]


# --- the trainer, and the card --------------------------------------------------------------------------------------


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def shown_in(path):
    """The ways to load a model that a page or a card shows."""
    text = html.unescape(path.read_text())
    pattern = r"Load it</h2>\s*<pre[^>]*><code>(.*?)</code>" if path.suffix == ".html" else r"```python\n(.*?)```"
    return re.search(pattern, text, re.DOTALL)[1].split("\n\n")


def test_the_lines_that_are_shown_load_the_model(tmp_path, monkeypatch, fresh_python):
    """In a new process, in the folder that the page or the card names, as they stand there."""
    monkeypatch.chdir(tmp_path)
    ways, expected = [], {}
    trainer = make_trainer("run", pruning(method="magnitude"), save_strategy="epoch")
    trainer.train()
    page = tmp_path / "run" / "report.html"
    assert (
        'load_pruned("run/checkpoint-6")' in shown_in(page)[0]
        and "the folder that the training ran in" in page.read_text()
    )
    ways += [(".", code, "bert") for code in shown_in(page)]
    trainer.save_model("else/where")
    assert 'load_pruned("else/where")' in shown_in(page)[0]
    ways += [(".", code, "bert") for code in shown_in(page)]
    ways += [("else", code, "bert") for code in shown_in(tmp_path / "else" / "where" / "README.md")]
    expected["bert"] = trainer.model.eval()
    for kind, own, plan in (
        ("cut", Elsewhere, PruningPlan({"layer.0.heads": [1, 2]})),
        ("masked", Minimal, PruningPlan({"bert.encoder.layer.0.output.dense.weight": range(9)})),
    ):
        model = apply_plan(own(tiny_model("bert").config), plan).eval()
        model.save_pretrained(kind)
        ways += [
            (".", f"from trainers import {own.__name__}\n{code}", kind)
            for code in shown_in(tmp_path / kind / "README.md")
        ]
        expected[kind] = model
    assert [kind for _, _, kind in ways] == ["bert"] * 6 + ["cut"] + ["masked"] * 2
    torch.save(tiny_batch(labels=False), "batch.pt")
    script = """
        import json, os, sys, torch
        torch.set_num_threads(1)
        batch, root, found = torch.load("batch.pt"), os.getcwd(), []
        for folder, code, _ in json.load(open("ways.json")):
            os.chdir(os.path.join(root, folder))
            names = {}
            exec(code, names)
            with torch.no_grad():
                found.append(names["model"](**batch).logits)
        torch.save(found, os.path.join(root, "logits.pt"))
        from transformers import AutoModel
        try:  # a class that would not find the weights, and start at random
            AutoModel.from_pretrained(os.path.join(root, "cut"), trust_remote_code=True)
        except ValueError as error:
            print(error)
    """
    (tmp_path / "ways.json").write_text(json.dumps(ways))
    written = fresh_python.run(script, tmp_path)
    assert "encoder.layer.0.attention.output.dense.weight" in written
    assert "it was saved as Elsewhere: load it as that, by `load_pruned(..., model_class=Elsewhere)`" in written
    with torch.no_grad():
        for (_, code, kind), logits in zip(ways, torch.load("logits.pt"), strict=True):
            assert torch.equal(logits, expected[kind](**tiny_batch(labels=False)).logits), code


class Save(TrainerCallback):
    """At the second step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.trainer.save_model(f"{args.output_dir}/second")


@pytest.mark.parametrize("resume", few([True, False]))
def test_a_checkpoint_of_other_weights_is_not_the_place(resume, tmp_path):
    """Though its plan is the same: of an earlier run, or from before the training's end."""
    config, save, page = pruning(method="magnitude"), Save(), tmp_path / "report.html"
    make_trainer(tmp_path, config, save_strategy="epoch").train()
    save.trainer = make_trainer(tmp_path, config, learning_rate=1e-2, callbacks=[save])
    save.trainer.train(resume_from_checkpoint=resume)
    if resume:  # from the end
        assert f'load_pruned("{tmp_path / "checkpoint-6"}")' in shown_in(page)[0]
        return
    assert load_pruned(tmp_path / "second").pruning_plan == load_pruned(tmp_path / "checkpoint-6").pruning_plan
    assert "the model was not saved where it could be loaded from" in page.read_text()
    for name in ("one", "two", "one"):
        save.trainer.save_model(tmp_path / name)
        assert f'load_pruned("{tmp_path / name}")' in shown_in(page)[0]


@pytest.mark.parametrize("rounds", few([2, 1]))
def test_the_trainer_writes_it(rounds, browser, tmp_path):
    """At the end of training, with scores; what is measured later comes with the model that is saved."""
    trainer = make_trainer(tmp_path, pruning(rounds=rounds, recovery="none"), compute_metrics=accuracy)
    dense = f"{trainer.evaluate()['eval_accuracy']:.4g}"
    trainer.train()
    read(browser, tmp_path / "report.html")
    assert table(browser)["accuracy"] == [dense, "", ""]
    assert titles(browser) == ["Heads", "What every layer keeps", "Scores and the cut", "Agreement"]
    before, after, ratio = map(float, table(browser)["latency of a forward pass (ms)"])
    assert before > 0 and after > 0 and ratio == pytest.approx(after / before, abs=0.1) and "as fast" in tiles(browser)
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "each of 8 x 64 tokens in float32 on" in text  # the model has no more positions
    assert "the model was not saved where it could be loaded from" in text and "coloured by its importance" in text
    assert ("Grey: removed before the last scoring" in text) == (rounds == 2)
    pruned = f"{trainer.evaluate()['eval_accuracy']:.4g}"
    trainer.save_model()
    read(browser, tmp_path / "report.html")
    assert f'load_pruned("{tmp_path}")' in browser.find_element(By.TAG_NAME, "main").text
    assert table(browser)["accuracy"][:2] == [dense, pruned]


def test_its_pictures_are_drawn_once_a_cut(tmp_path, monkeypatch):
    """They take longer than all else that is written; metrics that come in later do not change them."""
    drawn, draw = [], run_report.draw_pictures
    monkeypatch.setattr(run_report, "draw_pictures", lambda *of: drawn.append(of) or draw(*of))
    trainer = make_trainer(tmp_path, pruning(method="magnitude", recovery="none"))
    trainer.train()
    first = (tmp_path / "report.html").read_text()
    trainer.evaluate()
    trainer.save_model()
    second = (tmp_path / "report.html").read_text()
    assert len(drawn) == 1 and first != second and first.count("<svg") == second.count("<svg") == 4


@pytest.mark.parametrize("dense_epochs", few([1, 0]))
def test_a_resumed_run_has_no_scores(dense_epochs, tmp_path):
    """But the metrics of the dense model as it was cut, whatever the one is like that the trainer is made with."""
    config = pruning(method="magnitude", dense_epochs=dense_epochs)
    trainer = make_trainer(tmp_path, config, save_strategy="epoch", eval_strategy="epoch")
    dense = trainer.evaluate()
    trainer.train()
    assert (trainer.run.evaluations.dense == dense) != dense_epochs
    (tmp_path / "report.html").unlink()
    resumed = make_trainer(tmp_path, config, save_strategy="epoch", eval_strategy="epoch")
    resumed.evaluate()
    resumed.train(resume_from_checkpoint=True)
    loss = trainer.run.evaluations.dense["eval_loss"]
    assert resumed.run.evaluations.dense["eval_loss"] == loss
    page = (tmp_path / "report.html").read_text()
    assert f"{loss:.4g}</td>" in page
    assert "What every layer keeps" in page and "Scores and the cut" not in page and "coloured" not in page
    assert "latency of a forward pass (ms)" in page and "Agreement" not in page


def watch_timing(monkeypatch):
    """Collects the models that are timed, and at what shape."""
    seen = []

    def measure(models, *shape, **keywords):
        seen.append(({name: sizes(model) for name, model in models.items()}, shape))
        return measure_latency(models, *shape, **keywords)

    monkeypatch.setattr(run_report, "measure_latency", measure)
    return seen


@pytest.mark.parametrize(
    ("recovery", "pruned_before"),
    [
        pytest.param("none", False, marks=pytest.mark.long),
        ("reconstruct", True),
        pytest.param("finetune", False, marks=pytest.mark.long),
        pytest.param("none", True, marks=pytest.mark.long),
        pytest.param("reconstruct", False, marks=pytest.mark.long),
        pytest.param("finetune", True, marks=pytest.mark.long),
    ],
)
def test_the_model_is_timed_once_against_the_uncut_one(recovery, pruned_before, tmp_path, monkeypatch):
    """Also if it came pruned, and if no dense model is left. No random state is moved."""
    seen, model, uncut = watch_timing(monkeypatch), tiny_model("bert"), sizes(tiny_model("bert"))
    if pruned_before:
        prune_heads(model, {0: [1]}).save_pretrained(tmp_path / "before")
        model = load_pruned(tmp_path / "before")
    trainer = make_trainer(tmp_path / "out", pruning(recovery=recovery), model, max_steps=1)
    states = []

    def watched(*run):
        states.append(torch.get_rng_state())
        finish(*run)
        states.append(torch.get_rng_state())

    monkeypatch.setattr("optimum_camcut.training.trainer.finish", watched)
    trainer.train()
    trainer.save_model()
    ((timed, shape),) = seen
    assert timed == {"dense": uncut, "pruned": sizes(trainer.model)} and shape == (8, 64)
    assert torch.equal(*states)
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("Agreement" in page) != pruned_before  # of what earlier cuts removed, all methods are of one mind


def test_the_precision_of_training_is_not_timed_and_stays(tmp_path, monkeypatch):
    """Evaluation after a run in mixed precision gives what it gave before the run was reported."""
    seen = watch_timing(monkeypatch)
    trainer = make_trainer(tmp_path, pruning(method="magnitude"), bf16=True, max_steps=1)
    losses = []

    def watched(*run):
        losses.append(trainer.evaluate()["eval_loss"])
        finish(*run)

    monkeypatch.setattr("optimum_camcut.training.trainer.finish", watched)
    trainer.train()
    assert len(seen) == 1 and trainer.evaluate()["eval_loss"] == losses[0]


def test_single_weights_are_not_timed(tmp_path, monkeypatch):
    seen = watch_timing(monkeypatch)
    config = pruning(method="snip", granularity=("weights",), recovery="none")
    make_trainer(tmp_path, config).train()
    page = (tmp_path / "report.html").read_text()
    assert not seen and "latency" not in page.partition("All settings")[0] and "Agreement" in page


@pytest.mark.parametrize(
    "error", few([torch.OutOfMemoryError("out of memory"), MemoryError("no room"), TypeError("odd")])
)
def test_timing_that_fails_loses_nothing(error, tmp_path, monkeypatch, caplog):
    def fail(model):
        raise error

    monkeypatch.setattr(run_report, "dense_twin", fail)
    trainer = make_trainer(tmp_path, pruning(method="magnitude", recovery="none"))
    with caplog.at_level(logging.INFO, "optimum_camcut"):
        trainer.train()
    (record,) = [record for record in caplog.records if "tells no latency" in record.getMessage()]
    assert str(error) in record.getMessage() and record.levelno == logging.INFO
    page = (tmp_path / "report.html").read_text()
    assert "What every layer keeps" in page and "latency of a forward pass" not in page


@pytest.mark.parametrize("rounds", few([2, 1]))
@pytest.mark.parametrize("method", few(["taylor", "magnitude"]))
def test_the_baselines_plan_for_the_same_config(method, rounds, tmp_path):
    """From the model as it was before the run; a method is not compared with itself."""
    dense, config = tiny_model("bert"), pruning(method=method, recovery="none", rounds=rounds)
    trainer = make_trainer(tmp_path, config)
    trainer.train()
    page, groups = (tmp_path / "report.html").read_text(), find_groups(dense)
    for other in ("magnitude", "random"):
        changed = dataclasses.replace(config, method=other)
        plan = make_plan(score_groups(dense, groups, None, changed), groups, changed)
        iou = mask_iou(trainer.pruning_plan, plan).total
        assert (f"this model and {other}: {iou:.2f}." in page) == (other != method)


def test_baselines_that_fail_lose_nothing(tmp_path, monkeypatch, caplog):
    def fail(*args, **keywords):
        raise MemoryError("no room")

    monkeypatch.setattr(run_report, "score_groups", fail)
    trainer = make_trainer(tmp_path, pruning(method="magnitude", recovery="none"))
    with caplog.at_level(logging.INFO, "optimum_camcut"):
        trainer.train()
    assert "no plan by the method 'random', which failed: MemoryError('no room')" in caplog.text
    assert "Agreement" not in (tmp_path / "report.html").read_text()


def test_a_report_that_fails_loses_nothing(tmp_path, caplog):
    (tmp_path / "report.html").mkdir()
    trainer = make_trainer(tmp_path, pruning(method="magnitude", recovery="none"))
    trainer.train()
    (record,) = [record for record in caplog.records if "report.html could not be written" in record.getMessage()]
    assert record.levelno == logging.WARNING
    trainer.save_model()
    assert load_pruned(tmp_path).pruning_plan == trainer.pruning_plan


def test_the_card_shows_what_is_kept(tmp_path):
    """In PNG files beside it, which the Hub shows, and whose names the card gives."""
    apply_plan(tiny_model("bert"), PruningPlan(KEEP)).save_pretrained(tmp_path)
    shown = re.findall(r"!\[(.+?)\]\((.+?)\)", (tmp_path / "README.md").read_text())
    assert [name for _, name in shown] == ["pruning_heads.png", "pruning_kept.png"]
    for _, name in shown:
        content = (tmp_path / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", content[16:24])) > 150
    mask = {"bert.pooler.dense.weight": range(9)}
    apply_plan(tiny_model("bert"), PruningPlan(mask)).save_pretrained(tmp_path / "masked")
    assert "(pruning_kept.png)" in (tmp_path / "masked" / "README.md").read_text()
    assert not (tmp_path / "masked" / "pruning_heads.png").exists()


def test_a_report_of_the_users_own_stays(tmp_path):
    trainer = make_trainer(tmp_path, pruning(method="magnitude", recovery="none"))
    trainer.train()
    trainer.save_model()
    latency = {"pruned": LatencyResult(0.25, 0.2, 0.3)}
    own = write_report(tmp_path, trainer.model, latency=latency).read_bytes()
    trainer.save_model()
    assert (tmp_path / "report.html").read_bytes() == own and b"latency" in own


def test_pictures_that_fail_lose_no_checkpoint(tmp_path, monkeypatch, caplog):
    """A user's settings, say, ask for a LaTeX that is not there."""
    monkeypatch.setattr("optimum_camcut.reporting.card._drawn", (lambda: None, {}))
    monkeypatch.setenv("PATH", str(tmp_path))
    model = tiny_model("bert")
    apply_plan(model, PruningPlan({"layer.0.heads": [0]}))
    with matplotlib.rc_context({"text.usetex": True}):
        model.save_pretrained(tmp_path / "model")
    assert "the card has no pictures" in caplog.text and not list((tmp_path / "model").glob("*.png"))
    assert load_pruned(tmp_path / "model").pruning_plan == model.pruning_plan


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_libraries(missing, fresh_python, tmp_path):
    """Only the report is refused: models are trained and saved, without pictures where these cannot be drawn."""
    code = f"""
import logging, sys
from pathlib import Path
import huggingface_hub.repocard  # needs jinja2 itself
from trainers import make_trainer, pruning
sys.modules[{missing!r}] = None
from optimum_camcut.reporting.report import write_report
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
trainer = make_trainer({str(tmp_path)!r}, pruning(method="magnitude", recovery="none"))
trainer.train()
if {missing!r} == "matplotlib":
    trainer.save_model()
try:
    write_report({str(tmp_path)!r}, trainer.model)
except ImportError as error:
    print("ImportError:", error)
"""
    written = fresh_python.run(code, tmp_path)
    message = f"a report needs jinja2 and matplotlib, and {missing} is missing; install them with: pip install "
    message += "optimum-camcut[report]"
    assert written.count(f"INFO no report.html was written: {message}") == 1, written
    assert f"ImportError: {message}" in written and "WARNING" not in written
    assert not (tmp_path / "report.html").exists() and not list(tmp_path.glob("*.png"))
    if missing == "matplotlib":
        assert (
            "## Pruning" in (tmp_path / "README.md").read_text() and "![" not in (tmp_path / "README.md").read_text()
        )
