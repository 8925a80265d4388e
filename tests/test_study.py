"""The study command: what is missing is done once, and the tables say what is on record."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy import stats

from benchmarks import study, study_tables
from configs.ablation import STUDIES, crossed, get_config, settings
from rcmnet_jax.checks import check
from rcmnet_jax.errors import UserError
from rcmnet_jax.settings import from_dict


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(study_tables, "RECORDS", tmp_path / "studies")
    return tmp_path / "studies"


def record(run, seed, value, **changes):
    intervals = {key: [value - 0.1, value + 0.05] for key in study.INTERVALS}
    metrics = {"n": 100, **dict.fromkeys(study.METRICS, value), "intervals": intervals}
    machine = {"cpu": "a", "cores": 2, "device": "cpu", "devices": 1, "python": "3", "jax": "1", "flax": "2"}
    line = {"run": run, "seed": seed, "settings": settings("smoke", run), "seconds": 60, "date": "2026-11-24"}
    return {**line, "machine": machine, "results": {"pretrain": metrics}, "differences": {}, **changes}


def keep(folder, *lines, study="smoke"):
    folder.mkdir()
    (folder / f"{study}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("name", [f"{name}/{run}" for name, one in STUDIES.items() for run in one.runs])
def test_every_run_of_every_study_is_a_config_that_can_work(name):
    values = get_config(name).to_dict()
    values["source"]["splits"] = ""
    check(from_dict(values))


def test_an_unknown_run_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"mixup 0\.2"):
        get_config("smoke/mixup")


def test_differences_are_paired_by_seed_with_a_t_interval(kept):
    gains = np.array([0.01, 0.03, 0.02])
    bases = [record("base", seed, 0.8 + seed / 10) for seed in range(3)]
    keep(kept, *bases, *(record("mixup 0.2", seed, 0.8 + seed / 10 + gain) for seed, gain in enumerate(gains)))
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert f"+2.00 ({100 * low:+.2f} to {100 * high:+.2f})" in study_tables.table("smoke")


def test_rows_show_an_interval_and_how_far_transfer_is_ahead_of_an_arm(kept):
    line = record("base", 0, 0.5)
    line["results"] = {"transfer": line["results"]["pretrain"], "probe": line["results"]["pretrain"]}
    keep(kept, line | {"differences": {"probe": {key: [0.02, -0.01, 0.05] for key in study.INTERVALS}}})
    transfer, probe = (row for row in study_tables.table("smoke").splitlines() if row.startswith("| base, "))
    assert "| 40.0-55.0 |" in transfer
    assert "| +2.0 (-1.0 to +5.0) |" in probe
    assert "+2.0" not in transfer


def test_a_single_image_has_no_interval_to_show(kept):
    line = record("base", 0, 0.5)
    line["results"]["pretrain"]["intervals"] = {key: [None, None] for key in study.INTERVALS}
    keep(kept, line | {"differences": {"shortcut": {key: [0.02, None, None] for key in study.INTERVALS}}})
    assert "interval" not in study_tables.table("smoke")


def test_in_a_crossed_design_two_switches_are_together_as_often_as_apart_and_hide_in_no_third():
    sign = np.where(crossed(), 1, -1)
    np.testing.assert_array_equal(sign.T @ sign, 24 * np.eye(11))
    np.testing.assert_array_equal(np.einsum("ra,rb,rc->abc", sign, sign, sign), 0)


def test_an_effect_is_the_mean_with_a_switch_less_the_mean_without():
    rng = np.random.default_rng(0)
    on = np.array(crossed())
    values = on @ rng.normal(size=11) + rng.normal(size=24)
    found, halves = study_tables.effects(on, values)
    means = np.array([values[column].mean() - values[~column].mean() for column in on.T])
    np.testing.assert_allclose(found, means)
    left = values - values.mean() - (on - 0.5) @ means
    np.testing.assert_allclose(halves, stats.t.ppf(0.975, 12) * np.sqrt(left @ left / 12 * 4 / 24))


def test_effects_without_noise_are_found_from_a_part_of_the_runs_and_too_few_are_said():
    rng = np.random.default_rng(0)
    on, true = np.array(crossed())[:14], rng.normal(size=11)
    np.testing.assert_allclose(study_tables.effects(on, 0.9 + on @ true)[0], true)
    assert study_tables.effects(on[:12], np.ones(12)) is None


def test_a_crossed_study_shows_its_switches_and_each_row_has_a_seed_of_its_own(kept):
    runs = STUDIES["screen"].runs
    rows = zip(runs, crossed(), strict=True)
    lines = [record("base", 0, 0.9 + 0.01 * on[0]) | {"run": r, "settings": settings("screen", r)} for r, on in rows]
    keep(kept, *lines, study="screen")
    shown = study_tables.table("screen").splitlines()
    assert "| layer decay 0.5 | +1.00 (+1.00 to +1.00) | +1.00 (+1.00 to +1.00) | +0.010 (+0.010 to +0.010) |" in shown
    assert len(shown) == 2 + 2 + 1 + 11 + 2
    assert [settings("screen", run)["seed"] for run in runs] == list(range(24))


def test_what_switches_add_in_other_laboratories_comes_from_the_tables_of_their_bundles(tmp_path):
    runs = list(zip(STUDIES["screen"].runs, crossed(), strict=True))

    def kept_tables(some, commit="a"):
        for run, on in some:
            values = 0.9, 0.7 + 0.02 * on[1], 0.8 + 0.04 * on[1]
            rows = [{"shift": "any", "strength": "strong", "arms": {"all": {"value": value}}} for value in values]
            facts = {"rows": rows, "environment": {"commit": commit}}
            (tmp_path / f"{run.replace(' ', '_')}.json").write_text(json.dumps(facts))

    with pytest.raises(SystemExit, match=r"holds no \{run\}"):
        study_tables.shifts("screen", str(tmp_path / "row_0.json"))
    kept_tables(runs[:11])
    with pytest.raises(SystemExit, match="11 tables"):
        study_tables.shifts("screen", str(tmp_path / "{run}.json"))
    kept_tables(runs)
    shown = study_tables.shifts("screen", str(tmp_path / "{run}.json")).splitlines()
    assert shown[0] == "| switch | all, no change | all, mean of the shifts |"
    assert "| mean of all runs | 90.0 | 76.5 |" in shown
    assert any(line.endswith("| +3.0 (+3.0 to +3.0) |") and line.startswith("| colours |") for line in shown)
    kept_tables(runs[5:6], commit="b")
    with pytest.raises(SystemExit, match=r"row_5.json: other shifts, or another commit, than in .*row_0.json"):
        study_tables.shifts("screen", str(tmp_path / "{run}.json"))


def test_a_record_of_other_settings_does_not_count(kept):
    keep(kept, record("base", 0, 0.5), record("base", 1, 0.7, settings={"image_size": 1}))
    assert [line["seed"] for line in study_tables.records("smoke")] == [0]


def test_a_place_may_name_the_run_and_its_seed_as_the_workdir_does():
    places = {"models": "runs/{run}-{seed}/bundle", "chula": "c.csv"}
    assert study.located(places, "ResNet-18 + CBAM", 2) == {
        "models": "runs/ResNet-18_+_CBAM-2/bundle", "chula": "c.csv"
    }  # fmt: skip


def test_tables_replace_themselves_and_leave_the_rest_of_the_page(kept):
    keep(kept, record("base", 0, 0.5))
    once = study_tables.with_tables("# Results\n\ntext\n")
    assert once.startswith("# Results\n\ntext\n")
    assert study_tables.with_tables(once + "\nmore\n") == once + "\nmore\n"


def test_the_tables_of_the_docs_are_those_of_the_records():
    page = study_tables.PAGE.read_text()
    assert study_tables.with_tables(page) == page


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_what_is_missing_is_done_and_what_is_there_is_not_done_again(tmp_path, capfd):
    places = {"pbc": "synthetic:pbc-tiny"}
    for seeds in ([0], [0]):
        study.run("smoke", places, tmp_path / "work", ["mixup 0.2"], seeds)
    (line,) = study_tables.records("smoke")
    made = json.loads((tmp_path / "work/smoke/mixup_0.2-0/pretrain/metrics.json").read_text())
    assert line["results"]["pretrain"]["nll"] == made["nll"]["value"]
    assert line["results"]["pretrain"]["intervals"]["top1"] == [made["top1"]["low"], made["top1"]["high"]]
    sets = json.loads((tmp_path / "work/smoke/mixup_0.2-0/data/sets.json").read_text())
    assert line["inputs"] == {"source": sets["source"]["fingerprint"]}
    assert re.fullmatch("[0-9a-f]{8}", line["config_hash"])
    assert line["seconds"] > 0
    assert capfd.readouterr().out.count("smoke/mixup 0.2, seed 0") == 1


def test_minutes_are_of_runs_that_were_done_in_one_go(kept):
    lines = [record("base", seed, 0.5, seconds=seconds) for seed, seconds in enumerate((120, None, 240))]
    keep(kept, *lines, record("mixup 0.2", 0, 0.5, seconds=None))
    base, mixup = (row.split("|")[-2].strip() for row in study_tables.table("smoke").splitlines()[4:6])
    assert (base, mixup) == ("3", "-")
