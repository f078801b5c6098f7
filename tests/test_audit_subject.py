"""The networks of an audit: the project's and one's own, as a callable, a class or a layer, with its own data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import paddle
import pytest

from dlg.audit.__main__ import main
from dlg.audit.cell import run_cell
from dlg.audit.findings import leak_of
from dlg.audit.grid import Cell
from dlg.audit.samples import Samples
from dlg.audit.subject import Subject, subjects_of
from dlg.defenses import parse
from dlg.errors import InputError
from dlg.graph.programs import dynamic_mode

MODELS = """
import paddle

COLUMNS, CLASSES, WORDS = 6, 3, 20


def function(feature, label):
    prediction = paddle.nn.Linear(COLUMNS, CLASSES)(feature)
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


class Layer(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = paddle.nn.Linear(COLUMNS, CLASSES)

    def forward(self, feature):
        return self.linear(feature)


class Text(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.table = paddle.nn.Embedding(WORDS, 8)
        self.linear = paddle.nn.Linear(32, CLASSES)

    def forward(self, tokens):
        return self.linear(paddle.flatten(self.table(tokens), 1))


class Random(Layer):
    def forward(self, feature):
        return super().forward(paddle.nn.functional.dropout(feature, 0.5))


layer = Layer()
number = 7
"""
RNG = np.random.default_rng(0)
TABLE = Samples.of(RNG.normal(size=(40, 6)).astype(np.float32), RNG.integers(0, 3, (40, 1)))
TEXT = Samples.of(RNG.integers(0, 20, (40, 4)), RNG.integers(0, 3, (40, 1)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    file = tmp_path_factory.mktemp("models") / "mine.py"
    file.write_text(MODELS)
    return file


@pytest.mark.parametrize("name", ["function", "Layer", "layer"])
def test_a_table_comes_back_from_ones_own_network(models, name):
    outcome = run_cell(Cell(name, 1, "none", 0), TABLE.batch(1, 0), 30, None, Subject.parse(f"{models}:{name}"))
    assert outcome.result.error is None
    scores = outcome.result.scores
    assert (scores.sample_kind, scores.images_recovered, scores.labels_right, scores.ssim) == ("table", 1, 1, (1.0,))
    assert np.abs(outcome.recovered - outcome.target).max() < 1e-3


def test_tokens_come_back_from_ones_own_network(models):
    outcome = run_cell(Cell("Text", 1, "none", 0), TEXT.batch(1, 0), 60, None, Subject.parse(f"{models}:Text"))
    assert outcome.result.error is None
    assert outcome.result.scores.sample_kind == "tokens"
    assert (outcome.recovered == outcome.target).all()


@pytest.mark.parametrize("spec", ["gaussian:1e-3", "sign"])
def test_tokens_that_a_defence_does_not_hide_are_a_leak(spec, models):
    different = Samples.of(np.arange(20).reshape(5, 4), np.zeros((5, 1), np.int64))
    outcome = run_cell(Cell("Text", 2, spec, 0), different.batch(2, 0), 30, None, Subject.parse(f"{models}:Text"))
    assert outcome.result.error is None
    assert (outcome.result.scores.attack, outcome.result.scores.verdict) == ("auto", "undetermined")
    assert leak_of([outcome.result]).kind == "leaks"
    assert set(outcome.recovered.ravel().tolist()) == set(outcome.target.ravel().tolist())


def test_a_defence_protects_ones_own_network_or_not(models):
    cell = Cell("layer", 1, "gaussian:10", 0)
    outcome = run_cell(cell, TABLE.batch(1, 0), 30, None, Subject.parse(f"{models}:layer"))
    assert outcome.result.error is None
    assert outcome.result.scores.images_recovered == 0


def test_weights_are_those_of_the_file(models, tmp_path):
    with dynamic_mode():
        linear = paddle.nn.Linear(6, 3)
        state = {f"linear.{name}": value for name, value in linear.state_dict().items()}
        paddle.save(state, str(tmp_path / "w.pdparams"))
    gradients = []
    for seed in (0, 1):
        subject = Subject.parse(f"{models}:Layer", str(tmp_path / "w.pdparams"))
        paddle.enable_static()
        with subject.trained_on(TABLE.batch(1, 0), seed) as trained:
            gradients.append(trained.gradients)
    assert all((gradients[0][name] == gradients[1][name]).all() for name in gradients[0])


def test_a_layer_that_is_random_is_a_row_that_says_so(models):
    result = run_cell(Cell("Random", 1, "none", 1), TABLE.batch(1, 0), 9, None, Subject.parse(f"{models}:Random"))
    assert "call its eval()" in result.result.error


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("alexnet", "no such network"),
        ("none.py:net", "there is no file"),
        ("{models}:", "no such network"),
        ("{models}:softmax", "give yours another name"),
    ],
)
def test_what_names_no_network_is_refused(models, spec, words):
    with pytest.raises(ValueError, match=words):
        Subject.parse(spec.format(models=models))


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (MODELS, "number", "'number' is 7 there"),
        (MODELS, "missing", "'missing' is not there"),
        ("import no_such_module", "x", "ended in ModuleNotFoundError"),
        ("x = (", "x", "SyntaxError"),
    ],
)
def test_a_file_without_the_network_is_refused_in_one_line(tmp_path, content, name, words):
    (tmp_path / "other.py").write_text(content)
    with pytest.raises(InputError, match=words) as refusal:
        Subject.parse(f"{tmp_path / 'other.py'}:{name}").check()
    assert "\n" not in str(refusal.value)


def test_weights_belong_to_one_network_and_names_to_one_file(models, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(MODELS)
    with pytest.raises(ValueError, match="of one network"):
        subjects_of(["softmax", "mlp"], "w.pdparams")
    with pytest.raises(ValueError, match="another network has the name 'layer'"):
        subjects_of([f"{models}:layer", f"{other}:layer"], None)


def test_weights_of_another_network_are_a_row_that_says_what_is_missing(models, tmp_path):
    with dynamic_mode():
        paddle.save({"other": paddle.zeros([2])}, str(tmp_path / "w.pdparams"))
    for name in ("Layer", "function"):
        subject = Subject.parse(f"{models}:{name}", str(tmp_path / "w.pdparams"))
        result = run_cell(Cell(name, 1, "none", 0), TABLE.batch(1, 0), 9, None, subject).result
        assert "is missing (it has other), expected (" in result.error


def test_the_audit_of_ones_own_network_and_data_is_a_page_with_its_numbers(models, tmp_path):
    np.savez(tmp_path / "data.npz", features=TABLE.features, labels=TABLE.labels[:, 0])
    own = ["--networks", f"{models}:layer", "--data", str(tmp_path / "data.npz"), "--feature_shape", "6"]
    few = ["--defenses", "none", "--batch_sizes", "1", "--seeds", "1", "--iterations", "20", "--jobs", "1"]
    assert main([*own, *few, "--result_dir", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (row["network"], row["sample_kind"], row["images_recovered"]) == ("layer", "table", 1)
    page = (tmp_path / "out" / "report.html").read_text()
    sample = json.loads((tmp_path / "out" / "cells" / "layer-b1-none-s0.target.json").read_text())[0]
    assert all(f"{number:.4g}" in page for number in sample)
    assert "<img" not in page
    models.write_text(MODELS + "\n# changed\n")
    assert main([*own, *few, "--resume", "--result_dir", str(tmp_path / "out")]) == 2
    models.write_text(MODELS)


def test_nothing_that_is_handed_on_shows_the_folder_of_ones_own_files(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODELS)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        content = f"def same(gradients):\n    return gradients\n\n\ndef fails(gradients):\n    return {folder}\n"
        (tmp_path / folder / "defense.py").write_text(content)
    np.savez("data.npz", features=TABLE.features, labels=TABLE.labels[:, 0])
    own = ["--networks", "mine.py:function", "--data", "data.npz"]
    defenses = ["--defenses", "a/defense.py:same", "./b/defense.py:same", "a/defense.py:fails"]
    few = ["--batch_sizes", "1", "--seeds", "1", "--iterations", "20", "--jobs", "1", "--result_dir", "out"]
    assert main([*own, *defenses, *few]) == 0
    printed = capsys.readouterr().out
    assert "function, batch 1, a/defense.py:same, seed 0: leaks" in printed
    handed_on = {file: file.read_text() for file in (tmp_path / "out").rglob("*.*") if file.suffix != ".png"}
    assert len(handed_on) >= 11
    assert [file for file, text in handed_on.items() if str(tmp_path) in text] == []
    assert str(tmp_path) not in printed
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["defense"] for row in rows[:2]] == ["a/defense.py:same", "b/defense.py:same"]
    assert "the defense 'a/defense.py:fails' ends in NameError" in rows[2]["error"]
    assert main([*own, *defenses, *few, "--resume"]) == 0
    (tmp_path / "b" / "defense.py").write_text("def same(gradients):\n    return {**gradients}\n")
    assert main([*own, *defenses, *few, "--resume"]) == 2


def test_a_worker_in_another_folder_finds_ones_own_files(tmp_path, monkeypatch):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)
    (home / "at_home.py").write_text(MODELS)
    (home / "changes.py").write_text("def halved(gradients):\n    return {n: g / 2 for n, g in gradients.items()}\n")
    with dynamic_mode():
        paddle.save({"weight": paddle.zeros([6, 3]), "bias": paddle.zeros([3])}, "w.pdparams")
    subject, defense = Subject.parse("at_home.py:Layer", "w.pdparams"), parse("changes.py:halved")
    monkeypatch.chdir(away)
    cell = Cell("Layer", 1, defense.spec, 0)
    row = run_cell(cell, TABLE.batch(1, 0), 20, None, subject, defense=defense).result
    assert "--weights 'w.pdparams': 'linear.weight' is missing" in row.error.replace("../home/", "")
    subject = dataclasses.replace(subject, weights=None)
    row = run_cell(cell, TABLE.batch(1, 0), 20, None, subject, defense=defense).result
    assert row.error is None
    assert row.scores.relative_error == pytest.approx(0.5)
