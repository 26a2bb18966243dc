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
"""Inputs at random: each is accepted and can be used, or refused by an error of the project's own.

Drawn by a seeded generator and not by hypothesis, which takes as long to draw one input as to try five.
"""

import copy
import dataclasses
import dis
import json
import re
import shutil
from decimal import Decimal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import transformers
from models import tiny_batch, tiny_model
from transformers import AutoConfig

import optimum_camcut
from optimum_camcut import LatencyTable, PruningConfig, PruningPlan, apply_plan, find_groups, load_pruned, make_plan
from optimum_camcut.architectures.modeling_camcut import RECORD, pruned_class
from optimum_camcut.architectures.structure import list_groups
from optimum_camcut.config import CHOICES
from optimum_camcut.planning.plan import PLAN_NAME
from optimum_camcut.planning.units import IndexSet
from optimum_camcut.scoring import SCORERS, WEIGHT_SCORERS


CONFIGS, CONFIGS_FROM_JSON, PLANS, PLANS_FROM_JSON, PLANS_ON_A_MODEL = 8000, 3000, 3000, 5000, 800
INDEX_SETS, FILES, RECORDS, CHECKPOINTS, WEIGHTS = 2000, 1000, 500, 150, 150
TRANSFORMERS_4 = transformers.__version__.startswith("4.")
PACKAGE = Path(optimum_camcut.__file__).parent


def own(error):
    """The message of an error that this package raised, by a `raise` of its own."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    where = Path(code.co_filename)
    inside = PACKAGE in where.parents or where.name == "modeling_camcut.py"
    if not inside or code.co_code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        raise AssertionError(f"raised by accident in {where}, {code.co_name}") from error
    assert isinstance(error, ValueError | TypeError) and 20 < len(str(error)) < 2000, repr(error)
    return str(error)


def attempt(function, *args, **kwargs):
    """The result, or None if it was refused as it should be."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        own(error)
        return None


# --- what to try ----------------------------------------------------------------------------------------------------

NAMES = [*SCORERS, *WEIGHT_SCORERS, *(choice for choices in CHOICES.values() for choice in choices)]
NESTED = []
for _ in range(2000):
    NESTED = [NESTED]
SCALARS = [
    *(None, True, False, 0, 1, 2, 3, -1, 2**31, 2**63, 10**400, -(10**400), 10**5000),
    *(0.5, -0.5, 0.0, -0.0, 1.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", "x", "1", "0.5", "\ud800", "\0", "é中", "layer.0.heads", *NAMES),
]
OBJECTS = [
    *(np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True), np.str_("heads"), np.array(["heads", "neurons"])),
    *(np.array("cam_cut"), np.array([["heads"]]), np.array(3), np.array([0.5, 0.5]), np.array([0, 2])),
    *(torch.tensor(0.5), torch.tensor([0, 2]), torch.tensor([True, False]), torch.tensor(3), torch.ones(2, 2)),
    *(b"heads", bytearray(b"\0\1"), range(2), range(3, 0, -1), (), {1, 2}, {"heads"}, frozenset(), {1: [2]}),
    *(object(), int, len, 1j, Decimal("0.5"), Path("heads"), slice(2), ..., IndexSet(np.ones(3, dtype=bool))),
    *(["heads", {}], {"heads": 1}, [np.array([0])], PruningConfig(sparsity=0.5), PruningPlan({})),
]


def any_json(r, depth=3):
    kind = r.random() if depth else 0
    if kind < 0.6:
        return r.choice([r.choice(SCALARS), r.randint(-3, 300), r.uniform(-2, 2)])
    if kind < 0.62:
        return NESTED
    if kind < 0.8:
        return [any_json(r, depth - 1) for _ in range(r.randint(0, 3))]
    return {r.choice(["", "x", "1", "layer.0.heads", "sizes"]): any_json(r, depth - 1) for _ in range(r.randint(0, 3))}


def anything(r):
    return r.choice([r.choice(OBJECTS), any_json(r)])


def places(value, path=()):
    """Paths to everything inside of a JSON value, up to some depth."""
    yield path
    if isinstance(value, dict | list) and len(path) < 6:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def altered(r, value, inside=()):
    """A JSON value, altered in one to three places inside of some part."""
    value = copy.deepcopy(value)
    for _ in range(r.randint(1, 3)):
        paths = [path for path in places(value) if len(path) > len(inside) and path[: len(inside)] == inside]
        if not paths:
            break
        path = r.choice(paths)
        part = value
        for key in path[:-1]:
            part = part[key]
        old, action = part[path[-1]], r.choice(["replace", "remove", "add", "near"])
        if action == "remove":
            del part[path[-1]]
        elif action == "add" and isinstance(old, dict):
            old[r.choice([*old, "layer.0.heads", "layer.1.heads", "layer.0.attention", "x"])] = any_json(r)
        elif action == "add" and isinstance(old, list):
            old.append(any_json(r))
        elif action == "near" and type(old) is int:
            part[path[-1]] = old + r.randint(-2, 2)
        else:
            part[path[-1]] = any_json(r)
    return value


@pytest.fixture(scope="module")
def small():
    """A model of one layer, its groups of every kind, and scores for them."""
    model = tiny_model("bert", num_hidden_layers=1, hidden_size=8, intermediate_size=9)
    groups = find_groups(model, ("heads", "neurons", "layers", "vocabulary", "weights"))
    generator = torch.Generator().manual_seed(0)
    return model, groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}


# --- PruningConfig --------------------------------------------------------------------------------------------------

# Of the small model: seconds of its layer by heads and by neurons.
TABLE = LatencyTable(
    conditions={},
    total=1.0,
    times={"heads": {1: 0.2, 4: 0.4}, "neurons": {1: 0.1, 9: 0.5}},
    sizes={"layer.0.heads": 4, "layer.0.neurons": 9},
    widths={"heads": 2, "neurons": 1},
)
SENSIBLE = {
    "method": lambda r: r.choice([None, "frequency", *SCORERS, *WEIGHT_SCORERS]),
    "granularity": lambda r: r.choice(
        [
            "heads",
            ["heads"],
            ["neurons", "heads"],
            ["layers", "heads"],
            ["vocabulary", "heads"],
            "vocabulary",
            ["weights"],
        ]
    ),
    "min_frequency": lambda r: r.choice([None, 1, 2, 50]),
    "sparsity": lambda r: r.random(),
    "compression": lambda r: r.uniform(1, 3),
    "smooth_samples": lambda r: r.choice([None, 3]),
    "smooth_examples": lambda r: r.choice([None, 3]),
    "dropout": lambda r: r.choice([None, True, False]),
    "distill_top_k": lambda r: r.choice([None, 1, 50]),
    "lora_rank": lambda r: r.choice([None, 1, 8]),
    "rewind": lambda r: r.choice([True, False]),
    "shift": lambda r: r.choice([0.0, 10.0]),
    "seed": lambda r: r.randrange(2**33),
    "exclude": lambda r: r.choice([None, [], [0], ["*.heads"], ["*.neurons"]]),
}
for _name in ("budget", "allocation", "layer_unit", "noise_scale", "recovery"):
    SENSIBLE[_name] = lambda r, name=_name: r.choice(CHOICES[name])
for _name in ("num_samples", "rounds", "multiple_of", "sequence_length", "latency_batch_size", "min_units"):
    SENSIBLE[_name] = lambda r: r.choice([r.randint(0, 20), 2**63 - 1])
for _name in ("noise_std", "dense_epochs", "distill_weight", "distill_temperature"):
    SENSIBLE[_name] = lambda r: r.choice([r.uniform(0, 2), 1e308])


def fields(r, wild):
    """Fields of a `PruningConfig`, most of them sensible."""
    values = r.choice([{"sparsity": r.random()}, {"compression": 1 + r.random() ** 4}, {"sparsity": 0.99}])
    names = list(SENSIBLE)
    values |= {name: SENSIBLE[name](r) for name in r.sample(names, r.randint(0, 4))}
    return values | {name: wild(r) for name in r.sample(names, r.choice([0, 0, 1, 1, 2]))}


def check_config(config, groups, scores):
    """A config that was accepted survives JSON, and gives a plan or says how far one could go."""
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert PruningConfig.from_dict(values) == config
    given = [value for value in (config.sparsity, config.compression) if value is not None]
    assert len(given) == 1 or (not given and config.min_frequency and config.granularity == ("vocabulary",))
    if config.allocation == "search":  # by what the model gives
        with pytest.raises(ValueError, match=r"call search_plan\("):
            make_plan(scores, groups, config, latency=TABLE)
        return
    try:
        plan = make_plan(scores, groups, config, latency=TABLE)
    except ValueError as error:
        message = own(error)
        if config.exclude and "which matches nothing that granularity" in message:
            return
        assert "cannot be reached: the highest possible" in message, message
        name, value = re.search(r"the highest possible (\w+) here is (\S+)", message).groups()
        if float(value) <= {"sparsity": 0, "compression": 1}[name]:
            return
        plan = make_plan(scores, groups, dataclasses.replace(config, **{name: float(value)}), latency=TABLE)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan


def test_there_are_enough_inputs_and_all_fields():
    assert 20_000 <= sum(
        (CONFIGS, CONFIGS_FROM_JSON, PLANS, PLANS_FROM_JSON, PLANS_ON_A_MODEL, INDEX_SETS, FILES, RECORDS, CHECKPOINTS)
    )
    assert SENSIBLE.keys() == {field.name for field in dataclasses.fields(PruningConfig)}


def test_a_config_is_usable_or_refused(small):
    accepted = 0
    for seed in range(CONFIGS):
        config = attempt(PruningConfig, **fields(Random(seed), anything))
        if config is not None:
            check_config(config, *small[1:])
            accepted += 1
    assert 0.2 < accepted / CONFIGS < 0.8


def test_a_config_from_json_is_usable_or_refused(small):
    for seed in range(CONFIGS_FROM_JSON):
        r = Random(seed)
        values = r.choice([fields(r, any_json), fields(r, any_json) | {r.choice(["x", 1, None]): 1}, anything(r)])
        config = attempt(PruningConfig.from_dict, values)
        if config is not None:
            check_config(config, *small[1:])


# --- PruningPlan ----------------------------------------------------------------------------------------------------


def whole_plans(groups):
    """Plans as JSON that fit the small model: of units, with a sub-layer removed, and of single weights."""
    mask = np.arange(64) % 3 > 0
    plans = [
        PruningPlan(
            {"layer.0.heads": [0, 3], "layer.0.neurons": range(5)},
            {"layer.0.heads": 4, "layer.0.neurons": 9},
            "bert",
            PruningConfig(sparsity=0.5),
            1,
        ),
        PruningPlan({"layer.0.attention": [], "layer.0.neurons": [2, 1]}, {"layer.0.attention": 1}, num_layers=1),
        PruningPlan({g.name: IndexSet(mask) for g in groups if g.original_size == 64 and g.kind == "weights"}),
        PruningPlan({"layer.0.heads": IndexSet(mask[:4])}, model_type="bert"),
    ]
    return [json.loads(json.dumps(plan.to_dict())) for plan in plans]


def check_plan(plan):
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan
    assert isinstance(str(plan), str) and len(plan.table()) <= len(plan.keep)
    for name, units in plan.keep.items():
        assert list(units) == sorted(set(units)) and all(type(unit) is int and unit >= 0 for unit in units[:9])
        if plan.sizes.get(name, 10**9) < 10**6:
            assert len(plan.removed(name)) == plan.sizes[name] - len(units)


def check_on_a_model(plan, model):
    """The plan fits the model, which then runs and has what was kept, or it is refused and nothing is changed."""
    before = model.state_dict()
    model = copy.deepcopy(model)
    if attempt(apply_plan, model, plan) is None:
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        return False
    sizes = {group.name: group.size for group in find_groups(model, ("heads", "neurons", "layers", "weights"))}
    for name, units in plan.keep.items():
        assert sizes.get(name, 0) == len(units) or sizes.get(name.replace("heads", "attention"), 0) == 0
    if not TRANSFORMERS_4 or sizes.get("layer.0.heads") != 0:  # which transformers 4 cannot run
        assert model(**tiny_batch()).logits.isfinite().all()
    return True


def odd_plan(r):
    """Keywords for the constructor, some of them sensible."""
    names = [
        "layer.0.heads",
        "layer.0.neurons",
        "layer.0.attention",
        "layer.1.heads",
        "classifier.weight",
        "",
        1,
        None,
    ]
    lists = [[0], [1, 0], [], range(3), (2,), {0, 1}, np.array([2, 0]), torch.tensor([1]), IndexSet(np.ones(4, bool))]

    def part(sensible):
        names_here = r.sample(names[: r.choice([3, 3, len(names)])], 2)
        return {name: r.choice(sensible) if r.random() < 0.85 else anything(r) for name in names_here}

    values = {"keep": part(lists), "sizes": part([4, 9, 1]), "model_type": "bert", "config": None, "num_layers": 1}
    for name in r.sample(list(values), r.choice([0, 0, 1, 1, 2])):
        values[name] = anything(r)
    return values


def test_a_plan_is_usable_or_refused():
    accepted = 0
    for seed in range(PLANS):
        plan = attempt(PruningPlan, **odd_plan(Random(seed)))
        if plan is not None:
            check_plan(plan)
            accepted += 1
    assert 0.1 < accepted / PLANS < 0.8


def test_a_plan_from_json_is_usable_or_refused(small):
    plans = whole_plans(small[1])
    for seed in range(PLANS_FROM_JSON):
        r = Random(seed)
        values = altered(r, r.choice(plans)) if r.random() < 0.95 else anything(r)
        plan = attempt(PruningPlan.from_dict, values)
        if plan is not None:
            check_plan(plan)


def test_a_plan_fits_a_model_or_is_refused(small):
    plans, fitted = whole_plans(small[1]), 0
    for seed in range(PLANS_ON_A_MODEL):
        r = Random(seed)
        values = r.choice(plans)
        plan = attempt(PruningPlan.from_dict, altered(r, values, r.choice([(), ("keep",), ("sizes",)])))
        fitted += plan is not None and check_on_a_model(plan, small[0])
    assert fitted > 0.05 * PLANS_ON_A_MODEL
    assert all(check_on_a_model(PruningPlan.from_dict(values), small[0]) for values in plans)


def test_index_sets_are_usable_or_refused():
    whole = IndexSet(np.arange(20) % 3 == 0).to_dict()
    for seed in range(INDEX_SETS):
        r = Random(seed)
        values = (
            altered(r, whole) if r.random() < 0.8 else {**whole, "bits": r.choice(["AAAA", "eJwDAAAAAAE=", b"", "é"])}
        )
        made = attempt(IndexSet.from_dict, values if r.random() < 0.95 else anything(r))
        if made is not None:
            assert IndexSet.from_dict(json.loads(json.dumps(made.to_dict()))) == made and len(list(made)) == len(made)


# --- files ----------------------------------------------------------------------------------------------------------


def spoilt(r, data):
    """The bytes of a file: cut short, changed, in another encoding, or others."""
    start, kind = r.randrange(len(data)), r.randrange(6)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + bytes([r.randrange(256)]) + data[start + 1 :]
    if kind == 2:
        return data[:start] + r.randbytes(9) + data[start:]
    if kind == 3:
        return data.decode().encode(r.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    if kind == 4:
        return r.choice([b"", b"\0" * 99, b"[" * 9999, b"9" * 9999, b"null", b"\xff\xfe", r.randbytes(99)])
    return data.replace(b"1", r.choice([b"1" * 5000, b"1e999", b"-1", b'"1"', b"[" * 9999]), 1)


def test_a_spoilt_file_is_refused(tmp_path):
    config = PruningConfig(sparsity=0.5, granularity="heads")
    PruningPlan({"layer.0.heads": [0, 1]}, {"layer.0.heads": 4}, "bert", config, 1).save(tmp_path)
    config.save_pretrained(tmp_path)
    for read, name in (
        (PruningPlan.load, "pruning_plan.json"),
        (PruningConfig.from_pretrained, "pruning_config.json"),
    ):
        data, whole = (tmp_path / name).read_bytes(), read(tmp_path)
        for seed in range(FILES // 2):
            (tmp_path / name).write_bytes(spoilt(Random(seed), data))
            made = attempt(read, tmp_path)
            if made is not None:
                assert type(made) is type(whole)
                made.to_dict()
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(OSError, match=name):
            read(tmp_path)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of pruned checkpoints of one and two layers, with their logits."""
    small = {"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 2, "vocab_size": 99}
    plans = {
        "bert": {"layer.0.heads": [0, 3], "layer.1.heads": [1], "layer.1.neurons": range(4)},
        "mpnet": {"layer.0.heads": [0, 3], "layer.1.neurons": range(4)},
        "gpt2": {"layer.0.attention": [], "layer.1.heads": [1, 2, 3], "layer.1.feed_forward": []},
        "distilbert": {"layer.0.heads": [0, 2]},
    }
    made = {}
    for architecture, keep in plans.items():
        changes = small
        if architecture == "gpt2":
            changes = {"n_embd": 8, "n_inner": 9, "n_layer": 2}
        if architecture == "distilbert":
            changes = {"dim": 8, "hidden_dim": 9, "n_layers": 2}
        folder = tmp_path_factory.mktemp(architecture)
        model = apply_plan(tiny_model(architecture, **changes), PruningPlan(keep))
        model.save_pretrained(folder)
        if architecture == "distilbert":  # as transformers 4 itself wrote it
            (folder / PLAN_NAME).unlink()
            values = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != RECORD}))
        made[folder] = logits(model)
    return made


def logits(model):
    with torch.no_grad():
        return model(**tiny_batch(labels=False)).logits


def altered_config(r, values):
    """What a checkpoint's config records of the cut, altered."""
    part = r.choice([(RECORD,), (RECORD, "sizes"), (RECORD, "kept_heads"), ("pruned_heads",), ("auto_map",), ()])
    kept = {name: values[name] for name in (RECORD, "pruned_heads", "auto_map") if name in values}
    rest = {name: value for name, value in values.items() if name not in kept}
    return rest | altered(r, kept, part)


def writable(values):
    """As JSON, or None where Python would neither write nor read it."""
    try:
        return json.dumps(values)
    except (ValueError, RecursionError):
        return None


def test_a_checkpoint_s_config_is_usable_or_refused(checkpoints, tmp_path):
    loaded = 0
    for number, (folder, expected) in enumerate(checkpoints.items()):
        shutil.copytree(folder, tmp_path / folder.name)
        values = json.loads((folder / "config.json").read_text())
        for seed in range(number, CHECKPOINTS, len(checkpoints)):
            text = writable(altered_config(Random(seed), values))
            if text is not None:
                (tmp_path / folder.name / "config.json").write_text(text)
                model = attempt(load_pruned, tmp_path / folder.name)
                if model is not None:
                    assert torch.equal(logits(model), expected)
                    loaded += 1
    assert 0.05 < loaded / CHECKPOINTS < 0.8


def test_the_stand_alone_classes_take_a_config_or_refuse_it(checkpoints):
    built = 0
    for number, folder in enumerate(checkpoints):
        whole = AutoConfig.from_pretrained(folder)
        model_class = pruned_class(getattr(transformers, whole.architectures[0]))
        values = whole.to_dict()
        for seed in range(number, RECORDS, len(checkpoints)):
            config, changed = copy.deepcopy(whole), altered_config(Random(seed), values)
            if writable(changed) is None:
                continue
            setattr(config, RECORD, changed.get(RECORD))
            if not TRANSFORMERS_4:  # which prunes by itself, before our class has a say
                config.pruned_heads = changed.get("pruned_heads")
            model = attempt(model_class, config)
            if model is not None:
                built += 1
                if not TRANSFORMERS_4 or all(group.size for group in list_groups(model)):
                    assert logits(model).isfinite().all()
    assert 0.05 < built / RECORDS < 0.8


def test_spoilt_weights_are_refused(checkpoints, tmp_path):
    """Cut short, or with a changed header. Changed numbers cannot be told from others, but NaN and infinity can."""
    folder, expected = next(iter(checkpoints.items()))
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for seed in range(WEIGHTS):
        r = Random(seed)
        place, kind = r.randrange(header), r.randrange(3)
        spoilt = data[:place] + bytes([data[place] ^ 1 << r.randrange(8)]) + data[place + 1 :]
        spoilt = (spoilt, data[: r.randrange(len(data))], data[:place] + r.randbytes(3) + data[place + 3 :])[kind]
        file.write_bytes(spoilt)
        model = attempt(load_pruned, tmp_path / "copy")
        assert file.read_bytes() == spoilt
        if model is not None:
            assert torch.equal(logits(model), expected)
