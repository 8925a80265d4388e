"""The audit finds what is planted, leaves different cells alone, and stops a run by what may not stand."""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from rcmnet_jax import runtime
from rcmnet_jax.config import AuditConfig
from rcmnet_jax.data import shortcut
from rcmnet_jax.data.audit import ERRORS, Audit, Finding, audit, audit_run, blocking, shortcuts, twins
from rcmnet_jax.data.audit.duplicates import near_duplicates
from rcmnet_jax.data.audit.hashing import VIEWS, hashes, near_pairs, thumbnails, undo
from rcmnet_jax.data.audit.page import render
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.data.splits import cross_validation, holdout
from rcmnet_jax.errors import UserError

RULE = ImageRule(64)


def cell(seed, size=72, background=(225, 205, 220)):
    """A made-up stained cell: nothing but the seed and the size decides it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    ink = np.zeros((size, size))
    for _ in range(9):
        cy, cx, r = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75), rng.uniform(0.04, 0.16)
        ink += rng.uniform(0.2, 0.7) * ((y - cy) ** 2 + (x - cx) ** 2 < r**2)
    grain = rng.normal(0, 0.06, (size // 3 + 1, size // 3 + 1)).repeat(3, 0).repeat(3, 1)[:size, :size]
    ink = np.clip(ink + grain, 0, 1.5)[..., None]
    return Image.fromarray(
        (np.array(background) * np.exp(-ink * np.array([0.6, 1.0, 0.35]))).clip(0, 255).astype(np.uint8)
    )


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


class Folder:
    """A set being written: files, and rows of its manifest."""

    def __init__(self, root):
        self.root, self.rows = root, []

    def add(self, path, content, label, group="", split=""):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else encoded(content))
        self.rows.append({"path": path, "label": label, "group": group, "split": split})

    def manifest(self):
        with (self.root / "cells.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label", "group", "split"])
            writer.writeheader()
            writer.writerows(self.rows)
        return str(self.root / "cells.csv")


def plain(root, count=40, start=0, **options):
    """`count` images of classes a and b, ten groups, the last three of them test."""
    made = Folder(root)
    for i in range(count):
        group = i // 2 % 10
        split = "train" if group < 7 else "test"
        made.add(f"{'ab'[i % 2]}/{i:03}.png", cell(start + i, **options), "ab"[i % 2], f"g{group}", split)
    return made


def opened(folder, tmp_path):
    spec = folder.manifest() if isinstance(folder, Folder) else str(folder)
    return prepare(spec, RULE, cache=tmp_path / "cache", clashes=True)


def found(result, name):
    (finding,) = [f for f in result.findings if f.name == name]
    return finding


def pairs(finding):
    return {frozenset((p["first"]["path"], p["second"]["path"])) for p in finding.details["pairs"]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The audit of a run on a source and a target in which every fault is planted once."""
    root = tmp_path_factory.mktemp("planted")
    source, target = plain(root / "source", start=1000), plain(root / "target")
    original = {i: cell(i) for i in range(40)}  # rows 0..13 and 20..33 are in training
    test = ("a", "g9", "test")
    target.add("a/exact.png", original[0], *test)
    target.add("a/jpeg.jpg", encoded(original[2], "JPEG", quality=60), *test)
    target.add("a/scaled.png", original[4].resize((40, 40), Image.Resampling.LANCZOS), *test)
    target.add("a/turned.png", original[6].transpose(Image.Transpose.ROTATE_90), *test)
    target.add("a/mirrored.png", original[8].transpose(Image.Transpose.FLIP_LEFT_RIGHT), *test)
    target.add("b/two_labels.png", original[10], "b", "g5", "train")
    target.add("b/group.png", cell(500), "b", "g0", "test")
    target.add("a/from_source.png", cell(1000), *test)
    target.add("a/truncated.png", encoded(cell(501))[:600], *test)
    target.add("a/empty.png", b"", *test)
    target.add("a/text.jpg", b"not a picture, only words\n", *test)
    target.add("a/one_pixel.png", Image.new("RGB", (1, 1), (200, 100, 100)), *test)
    target.add("a/blank.png", Image.new("RGB", (72, 72), (250, 250, 250)), *test)
    target.add("a/blurred.png", cell(502).filter(ImageFilter.GaussianBlur(5)), *test)
    target.add("A/case.png", cell(503), "A", "g6", "train")
    one, two = opened(source, root), opened(target, root)
    parts = holdout(one.examples, one.classes, seed=0, val_fraction=0.2)
    folds, _ = cross_validation(two.examples, two.classes, folds="auto", seed=0, inner_fraction=0.2)
    return audit_run(one, parts, two, folds, AuditConfig()), [one, two]


def test_an_exact_copy_across_splits_is_an_error(planted):
    finding = found(planted[0], "exact_duplicate_across_splits")
    assert finding.level == "error"
    assert pairs(finding) == {frozenset(("a/000.png", "a/exact.png"))}


@pytest.mark.parametrize(
    ("copy", "original", "view"),
    [
        ("a/jpeg.jpg", "a/002.png", "as it is"),
        ("a/scaled.png", "a/004.png", "as it is"),
        ("a/turned.png", "a/006.png", "turned by 270 degrees"),
        ("a/mirrored.png", "a/008.png", "mirrored left-right"),
    ],
)
def test_a_changed_copy_across_splits_is_an_error_and_its_view_is_named(planted, copy, original, view):
    finding = found(planted[0], "near_duplicate_across_splits")
    assert finding.level == "error"
    (entry,) = [p for p in finding.details["pairs"] if {p["first"]["path"], p["second"]["path"]} == {copy, original}]
    assert entry["view"] == view
    assert entry["correlation"] > 0.75


def test_nothing_but_the_planted_copies_counts_as_near(planted):
    assert len(found(planted[0], "near_duplicate_across_splits").details["pairs"]) == 4
    assert not [f for f in planted[0].findings if f.name in ("near_duplicate", "near_duplicate_across_sets")]


def test_one_image_under_two_labels_is_named_with_both(planted):
    finding = found(planted[0], "contradictory_labels")
    assert pairs(finding) == {frozenset(("a/010.png", "b/two_labels.png"))}
    assert "a/010.png (a) and b/two_labels.png (b)" in finding.message


def test_a_group_across_the_users_splits_is_an_error(planted):
    finding = found(planted[0], "group_across_splits")
    assert finding.level == "error"
    assert finding.details["groups"] == {"g0": ["test", "train"]}


def test_a_source_image_in_the_targets_test_fold_is_an_error(planted):
    finding = found(planted[0], "exact_duplicate_across_sets")
    assert finding.level == "error"
    assert finding.message.startswith("source and target: 1 pair of images is pixel for pixel the same")
    assert pairs(finding) == {frozenset(("a/000.png", "a/from_source.png"))}


@pytest.mark.parametrize("path", ["a/truncated.png", "a/empty.png", "a/text.jpg"])
def test_files_that_cannot_be_read_are_named_with_a_reason(planted, path):
    finding = found(planted[0], "unreadable")
    assert finding.details["reasons"][path]
    assert finding.details["count"] == 3


def test_the_one_tiny_image_is_found(planted):
    assert found(planted[0], "tiny").paths == ("a/one_pixel.png",)


def test_the_blurred_image_comes_first_among_the_soft_ones(planted):
    # The scaled copy was enlarged to the common size, so it may be called soft too.
    first, *others = found(planted[0], "blurred").paths
    assert first == "a/blurred.png"
    assert set(others) <= {"a/scaled.png"}


def test_images_much_darker_or_brighter_than_the_rest_are_found(tmp_path):
    made = plain(tmp_path / "set")
    for name, ground, factor in (("dark", 0, 0.15), ("bright", 200, 0.2)):
        pixels = np.asarray(cell(800), np.float64) * factor + ground
        made.add(f"a/{name}.png", Image.fromarray(pixels.astype(np.uint8)), "a", "g1", "train")
    finding = found(audit([opened(made, tmp_path)], AuditConfig()), "badly_exposed")
    assert finding.paths == ("a/dark.png", "a/bright.png")
    assert finding.level == "warning"


def test_a_blank_image_is_found(planted):
    assert "a/blank.png" in found(planted[0], "blank").paths


def test_the_docs_name_every_error_that_may_be_allowed():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    assert [name for name in ERRORS if f"`{name}`" not in text] == []


def test_errors_stop_a_run_unless_each_is_allowed_by_name(planted):
    names = [f.name for f in blocking(planted[0])]
    assert names == [
        "class_names_differ_by_case",
        "exact_duplicate_across_sets",
        "exact_duplicate_across_splits",
        "group_across_splits",
        "near_duplicate_across_splits",
    ]
    assert [f.name for f in blocking(planted[0], names[2:])] == names[:2]
    assert [f.name for f in blocking(planted[0], names[1:])] == names[:1]


def test_class_names_that_differ_only_in_spelling_can_not_be_allowed(planted):
    with pytest.raises(UserError, match="no finding that may stand is called 'class_names_differ_by_case'"):
        blocking(planted[0], ["class_names_differ_by_case"])


def test_an_allowed_name_that_does_not_exist_is_refused_with_the_nearest(planted):
    with pytest.raises(UserError, match="did you mean 'group_across_splits'"):
        blocking(planted[0], ["group_across_split"])


def test_the_audits_json_repeats_and_names_no_folder_of_the_machine(planted, tmp_path):
    result, (one, two) = planted
    text = json.dumps(result.to_json(), sort_keys=True)
    assert str(one.folder.parent) not in text
    assert str(tmp_path.parent) not in text
    again = audit_run(one, {}, two, [], AuditConfig())
    assert json.dumps(audit_run(one, {}, two, [], AuditConfig()).to_json()) == json.dumps(again.to_json())


def test_the_page_shows_every_finding_and_loads_nothing(planted):
    result, sets = planted
    page = render(result, sets)
    assert page == render(result, sets)
    sections = page.split("<section")[1:]
    for finding, section in zip(result.findings, sections[: len(result.findings)], strict=True):
        assert f"<code>{finding.name}</code>" in section
        pictures = min(12, sum(row >= 0 for _, row in finding.places))
        assert section.count("data:image/jpeg;base64,") == pictures, finding.name
        assert pictures or all(path in section for path in finding.paths[:20])
    assert page.count("data:image/jpeg;base64,") > 20
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_says_how_many_of_a_long_finding_are_named_in_the_json():
    def page(count):
        finding = Finding("junk", "warning", "m", tuple(f"{i}.txt" for i in range(count)), ((0, -1),) * count)
        result = Audit((finding,), ())
        assert len(result.to_json()["findings"][0]["paths"]) == min(count, 1000)
        return render(result, [])

    assert "and 980 more, all named in audit.json" in page(1000)
    assert "and 981 more; the first 1,000 are named in audit.json" in page(1001)


def test_names_from_data_are_text_on_the_page(tmp_path):
    made = plain(tmp_path / "set")
    made.add("a/<img src=x onerror=alert(1)>.png", cell(0), "<script>alert(2)</script>", "g1", "test")
    made.add("a/other.png", cell(900), "<script>alert(2)</script>", "g1", "test")
    data = opened(made, tmp_path)
    page = render(audit([data], AuditConfig()), [data])
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_a_class_marked_by_image_size_is_found(tmp_path):
    made = Folder(tmp_path / "set")
    for i in range(60):
        made.add(f"{'ab'[i % 2]}/{i}.png", cell(i, size=72 + 12 * (i % 2)), "ab"[i % 2], f"g{i // 6}")
    result = audit([opened(made, tmp_path)], AuditConfig())
    finding = found(result, "shortcut_image_size")
    assert finding.level == "warning"
    assert finding.details["balanced_accuracy"] == 1.0
    assert not [f for f in result.findings if f.name == "shortcut_border_colour"]


def test_a_class_marked_by_its_border_colour_is_found(tmp_path):
    made = Folder(tmp_path / "set")
    for i in range(60):
        picture = cell(i)
        framed = Image.new("RGB", (76, 76), (240, 240, 240) if i % 2 else (225, 225, 225))
        framed.paste(picture, (2, 2))
        made.add(f"{'ab'[i % 2]}/{i}.png", framed, "ab"[i % 2], f"g{i // 6}")
    finding = found(audit([opened(made, tmp_path)], AuditConfig()), "shortcut_border_colour")
    assert finding.details["balanced_accuracy"] > 0.95
    assert not [f for f in audit([opened(made, tmp_path)], AuditConfig()).findings if f.name == "shortcut_image_size"]


def told_by_size(tmp_path):
    made = Folder(tmp_path / "set")
    for i in range(40):
        made.add(f"{i}.png", cell(i, size=60 + 20 * (i % 2)), "ab"[i % 2])
    return opened(made, tmp_path)


def test_what_signals_tell_is_asked_once_of_the_same_set(tmp_path, monkeypatch):
    data, asked = told_by_size(tmp_path), []

    def counted(*words):
        asked.append(words)
        return shortcut.usefulness(*words)

    monkeypatch.setattr(shortcuts, "usefulness", counted)
    first = audit([data], AuditConfig()).to_json()
    assert audit([data], AuditConfig()).to_json() == first
    assert len(asked) == 1
    (note,) = (data.folder.parent.parent / "shortcuts").iterdir()
    whole = note.read_bytes()
    for damaged in (b"", b"[]", b"7\n[]", b"\xff\n[]", whole[:-9], whole.replace(b"1.0", b"0.1", 1)):
        assert damaged != whole
        note.write_bytes(damaged)
        assert audit([data], AuditConfig()).to_json() == first
    assert len(asked) == 7


@pytest.mark.parametrize("changed", ["label", "group", "pixel_sha256", "signals", "packages", "processor"])
def test_what_signals_tell_is_asked_anew_where_anything_differs(tmp_path, monkeypatch, changed):
    made = Folder(tmp_path / "set")
    for i in range(8):
        made.add(f"{i}.png", cell(i), "ab"[i % 2], f"g{i}")
    data = opened(made, tmp_path)
    before = shortcuts._circumstances(data)
    if changed == "packages":
        monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _: "0.0")
    elif changed == "processor":
        monkeypatch.setattr(runtime, "cpu_model", lambda: ("another", ""))
    else:
        turned = np.roll(getattr(data.examples, changed), 1, axis=0)
        data = dataclasses.replace(data, examples=dataclasses.replace(data.examples, **{changed: turned}))
    assert shortcuts._circumstances(data) != before


def test_a_cache_that_cannot_hold_what_signals_tell_is_no_hindrance(tmp_path):
    data = told_by_size(tmp_path)
    (data.folder.parent.parent / "shortcuts").write_text("a file where a folder should be")
    assert found(audit([data], AuditConfig()), "shortcut_image_size").level == "warning"


def test_a_class_that_differs_only_by_case_is_an_error(planted):
    finding = found(planted[0], "class_names_differ_by_case")
    assert finding.level == "error"
    assert finding.details["names"] == [["A", "a"]]
    assert finding.paths == ("A/case.png", "a/000.png")


@pytest.mark.parametrize("names", [("Blast", "blast "), ("Zelle\u00e4", "Zellea\u0308"), ("type 1", "type1")])
def test_class_folders_that_differ_only_by_space_or_unicode_spelling_are_an_error(tmp_path, names):
    made = Folder(tmp_path / "set")
    for i in range(8):
        made.add(f"{names[i % 2]}/{i}.png", cell(i), "")
    finding = found(audit([opened(made.root, tmp_path)], AuditConfig()), "class_names_differ_by_case")
    assert sorted(finding.details["names"][0]) == sorted(names)


def test_the_command_writes_both_files_and_strict_ends_with_a_sentence(tmp_path, monkeypatch):
    from rcmnet_jax.data.audit.command import audit as command

    monkeypatch.setenv("RCMNET_CACHE", str(tmp_path / "cache"))
    made = plain(tmp_path / "set")
    made.add("a/copy.png", cell(0), "a", "g9", "test")
    result = command([made.manifest()], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "audit.json").read_text("utf-8")) == json.loads(json.dumps(result.to_json()))
    assert "exact_duplicate_across_splits" in (tmp_path / "out" / "audit.html").read_text("utf-8")
    with pytest.raises(UserError, match="1 pair of images on two sides of a split"):
        command([made.manifest()], strict=True)


def test_a_clean_set_has_no_warning(tmp_path):
    result = audit([opened(plain(tmp_path / "set", 60), tmp_path)], AuditConfig())
    assert [f.name for f in result.findings if f.level != "info"] == []


def test_drawn_folds_keep_twins_on_one_side_so_that_nothing_leaks(tmp_path):
    made = Folder(tmp_path / "set")
    for i in range(40):
        label = "ab"[i % 2]
        made.add(f"{label}/{i:03}.png", cell(i), label)
        if i < 20:
            made.add(f"{label}/{i:03}_copy.jpg", encoded(cell(i), "JPEG", quality=70), label)
            made.add(f"{label}/{i:03}_same.png", cell(i), label)
    data = opened(made, tmp_path)
    names = twins(data, AuditConfig())
    assert len(set(names) - {""}) == 20
    folds, _ = cross_validation(data.examples, data.classes, folds="5", seed=0, inner_fraction=0.2, twins=names)
    result = audit_run(None, {}, data, folds, AuditConfig())
    assert blocking(result) == []
    assert found(result, "near_duplicate").details["count"] == 20
    assert found(result, "exact_duplicate").details["count"] == 20
    careless, _ = cross_validation(data.examples, data.classes, folds="5", seed=0, inner_fraction=0.2)
    assert [f.name for f in blocking(audit_run(None, {}, data, careless, AuditConfig()))] == [
        "near_duplicate_across_splits"
    ]


def test_a_copy_in_the_targets_own_validation_part_is_a_leak_too(tmp_path):
    made = plain(tmp_path / "set")
    for i, (label, split) in enumerate([("a", "val"), ("b", "val"), ("a", "val")]):
        made.add(f"{label}/val{i}.png", cell(0 if i == 2 else 600 + i), label, "", split)
    data = opened(made, tmp_path)
    folds, _ = cross_validation(data.examples, data.classes, folds="auto", seed=0, inner_fraction=0.2)
    finding = found(audit_run(None, {}, data, folds, AuditConfig()), "exact_duplicate_across_splits")
    assert pairs(finding) == {frozenset(("a/000.png", "a/val2.png"))}
    assert finding.message.endswith("They are in train and val.")


def test_a_shared_picture_that_nothing_is_tested_on_is_only_a_warning(tmp_path):
    one, two = plain(tmp_path / "one", start=1000), plain(tmp_path / "two")
    two.add("a/shared.png", cell(1000), "a", "g0", "train")
    result = audit([opened(one, tmp_path), opened(two, tmp_path)], AuditConfig(), ["one", "two"])
    assert found(result, "exact_duplicate_across_sets").level == "warning"
    assert found(result, "group_across_sets").level == "warning"
    assert blocking(result) == []


def test_near_duplicates_can_be_left_out(tmp_path):
    made = plain(tmp_path / "set")
    made.add("a/copy.jpg", encoded(cell(0), "JPEG"), "a", "g9", "test")
    data = opened(made, tmp_path)
    assert blocking(audit([data], AuditConfig()))
    assert not blocking(audit([data], AuditConfig(near_duplicates=False)))


@pytest.mark.parametrize("view", range(8))
def test_a_views_hash_is_the_hash_of_the_image_in_that_view(view):
    grey = np.random.default_rng(0).uniform(0, 255, (5, 50, 50)).astype(np.float32)
    turned = np.ascontiguousarray(undo(grey, view))
    differing = np.bitwise_count(hashes(thumbnails(turned))[:, 0] ^ hashes(thumbnails(grey))[:, view])
    assert differing.max() <= 1, VIEWS[view]  # a coefficient of 0 may fall on either side


def test_thumbnails_are_area_means_at_any_size():
    grey = np.random.default_rng(0).uniform(0, 255, (2, 96, 96)).astype(np.float32)
    np.testing.assert_allclose(thumbnails(grey), grey.reshape(2, 32, 3, 32, 3).mean((2, 4)), rtol=1e-4)
    for size in (33, 50, 224):
        np.testing.assert_allclose(thumbnails(np.full((1, size, size), 7.0, np.float32)), 7, rtol=1e-3)


def planted_codes(count, near, seed=0):
    """Random hashes of `count` images, of which `near` pairs differ by four bits in one view."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (count, 8), dtype=np.uint64)
    first, second = np.sort(rng.choice(count, (near, 2), replace=False), axis=1).T
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        bits = rng.choice(64, 4, replace=False)
        codes[j, k % 8] = codes[i, 0] ^ np.uint64(sum(1 << int(b) for b in bits))
    return codes, set(zip(first.tolist(), second.tolist(), strict=True))


def test_the_index_finds_what_comparing_all_pairs_finds():
    codes, wanted = planted_codes(2000, 40)
    gaps = np.bitwise_count(codes[:, 0, None, None] ^ codes[None])
    every = {(i, j) for i, j, _ in np.argwhere(gaps <= 4).tolist() if i < j}
    indexed = {(i, j) for block in near_pairs(codes, 4) for i, j in zip(*(x.tolist() for x in block[:2]), strict=True)}
    assert indexed == every
    assert wanted <= every


@pytest.mark.slow
def test_many_hashes_are_searched_in_little_memory():
    import tracemalloc

    codes, wanted = planted_codes(300_000, 500)
    tracemalloc.start()
    indexed = {(i, j) for block in near_pairs(codes, 4) for i, j in zip(*(x.tolist() for x in block[:2]), strict=True)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert wanted <= indexed
    assert peak < 154 << 20  # bytes, 512 MB a million, on top of the 19 MB of hashes; all pairs at once: 90 GB


def real(name):
    root = Path(os.environ.get("RCMNET_TEST_DATA", "/nonexistent"))
    if not (root / name).exists():
        pytest.skip(f"RCMNET_TEST_DATA names no folder with {name}")
    return str(root / name)


@pytest.mark.slow
def test_the_published_blood_cells_have_13_exact_pairs_here_and_a_junk_file(tmp_path):
    data = prepare(real("PBC_dataset_normal_DIB_128px.zip"), RULE, cache=tmp_path)
    result = audit([data], AuditConfig())
    assert len(pairs(found(result, "exact_duplicate"))) == 13
    assert found(result, "junk").paths == ("neutrophil/.DS_169665.jpg",)
    assert found(result, "near_duplicate").details["count"] == 2
    assert len(found(result, "blurred").paths) < 140


def test_size_and_brightness_of_t_cells_are_reported_as_a_shortcut(tmp_path):
    result = audit([prepare(real("tcell/manifest.csv"), RULE, cache=tmp_path)], AuditConfig())
    finding = found(result, "shortcut_size_and_brightness")
    assert finding.details["balanced_accuracy"] == pytest.approx(0.79, abs=0.02)
    assert finding.details["by"] == "group"
    assert finding.details["folds"] == 4
    assert not [f for f in result.findings if "duplicate" in f.name]


def test_a_rare_class_and_a_class_from_one_group_are_warned_of(tmp_path):
    made = plain(tmp_path / "set")
    for i in range(3):
        made.add(f"c/{i}.png", cell(700 + i), "c", "g1", "train")
    result = audit([opened(made, tmp_path)], AuditConfig())
    assert found(result, "class_sizes").level == "warning"
    assert found(result, "class_sizes").details["images"] == {"a": 20, "b": 20, "c": 3}
    assert found(result, "class_from_one_group").details["groups"] == {"c": "g1"}


def test_a_group_that_only_the_drawn_split_cuts_is_a_warning(tmp_path):
    made = Folder(tmp_path / "set")
    for i in range(30):
        made.add(f"{'ab'[i % 2]}/{i}.png", cell(i), "ab"[i % 2], "only")
    data = opened(made, tmp_path)
    parts = holdout(data.examples, data.classes, seed=0, val_fraction=0.2)
    result = audit_run(data, parts, None, [], AuditConfig())
    assert found(result, "group_across_drawn_splits").level == "warning"
    assert blocking(result) == []


def test_small_images_on_the_ground_of_a_frame_are_no_copies_of_one_another(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        side = int(rng.integers(9, 20))
        cells = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((side, side))
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells.save(path)
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path.with_name("copy.png"))
    for rule in (ImageRule(64), ImageRule(64, frame=52), ImageRule(64, crop=0.5, frame=104)):
        names = twins(prepare(str(tmp_path / "data"), rule, cache=tmp_path / "cache"), AuditConfig())
        assert sorted(np.unique(names[names != ""], return_counts=True)[1].tolist()) == [2]


def test_a_leak_between_the_targets_parts_does_not_hide_behind_a_copy_in_the_source(tmp_path):
    source, target = plain(tmp_path / "source", start=1000), plain(tmp_path / "target")
    source.add("a/copy.png", cell(0), "a", "g9", "test")
    source.add("a/copy2.png", cell(2), "a", "g9", "test")
    target.add("a/exact.png", cell(0), "a", "g9", "test")  # of one in training
    target.add("a/jpeg.jpg", encoded(cell(2), "JPEG", quality=60), "a", "g9", "test")
    one, two = opened(source, tmp_path), opened(target, tmp_path)
    parts = holdout(one.examples, one.classes, seed=0, val_fraction=0.2)
    folds, _ = cross_validation(two.examples, two.classes, folds="auto", seed=0, inner_fraction=0.2)
    audit = audit_run(one, parts, two, folds, AuditConfig())
    exact, near = (found(audit, f"{kind}_duplicate_across_splits") for kind in ("exact", "near"))
    assert (exact.level, near.level) == ("error", "error")
    assert frozenset(("a/000.png", "a/exact.png")) in pairs(exact)
    assert frozenset(("a/002.png", "a/jpeg.jpg")) in pairs(near)


@pytest.mark.parametrize("crops", [(0.65, 1.0), (1.0, 0.65), (0.9, 0.7)])
def test_sets_of_which_more_or_less_of_the_frame_is_kept_are_compared_by_what_both_show(tmp_path, crops):
    source, target = plain(tmp_path / "source", start=1000), plain(tmp_path / "target")
    target.add("a/from_source.jpg", encoded(cell(1000), "JPEG", quality=70), "a", "g9", "test")
    one, two = (
        prepare(made.manifest(), dataclasses.replace(RULE, crop=crop), cache=tmp_path / "cache")
        for made, crop in zip((source, target), crops, strict=True)
    )
    (pair,) = near_duplicates([one, two], 4)
    assert one.examples.path[pair.first[1]] == "a/000.png"
    assert two.examples.path[pair.second[1]] == "a/from_source.jpg"
