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
"""`PruningConfig`: what it refuses, how it is saved, and its command line."""

import dataclasses
import json
import re

import pytest
from models import tiny_batch, tiny_model
from transformers import HfArgumentParser

from optimum_camcut import PruningConfig, find_groups, score_groups
from optimum_camcut.config import CHOICES
from optimum_camcut.scoring import SCORERS


FIELDS = tuple(field.name for field in dataclasses.fields(PruningConfig))
NAN, INFINITY = float("nan"), float("inf")
HUGE = 10**400  # beyond any float

COUNT = (0, -1, 1.0, 1.5, "1", None, True, [1], HUGE * -1)
LEAST = (-1, 1.0, "0", None, False, {}, HUGE * -1)
BAD = {
    "method": ("tailor", "", 1, True, ["cam_cut"], [], {}),
    "granularity": ("head", "", [], ["heads", "heads"], ["heads", "blocks"], [1], [None], [["heads"]], None, 3, True),
    "sparsity": (0, 1, 0.0, 1.0, -0.5, 1.5, NAN, INFINITY, "0.5", True, [0.5], HUGE),
    "compression": (1, 1.0, 0.5, 0, -2.0, NAN, INFINITY, "2", True, [2.0], HUGE),
    "budget": ("latencies", "", None, 1, True, ["params"]),
    "allocation": ("by_kind", "", None, 0, False, {"global": 1}),
    "layer_unit": ("layer", "", None, 1, True, ["block"]),
    "num_samples": COUNT,
    "smooth_samples": [value for value in COUNT if value is not None],
    "smooth_examples": [value for value in COUNT if value is not None],
    "noise_std": (-0.1, NAN, INFINITY, "0.1", True, [], HUGE),
    "noise_scale": ("relatively", "", 1, ["relative"]),
    "dropout": (1, 0, "yes", []),
    "shift": (10.0, -1, NAN, "0", None, False, HUGE),
    "rounds": COUNT,
    "rewind": (1, 0, "yes", None, []),
    "recovery": ("retrain", "", None, 1, ["none"]),
    "dense_epochs": (-1, -0.5, NAN, INFINITY, "1", None, True, HUGE),
    "distill_weight": (-0.1, 1.1, NAN, INFINITY, "0.5", None, True, HUGE),
    "distill_temperature": (0, 0.0, -1, NAN, INFINITY, "2", None, True, HUGE),
    "distill_top_k": (0, -1, 1.5, "2", True, NAN),
    "lora_rank": (0, -1, 1.5, "2", True, NAN),
    "min_frequency": [*(value for value in COUNT if value is not None), 1],  # 1 needs the vocabulary
    "min_units": (
        *(value for value in LEAST if value not in ("0", None)),
        *("", "x", "-1", "heads", "heads=", "heads=1,heads=2", "heads:1", [1], {"heads": -1}, {"heads": True}),
        *({"heads": None}, {"head": 1}, {"layers": 1}, {1: 1}, {"heads": HUGE}),
    ),
    "multiple_of": COUNT,
    "sequence_length": COUNT,
    "latency_batch_size": COUNT,
    "seed": LEAST,
    "exclude": ("", " ", True, 1.5, [None], [True], ["", "0"], [["0"]], {"0": 1}, [0.0]),
}
KNOWN = {"method": tuple(SCORERS), **CHOICES}


def config(**changes):
    if "compression" not in changes:
        changes = {"sparsity": 0.5, **changes}
    return PruningConfig(**changes)


def test_every_field_is_tried():
    assert set(BAD) == set(FIELDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{value!r:.20}") for name, values in BAD.items() for value in values],
)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ValueError) as error:
        config(**{name: value})
    message = str(error.value)
    assert re.search(rf"\b{name}\b", message), message
    # A list of kinds that are all known has another fault.
    if name in KNOWN and value not in ([], ["heads", "heads"]):
        for known in KNOWN[name]:
            assert known in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "tailor"},
            "unknown method 'tailor' for heads and neurons; known methods for heads and neurons: cam_cut, ",
        ),
        (
            {"granularity": ["heads", "blocks"]},
            "unknown granularity 'blocks'; expected 'heads' or 'neurons' or 'experts' or 'layers' or 'vocabulary' or "
            "'weights'",
        ),
        (
            {"granularity": "heads,neurons"},
            "granularity takes several as a list, or as words of the command line; got 'heads,neurons'",
        ),
        (
            {"method": "reap"},
            "method 'reap' scores experts alone: use it with granularity ['experts']; got ['heads', 'neurons']",
        ),
        ({"layer_unit": "layer"}, "unknown layer_unit 'layer'; expected 'sublayer' or 'block'"),
        ({"sparsity": 1.5}, "sparsity should be a number between 0 and 1, both excluded; got 1.5"),
        ({"compression": 1}, "compression should be a number above 1; got 1"),
        ({"num_samples": 0}, "num_samples should be an integer of at least 1 and below 2**63; got 0"),
        ({"rewind": "yes"}, "rewind should be True or False; got 'yes'"),
        ({"shift": 10.0}, "shift should be 0 for heads and neurons: it applies to single weights; got 10.0"),
        ({"rewind": True}, "rewind=True returns to the weights before the dense epochs; set dense_epochs above 0"),
        (
            {"distill_weight": 0.5, "recovery": "none"},
            "distill_weight applies to recovery='finetune' and 'reconstruct+finetune', got recovery='none'",
        ),
        (
            {"rewind": True, "dense_epochs": 1, "recovery": "reconstruct+finetune"},
            "rewind=True trains the initial weights again, which a rebuild would change first",
        ),
    ],
)
def test_what_the_error_says(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**changes)


def test_exactly_one_of_sparsity_and_compression():
    with pytest.raises(ValueError, match="min_frequency for tokens alone; got sparsity=None and compr"):
        PruningConfig()
    with pytest.raises(ValueError, match="give exactly one .* got sparsity=0.5 and compression=2.0"):
        PruningConfig(sparsity=0.5, compression=2.0)
    assert PruningConfig(sparsity=0.5).compression is None
    assert PruningConfig(compression=2).sparsity is None


def test_good_values_at_the_borders():
    made = config(
        sparsity=1e-9, noise_std=0, distill_weight=1, min_units=0, seed=0, num_samples=1, shift=0, dense_epochs=1
    )
    assert (made.noise_std, made.distill_weight, made.min_units) == (0, 1, 0)
    assert config(granularity="heads").granularity == ("heads",)
    assert config(granularity=["neurons", "heads"]).granularity == ("neurons", "heads")
    assert config().granularity == ("heads", "neurons")
    for method in SCORERS:
        assert config(method=method).method == method


def test_min_units_of_one_or_each_kind():
    """A number, or a text of one, is of both; what is not named keeps the default."""
    assert config().min_units == config(min_units=None).min_units == 1
    assert config(min_units="4").min_units == config(min_units=4).least_units("heads") == 4
    by_kind = config(min_units=" heads = 2, neurons=64")
    assert by_kind.min_units == {"heads": 2, "neurons": 64} and by_kind == config(min_units=by_kind.min_units)
    assert [config(min_units={"neurons": 3}).least_units(kind) for kind in ("heads", "neurons")] == [1, 3]
    given = {"neurons": 3}
    made = config(min_units=given)
    given.clear()
    assert made.min_units == {"neurons": 3}


def test_min_units_of_a_kind_that_is_not_cut_are_refused():
    for granularity, kind, of in (
        ("neurons", "heads", "neurons"),
        (("layers", "heads"), "layers", "heads"),
        ("weights", "heads", "no kind"),
    ):
        with pytest.raises(ValueError, match=rf"min_units of '{kind}' would have no effect: .* it is of {of}"):
            config(granularity=granularity, min_units={kind: 2})


def test_exclude_takes_numbers_and_patterns():
    assert config(exclude=[0, "*.heads", " 2 "]).exclude == ("0", "*.heads", "2")
    assert config(exclude=3).exclude == config(exclude="3").exclude == ("3",)
    assert config(exclude=[]).exclude is config().exclude is None
    for several in (range(2), {1, 0}, {"1": 2, "0": 3}.keys(), (number for number in (0, 1))):
        assert config(exclude=several).exclude == ("0", "1")
    for negative in ([-1], -1, ["0", "-1"]):
        with pytest.raises(ValueError, match="exclude numbers layers from 0, so that the last of 12 is 11; got -1"):
            config(exclude=negative)


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"method": "tailor"}, "taylor"),
        ({"method": "smoothcut"}, "smooth_cut"),
        ({"granularity": ["heads", "neuron"]}, "neurons"),
        ({"budget": "flop"}, "flops"),
        ({"allocation": "per-kind"}, "per_kind"),
        ({"recovery": "fine-tune"}, "finetune"),
        ({"min_units": {"head": 1}}, "heads"),
    ],
)
def test_the_nearest_is_suggested(changes, meant):
    with pytest.raises(ValueError, match=f"; did you mean '{meant}'\\?$"):
        config(**changes)
    with pytest.raises(ValueError, match="known fields: .*; did you mean 'sparsity'\\?$"):
        PruningConfig.from_dict({"sparcity": 0.5})


@pytest.mark.parametrize("seed", [2**31, 2**62, 2**64, 10**30])
def test_a_seed_that_is_accepted_can_be_used(seed):
    """`torch.Generator` takes 64 bits: a larger seed is refused by the config, or made to fit."""
    for method in ("random", "smooth_cut"):
        try:
            made = config(seed=seed, method=method, smooth_samples=1)
        except ValueError as error:
            assert "seed should be" in str(error)
            continue
        model = tiny_model("bert", num_hidden_layers=1)
        scores = score_groups(model, find_groups(model), [tiny_batch()], made, disable_tqdm=True)
        assert all(values.any() for values in scores.values())


def test_the_vocabulary_goes_by_frequency():
    alone = PruningConfig(granularity="vocabulary", min_frequency=1)
    assert (alone.method, alone.amount, alone.sparsity) == ("frequency", "min_frequency=1", None)
    assert (
        config(method=None).method == config(method=None, granularity=["heads", "vocabulary"]).method == "smooth_cut"
    )
    assert config(granularity="vocabulary", min_frequency=3).amount == "sparsity=0.5"
    for changes, message in (
        ({"min_frequency": 1}, "min_frequency counts tokens: it needs granularity 'vocabulary'"),
        ({"min_frequency": 1, "granularity": "vocabulary", "method": "magnitude"}, "and method='frequency'"),
        (
            {"granularity": "vocabulary", "method": "taylor"},
            "methods for vocabulary: magnitude, random, frequency",
        ),
        ({"granularity": ["heads", "vocabulary"], "method": "frequency"}, "'frequency' scores vocabulary alone"),
        ({"granularity": "vocabulary", "budget": "flops"}, "use budget='params', got 'flops'"),
        ({"granularity": "vocabulary", "rounds": 2}, "the vocabulary goes in one cut"),
        ({"granularity": "vocabulary", "recovery": "reconstruct"}, "where tokens alone go use 'finetune' or 'none'"),
        (
            {"granularity": ["heads", "vocabulary"], "min_frequency": 1, "sparsity": None},
            "give exactly one of sparsity",
        ),
        ({"granularity": "vocabulary", "sparsity": None}, "give exactly one of sparsity and compression"),
        ({"granularity": "vocabulary", "allocation": "search"}, "allocation='search' is for heads and neurons"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            config(**changes)


# --- files ----------------------------------------------------------------------------------------------------------

OTHER = {
    "method": "cam_cut",
    "granularity": ("neurons",),
    "sparsity": None,
    "compression": 1.75,
    "budget": "flops",
    "allocation": "global",
    "layer_unit": "block",
    "num_samples": 12,
    "smooth_samples": 3,
    "smooth_examples": 30,
    "noise_std": 0.25,
    "noise_scale": "absolute",
    "dropout": True,
    "shift": 0,
    "rounds": 2,
    "rewind": True,
    "recovery": "finetune",
    "dense_epochs": 1.5,
    "distill_weight": 0.5,
    "distill_temperature": 4.0,
    "distill_top_k": 9,
    "lora_rank": None,
    "min_units": {"neurons": 2},
    "multiple_of": 8,
    "sequence_length": 64,
    "latency_batch_size": 2,
    "seed": 7,
    "exclude": ("0", "*.2.*"),
    "min_frequency": None,
}


def test_round_trip_through_a_folder(tmp_path):
    assert tuple(OTHER) == FIELDS
    for number, made in enumerate((config(), PruningConfig(**OTHER), config(recovery="reconstruct"))):
        folder = tmp_path / "new" / str(number)
        made.save_pretrained(folder)
        assert [path.name for path in folder.iterdir()] == ["pruning_config.json"]
        assert PruningConfig.from_pretrained(folder) == PruningConfig.from_pretrained(str(folder)) == made
        values = json.loads((folder / "pruning_config.json").read_text())
        assert tuple(values) == FIELDS and values == made.to_dict()
    for name, value in OTHER.items():
        assert getattr(PruningConfig.from_pretrained(tmp_path / "new" / "1"), name) == value


def test_an_older_file_lacks_fields(tmp_path):
    (tmp_path / "pruning_config.json").write_text('{"sparsity": 0.25}')
    assert PruningConfig.from_pretrained(tmp_path) == PruningConfig(sparsity=0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"sparsity": 0.5, "sparcity": 1, "b": 2}',
            "unknown PruningConfig fields ['b', 'sparcity']; known fields: method,",
        ),
        ('{"sparsity": 5}', "sparsity should be a number between 0 and 1, both excluded; got 5"),
        ('{"sparsity": NaN}', "sparsity should be a number"),
        ("{}", "give exactly one of sparsity and compression"),
        ('{"sparsity": 0.5', "pruning_config.json is not valid JSON"),
        ("", "pruning_config.json is not valid JSON"),
        ("[0.5]", "pruning_config.json should hold a JSON object, it holds a list"),
        ("null", "pruning_config.json should hold a JSON object, it holds a NoneType"),
    ],
)
def test_a_file_that_holds_no_config(text, message, tmp_path):
    (tmp_path / "pruning_config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        PruningConfig.from_pretrained(tmp_path)
    if "unknown" in message:
        assert all(name in str(error.value) for name in FIELDS)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="pruning_config.json"):
        PruningConfig.from_pretrained(tmp_path)


# --- command line ---------------------------------------------------------------------------------------------------


def parse(*words):
    return HfArgumentParser(PruningConfig).parse_args_into_dataclasses(list(words))[0]


def words_for(name, value):
    if name in ("granularity", "exclude"):
        return [f"--{name}", *value]
    if name == "min_units":
        return [f"--{name}", ",".join(f"{kind}={number}" for kind, number in value.items())]
    return [f"--{name}"] if value is True and name != "dropout" else [f"--{name}", str(value)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag(name):
    value = {**OTHER, "sparsity": 0.75, "recovery": "reconstruct", "lora_rank": 4, "min_frequency": 2}[name]
    needed = {"sparsity": 0.5} if name not in ("sparsity", "compression") else {}
    needed |= {"granularity": ("vocabulary",)} if name == "min_frequency" else {}
    needed |= {"rewind": {"dense_epochs": 1.0}, "distill_top_k": {"distill_weight": 0.5}}.get(name, {})
    words = [word for key, val in {**needed, name: value}.items() for word in words_for(key, val)]
    parsed = parse(*words)
    assert parsed == PruningConfig(**{**needed, name: value})
    assert getattr(parsed, name) == value
    if name != "shift":  # only 0 is allowed, the default
        assert getattr(parsed, name) != getattr(PruningConfig(sparsity=0.5), name)


def test_all_flags_together():
    words = [word for name, value in OTHER.items() if value is not None for word in words_for(name, value)]
    assert parse(*words) == PruningConfig(**OTHER)
    assert parse("--sparsity", "0.5", "--granularity", "heads", "neurons") == config()
    assert parse("--sparsity", "0.5", "--rewind", "false") == config()


def test_the_command_line_refuses_what_the_config_refuses():
    with pytest.raises(ValueError, match="unknown method 'tailor'"):
        parse("--sparsity", "0.5", "--method", "tailor")
    with pytest.raises(ValueError, match="give exactly one"):
        parse("--method", "taylor")


def test_the_help_explains_every_field():
    text = re.sub(r"\s+", " ", HfArgumentParser(PruningConfig).format_help())
    for field in dataclasses.fields(PruningConfig):
        assert f"--{field.name}" in text
        assert re.sub(r"\s+", " ", field.metadata["help"]) in text
