"""Every form of DATA, good, odd and hostile: a test for each row of the table in docs/data.md."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from rcmnet_jax.data.sources import Item, UnreadableError, open_source
from rcmnet_jax.errors import UserError
from tests import planting
from tests.planting import fill, medmnist, pack, patch, png, table


def listed(source):
    return [(item.path, item.label) for item in source.items]


def reasons(source):
    return {skipped.path: skipped.reason for skipped in source.skipped}


# ---- class folders ----


def test_a_class_folder_gives_sorted_paths_and_its_folders_names_as_labels(tmp_path):
    source = open_source(str(fill(tmp_path, "b/2.png", "a/x/1.JPG", "b/10.tif")))
    assert listed(source) == [("a/x/1.JPG", "a"), ("b/10.tif", "b"), ("b/2.png", "b")]
    assert source.read(source.items[2]) == png(0)
    assert source.skipped == []


def test_one_folder_around_the_class_folders_is_looked_through(tmp_path):
    assert listed(open_source(str(fill(tmp_path, "set/a/1.png", "set/b/1.png")))) == [
        ("a/1.png", "a"),
        ("b/1.png", "b"),
    ]


def test_folders_named_train_and_test_are_splits_not_classes(tmp_path):
    source = open_source(str(fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")))
    assert source.items[0] == Item("test/a/2.png", "a", "", "test")
    assert {item.label for item in source.items} == {"a", "b"}


@pytest.mark.parametrize("root", ["", "set/"])
def test_strays_beside_the_folders_of_a_split_are_listed_and_make_no_classes_of_it(tmp_path, root):
    names = [f"{root}{name}" for name in ("train/a/1.png", "train/over.png", "test/b/2.png")]
    source = open_source(str(fill(tmp_path, *names, "logo.png")))
    assert [(item.label, item.split) for item in source.items] == [("b", "test"), ("a", "train")]
    assert reasons(source) == {"logo.png": "not in a class folder", "train/over.png": "not in a class folder"}


def test_another_folder_beside_those_of_a_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folders test, train are a split's.*there is 'extra' beside them"):
        open_source(str(fill(tmp_path, "train/a/1.png", "test/a/2.png", "extra/a/3.png")))
    unlabelled = open_source(str(tmp_path), labelled=False)  # which prediction takes as it comes
    assert len(unlabelled.items) == 3
    kept = open_source(str(fill(tmp_path / "one", "a/x/1.png", "b/1.png", "test/x/1.png")))  # a class of that name
    assert {item.label for item in kept.items} == {"a", "b", "test"}


@pytest.mark.parametrize(
    "names", [("Donor 1", "donor 1"), ("P-1", "P\u20111"), ("CD4-", "CD4\u2212"), ("a", "a\u200b")]
)
def test_groups_that_differ_only_in_spelling_are_refused(tmp_path, names):
    fill(tmp_path, "1.png", "2.png")
    rows = [f"{i}.png,x,{name}" for i, name in enumerate(names, 1)]
    manifest = table(tmp_path / "m.csv", "path,label,group", *rows)
    with pytest.raises(UserError, match="would count as another patient"):
        open_source(str(manifest))
    assert len(open_source(str(manifest), labelled=False).items) == 2


def test_numbers_that_a_space_tells_apart_are_two_groups(tmp_path):
    fill(tmp_path, "0.png", "1.png", "2.png")
    groups = ["donor 1 12", "donor 11 2", "donor 112"]
    manifest = table(tmp_path / "m.csv", "path,label,group", *(f"{i}.png,x,{name}" for i, name in enumerate(groups)))
    assert [item.group for item in open_source(str(manifest)).items] == groups


def test_a_splits_file_without_groups_in_it_leaves_those_of_the_data(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    manifest = table(tmp_path / "m.csv", "path,label,group", "1.png,x,p1", "2.png,y,p2")
    splits = table(tmp_path / "s.csv", "path,split,group", "1.png,train,", "2.png,test,q")
    assert [item.group for item in open_source(str(manifest), splits=str(splits)).items] == ["p1", "q"]


def test_a_zips_names_in_utf8_without_the_mark_are_read_as_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for name in ("lyme\u0301/1.png", "b/1.png"):
            info = zipfile.ZipInfo("x" * len(name.encode()))
            archive.writestr(info, png(0))
    data = (tmp_path / "mac.zip").read_bytes()
    for name in ("lyme\u0301/1.png", "b/1.png"):
        data = data.replace(b"x" * len(name.encode()), name.encode())
    (tmp_path / "mac.zip").write_bytes(data)
    assert {item.label for item in open_source(str(tmp_path / "mac.zip")).items} == {"lyme\u0301", "b"}


def test_a_zip_that_another_took_the_place_of_has_no_stamp(tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr("rcmnet_jax.data.formats.base.time.time", lambda: now() + 10)  # files just written count as old
    for name in ("one", "two"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("a/1.png", png(0))
        os.utime(tmp_path / f"{name}.zip", (0, 0))
    source = open_source(str(tmp_path / "one.zip"))
    assert source.stamp() is not None
    (tmp_path / "two.zip").replace(tmp_path / "one.zip")
    assert source.stamp() is None


def test_hidden_files_other_kinds_and_strays_are_listed_with_a_reason(tmp_path):
    fill(tmp_path, "a/1.png", "a/.DS_169665.jpg", "__MACOSX/a/1.png", "stray.png")
    (tmp_path / "a/notes.txt").write_text("x")
    assert reasons(open_source(str(tmp_path))) == {
        "a/.DS_169665.jpg": "hidden or system file",
        "__MACOSX/a/1.png": "hidden or system file",
        "a/notes.txt": "not an image by its name",
        "stray.png": "not in a class folder",
    }


def test_an_empty_class_is_listed(tmp_path):
    fill(tmp_path, "a/1.png").joinpath("b").mkdir()
    assert reasons(open_source(str(tmp_path))) == {"b": "class folder without images"}


def test_one_class_and_one_image_can_be_opened(tmp_path):
    assert listed(open_source(str(fill(tmp_path, "a/1.png")))) == [("a/1.png", "a")]


def test_links_out_of_the_folder_are_left_out_and_links_inside_are_followed(tmp_path):
    fill(tmp_path, "outside.png", "data/a/1.png", "data/b/2.png")
    (tmp_path / "data/a/out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "data/a/in.png").symlink_to(tmp_path / "data/b/2.png")
    (tmp_path / "data/a/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    source = open_source(str(tmp_path / "data"))
    assert [item.path for item in source.items] == ["a/1.png", "a/in.png", "b/2.png"]
    assert reasons(source) == {
        "a/out.png": "link out of the folder",
        "a/gone.png": "broken link",
        "loop": "link to a folder",
    }


def test_pipes_and_sockets_are_never_waited_for(tmp_path):
    fill(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a/s.png"))
        assert reasons(open_source(str(tmp_path))) == {"a/pipe.png": "not a plain file", "a/s.png": "not a plain file"}


def test_an_image_replaced_by_a_pipe_after_listing_is_not_waited_for(tmp_path):
    source = open_source(str(fill(tmp_path, "a/1.png")))
    (tmp_path / "a/1.png").unlink()
    os.mkfifo(tmp_path / "a/1.png")
    with pytest.raises(UnreadableError, match="not a plain file"):
        source.read(source.items[0])


def test_an_image_gone_after_listing_gives_a_reason(tmp_path):
    source = open_source(str(fill(tmp_path, "a/1.png")))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(UnreadableError, match="No such file"):
        source.read(source.items[0])


def test_classes_that_differ_only_by_case_are_refused(tmp_path):
    with pytest.raises(UserError, match="'neutrophil' differs from 'Neutrophil '"):
        open_source(str(fill(tmp_path, "Neutrophil /1.png", "neutrophil/1.png")))


def test_classes_that_differ_only_by_unicode_spelling_are_refused(tmp_path):
    with pytest.raises(UserError, match="differs from"):
        open_source(str(fill(tmp_path, "Zelle\u00e4/1.png", "Zellea\u0308/1.png")))


def test_classes_that_differ_only_in_spelling_stand_side_by_side_for_the_audit(tmp_path):
    fill(tmp_path, "Cell/1.png", "cell/1.png", "x/1.png")
    assert [label for _, label in listed(open_source(str(tmp_path), clashes=True))] == ["Cell", "cell", "x"]
    manifest = table(tmp_path / "m.csv", "path,label", "Cell/1.png,cell ", "cell/1.png,cell", "x/1.png, x ")
    assert [label for _, label in listed(open_source(str(manifest), clashes=True))] == ["cell ", "cell", "x"]


def test_a_file_over_a_gibibyte_is_never_read(tmp_path):
    fill(tmp_path, "a/1.png")
    with (tmp_path / "a/1.png").open("r+b") as file:
        file.truncate((1 << 30) + 1)  # a hole: takes no space
    source = open_source(str(tmp_path))
    with pytest.raises(UnreadableError, match="larger than 1024 MiB"):
        source.read(source.items[0])


def test_unicode_and_long_names_are_kept(tmp_path):
    names = [f"Zellen-ä-細胞/{'長' * 80}.png", f"a/{'x' * 250}.png"]
    assert [item.path for item in open_source(str(fill(tmp_path, *names))).items] == sorted(names)


def test_a_name_that_is_not_utf8_is_listed(tmp_path):
    fill(tmp_path, "a/1.png")
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(png())
    assert reasons(open_source(str(tmp_path))) == {"a/\\xff.png": "name is not valid UTF-8"}


@pytest.mark.parametrize("kind", ["nothing", "empty", "text", "flat", "pipe"])
def test_data_without_images_is_refused(tmp_path, kind):
    path = tmp_path / "data"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.mkdir()
    if kind == "text":
        (path / "a.txt").write_text("x")
    if kind == "flat":
        fill(path, "1.png")
    with pytest.raises(UserError, match="Give a class folder"):
        open_source(str(path))


def test_a_misspelt_name_is_met_with_the_nearest(tmp_path):
    (tmp_path / "cells.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"did you mean .*cells\.csv"):
        open_source(str(tmp_path / "cell.csv"))


# ---- for prediction ----


def test_prediction_takes_one_image_and_folders_without_classes(tmp_path):
    fill(tmp_path, "1.png", "sub/2.png")
    assert listed(open_source(str(tmp_path / "1.png"), labelled=False)) == [("1.png", None)]
    assert listed(open_source(str(tmp_path), labelled=False)) == [("1.png", None), ("sub/2.png", "sub")]
    with pytest.raises(UserError, match="no class to learn from"):
        open_source(str(tmp_path / "1.png"))


def test_prediction_takes_zips_and_csvs_without_labels(tmp_path):
    fill(tmp_path, "1.png")
    archive = pack(tmp_path / "flat.zip", {"1.png": png(), "2.png": png()})
    assert listed(open_source(str(archive), labelled=False)) == [("1.png", None), ("2.png", None)]
    manifest = table(tmp_path / "m.csv", "path", "1.png")
    assert listed(open_source(str(manifest), labelled=False)) == [("1.png", None)]


def test_a_class_folder_keeps_its_labels_in_prediction(tmp_path):
    assert listed(open_source(str(fill(tmp_path, "a/1.png", "b/1.png")), labelled=False))[0] == ("a/1.png", "a")


# ---- manifests ----


def test_a_manifest_gives_labels_groups_and_splits(tmp_path):
    fill(tmp_path, "x/1.png", "y/2.png")
    file = table(
        tmp_path / "m.csv", "path,label,group,split,note", "y/2.png,b,d1,Validation,hm", "./x/1.png,a,d2,train,"
    )
    source = open_source(str(file))
    assert source.items == [Item("x/1.png", "a", "d2", "train"), Item("y/2.png", "b", "d1", "val")]
    assert source.read(source.items[1]) == png(1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_byte_order_marks_line_ends_and_delimiters_do_not_matter(tmp_path, encoding, end, delimiter):
    fill(tmp_path, "a/1.png")
    lines = [delimiter.join(cells) for cells in (("Path", " LABEL"), ("a\\1.png", " ä"), ("", ""))]
    assert listed(open_source(str(table(tmp_path / "m.csv", *lines, encoding=encoding, end=end)))) == [("a/1.png", "ä")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a/1.png,a"], "line 1: no column 'path'"),
        (["path,class", "a/1.png,a"], "line 1: no column 'label'"),
        ([""], "no column 'path'"),
        (["path,label,label", "a/1.png,a,b"], "line 1: column 'label' stands 2 times"),
        (["path,label", "/etc/a.png,a"], "line 2: path '/etc/a.png' is absolute"),
        (["path,label", "C:\\a.png,a"], "line 2: .* is absolute"),
        (["path,label", "a/1.png,a", "../b.png,a"], r"line 3: path '\.\./b\.png' leaves"),
        (["path,label", "a\\..\\..\\b.png,a"], "line 2: .* leaves"),
        (["path,label", ",a"], "line 2: the path is empty"),
        (["path,label", "a/1.png,a,b"], "line 2: 3 cells"),
        (["path,label", "a/1.png"], "line 2: 1 cells"),
        (["path,label", 'a/1.png,"a'], "line 2: "),
        (["path,label", "a/1.png,cell", "a/2.png,Cell"], "line 3: class 'Cell' differs from 'cell' only by case"),
        (
            ["path,label", "a/1.png,cell", "a/2.png,cell "],
            "line 3: class 'cell ' differs from 'cell' only by case, space",
        ),
        (["path,label", "a/1.png,a", "a/1.png,b"], "line 3: 'a/1.png' stands in line 2 with other values"),
        (["path,label,split", "a/1.png,a,trian"], "line 2: split 'trian'"),
        (["path,label", "a/1.png,a\0"], "zero byte"),
        (["path,label", "a/1.png," + "x" * 200_000], "field larger than"),
        (["path,label", "a/9.png,a"], "a/9.png: no such file"),
        (["path,label", "a/1.png,"], "a/1.png: label is empty"),
        (["path,label"], "no images"),
    ],
)
def test_a_doubtful_manifest_is_refused_with_its_line(tmp_path, lines, message):
    fill(tmp_path, "a/1.png", "a/2.png")
    with pytest.raises(UserError, match=message):
        open_source(str(table(tmp_path / "m.csv", *lines)))


def test_a_manifest_in_another_encoding_is_refused(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        with pytest.raises(UserError, match="not UTF-8"):
            open_source(str(table(tmp_path / "m.csv", "path,label", "a/1.png,ä", encoding=encoding)))


def test_rows_that_give_no_image_are_listed(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png", "a/dir.png/x.png")
    (tmp_path / "outside").mkdir()
    fill(tmp_path / "outside", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link.png").symlink_to(tmp_path / "outside/1.png")
    fill(tmp_path / "data", "1.png")
    long = "x" * 300 + ".png"
    rows = ["1.png,a", "1.png,a", "gone.png,a", "link.png,a", "t.txt,a", "e.png,", "d.png,a", f"{long},a"]
    (tmp_path / "data/t.txt").write_text("x")
    (tmp_path / "data/d.png").mkdir()
    fill(tmp_path / "data", "e.png")
    source = open_source(str(table(tmp_path / "data/m.csv", "path,label", *rows)))
    assert listed(source) == [("1.png", "a")]
    assert reasons(source) == {
        "1.png": "repeated row of m.csv",
        "gone.png": "no such file",
        "link.png": "link out of the folder",
        "t.txt": "not an image by its name",
        "e.png": "label is empty",
        "d.png": "not a plain file",
        long: "cannot be read (File name too long)",
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.binary(max_size=300), st.text(alphabet='ab/.,;"\n\r\t \\\0é', max_size=120).map(str.encode)))
def test_any_manifest_is_read_or_refused(tmp_path, text):
    fill(tmp_path, "a/b.png")
    for head in (b"", b"path,label\n", b"\xef\xbb\xbfpath;label;split\r\n"):
        (tmp_path / "m.csv").write_bytes(head + text)
        try:
            source = open_source(str(tmp_path / "m.csv"))
        except UserError:
            continue
        assert all(not item.path.startswith(("/", "..")) and item.label for item in source.items)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.binary(max_size=200), st.text(alphabet='ab/.,"\n\r trainTEST', max_size=120).map(str.encode)))
def test_any_splits_file_is_followed_or_refused(tmp_path, text):
    fill(tmp_path / "data", "a/b.png", "a/t.png")
    for head in (b"path,split\n", b"split,path\ntrain,a/b.png\n"):
        (tmp_path / "s.csv").write_bytes(head + text)
        try:
            source = open_source(str(tmp_path / "data"), splits=str(tmp_path / "s.csv"))
        except UserError:
            continue
        assert {item.split for item in source.items} <= {"train", "val", "test"}
        assert {"a/b.png", "a/t.png"} <= {item.path for item in source.items} | {left.path for left in source.skipped}


# ---- a user's splits ----


@pytest.fixture
def classes(tmp_path):
    return fill(tmp_path / "data", "a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/.junk.png")


def test_a_splits_file_is_respected_exactly(classes, tmp_path):
    lines = ["path,label,subtype,split,group", "a/1.png,a,x,train,d1", "b/1.png,b,,test,d2", "b/9.png,b,,train,d2"]
    source = open_source(str(classes), splits=str(table(tmp_path / "s.csv", *lines)))
    assert source.items == [Item("a/1.png", "a", "d1", "train"), Item("b/1.png", "b", "d2", "test")]
    assert reasons(source) == {
        "b/.junk.png": "hidden or system file",
        "b/9.png": "in s.csv, but not in DATA",
        "a/2.png": "not in s.csv",
        "b/2.png": "not in s.csv",
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,split", "a/1.png,"], "line 2: the split is empty"),
        (["path,split,label", "a/1.png,train,b"], "line 2: label 'b', but in DATA 'a/1.png' is 'a'"),
        (["path,split", "data/a/1.png,train"], "names no image of .*it has 'data/a/1.png', DATA has 'a/1.png'"),
        (["path,label", "a/1.png,a"], "no column 'split'"),
        (["path,split", "a/1.png,train", "a/1.png,test"], "line 3: 'a/1.png' stands in line 2"),
        (["path,split", "a/1.png,holdout"], "line 2: split 'holdout'"),
    ],
)
def test_a_doubtful_splits_file_is_refused_with_its_line(classes, tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        open_source(str(classes), splits=str(table(tmp_path / "s.csv", *lines)))


def test_a_missing_splits_file_is_named(classes):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        open_source(str(classes), splits="none.csv")


# ---- zips ----


def test_a_zip_with_a_folder_around_and_junk_in_it_is_read_in_place(tmp_path):
    members = {"top/a/1.png": png(1), "top/b/2.png": png(2), "top/a/.DS_1.jpg": b"junk", "__MACOSX/._top": b"x"}
    source = open_source(str(pack(tmp_path / "t.zip", members)))
    assert listed(source) == [("a/1.png", "a"), ("b/2.png", "b")]
    assert source.read(source.items[1]) == png(2)
    assert set(reasons(source)) == {"a/.DS_1.jpg", "__MACOSX/._top"}
    assert [path.name for path in tmp_path.iterdir()] == ["t.zip"]


def test_a_zip_of_class_folders_keeps_its_paths(tmp_path):
    source = open_source(
        str(pack(tmp_path / "t.zip", {"b/1.png": png(), "a/1.png": png(), f"a/{'長' * 300}.png": png()}))
    )
    assert [item.path for item in source.items] == ["a/1.png", f"a/{'長' * 300}.png", "b/1.png"]


def test_members_that_climb_out_or_are_no_plain_files_are_listed(tmp_path):
    link, device = zipfile.ZipInfo("a/link.png"), zipfile.ZipInfo("a/dev.png")
    link.external_attr, device.external_attr = 0o120777 << 16, 0o020666 << 16
    path = pack(
        tmp_path / "t.zip", {"a/1.png": png(), "../../out.png": png(), "/abs.png": png(), "a/../../b.png": png()}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr(device, "")
        archive.writestr("a\\..\\..\\w.png", png())
        archive.writestr("C:\\w.png", png())
        archive.writestr("a//w.png", png())
    source = open_source(str(path))
    assert listed(source) == [("a/1.png", "a")]
    assert reasons(source) == {
        "../../out.png": "name climbs out of the zip",
        "/abs.png": "name climbs out of the zip",
        "a/../../b.png": "name climbs out of the zip",
        "a/../../w.png": "name climbs out of the zip",
        "C:/w.png": "name climbs out of the zip",
        "a//w.png": "name is not a plain path",
        "a/link.png": "link, not a file",
        "a/dev.png": "not a plain file",
    }


def test_a_repeated_member_is_refused(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": png()})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/1.png", png(9))
    with pytest.raises(UserError, match=r"'a/1\.png' is in it twice"):
        open_source(str(path))


def test_a_member_that_explodes_is_listed_and_never_expanded(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": png(), "a/bomb.bmp": bytes(40 << 20)})
    assert path.stat().st_size < 1 << 20
    assert reasons(open_source(str(path))) == {"a/bomb.bmp": "would expand beyond measure"}


def test_a_zip_whose_whole_would_explode_is_refused(tmp_path):
    path = pack(tmp_path / "t.zip", {f"a/{i}.txt": b"x" for i in range(3)})
    for i in range(3):
        patch(path, f"a/{i}.txt", "size", 2_000_000_000)
    with pytest.raises(UserError, match="would expand to 6,000,000,000"):
        open_source(str(path))


def test_members_over_one_another_are_refused(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": png(1), "a/2.png": png(2)})
    patch(path, "a/2.png", "header", 0)
    with pytest.raises(UserError, match="shares bytes with another member"):
        open_source(str(path))


def test_a_member_that_lies_about_its_size_or_is_damaged_gives_a_reason(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": png(1), "a/2.png": png(2), "a/3.png": png(3)})
    patch(path, "a/1.png", "size", 20)
    data = bytearray(path.read_bytes())
    data[data.index(b"a/2.png") + 20] ^= 0xFF
    path.write_bytes(data)
    source = open_source(str(path))
    for item in source.items[:2]:
        with pytest.raises(UnreadableError, match="damaged member"):
            source.read(item)
    assert source.read(source.items[2]) == png(3)


def test_a_member_that_explodes_beyond_the_size_it_claims_is_given_up_before_memory_is_full(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": bytes(100 << 20)})
    patch(path, "a/1.png", "size", 20_000)
    source = open_source(str(path))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="damaged member"):
        source.read(source.items[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_an_encrypted_member_is_listed(tmp_path):
    path = pack(tmp_path / "t.zip", {"a/1.png": png(), "a/2.png": png()})
    patch(path, "a/2.png", "flags", 1)
    assert reasons(open_source(str(path))) == {"a/2.png": "encrypted"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None, bytes(99)])
def test_what_is_no_zip_is_refused(tmp_path, content):
    path = pack(tmp_path / "t.zip", {"a/1.png": png()})
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(UserError, match="not a whole zip file"):
        open_source(str(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@example(changes=[(2035, 0)])
@example(changes=[(2035, 255), (2036, 255)])
def test_a_damaged_zip_is_read_in_part_or_refused(tmp_path, changes):
    path = pack(tmp_path / "t.zip", {"a/1.png": png(1), "a/2.png": png(2)})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        source = open_source(str(path))
        contents = [source.read(item) for item in source.items]
    except (UserError, UnreadableError):
        return
    # A member's bytes have a checksum: what is read is what was packed.
    assert set(contents) <= {png(1), png(2)}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(alphabet="ab./\\:é ", min_size=1, max_size=12), min_size=1, max_size=5, unique=True))
def test_members_of_any_name_are_listed_or_left_out(tmp_path, names):
    path = pack(tmp_path / "t.zip", {name + ".png": png() for name in names})
    try:
        source = open_source(str(path))
    except UserError:
        return
    assert all(".." not in item.path.split("/") and item.path[0] != "/" for item in source.items)
    files = sum(not name.endswith(("/", "\\")) for name in names)
    assert len(source.items) + len(source.skipped) >= files - 1


# ---- MedMNIST ----


@pytest.mark.parametrize("shape", [(6, 7, 3), (6, 7), (6, 7, 1)])
@pytest.mark.parametrize("compressed", [True, False])
def test_medmnist_gives_its_images_labels_and_split_in_any_order(tmp_path, shape, compressed):
    arrays = medmnist(tmp_path / "m.npz", shape=shape, compressed=compressed)
    source = open_source(str(tmp_path / "m.npz"))
    assert [(item.split, item.label) for item in source.items[:4]] == [
        ("test", "0"),
        ("test", "1"),
        ("test", "2"),
        ("train", "0"),
    ]
    for item in reversed(source.items):
        split, number = item.path.split("/")
        found = np.asarray(Image.open(io.BytesIO(source.read(item))))
        np.testing.assert_array_equal(found, arrays[f"{split}_images"][int(number)].reshape(found.shape))


def test_bloodmnists_labels_are_named(tmp_path):
    medmnist(tmp_path / "bloodmnist_64.npz")
    assert {item.label for item in open_source(str(tmp_path / "bloodmnist_64.npz")).items} == {
        "basophil", "eosinophil", "erythroblast",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.array([{"a": 1}], object)}, "not whole numbers|not a whole npz"),
        ({"train_labels": np.array([object()], object)}, "not whole numbers|not a whole npz"),
        ({"train_images": np.zeros((5, 6, 7, 3), np.float32)}, "not whole numbers"),
        ({"train_images": np.zeros((5, 6, 7, 3), np.uint16)}, "needed is uint8"),
        ({"train_images": np.zeros((5, 6, 7, 7), np.uint8)}, "needed is uint8"),
        ({"train_labels": np.zeros((4, 1), np.uint8)}, "one label an image"),
        ({"train_labels": np.zeros((5, 14), np.uint8)}, "one label an image"),
        ({"train_labels": np.full((5, 1), -1, np.int64)}, "labels from -1"),
        ({"train_images": np.asfortranarray(np.zeros((5, 6, 7, 3), np.uint8))}, "C order"),
    ],
)
def test_arrays_of_another_kind_are_refused_and_nothing_is_unpickled(tmp_path, change, message):
    medmnist(tmp_path / "m.npz", **change)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "m.npz"))


def test_labels_that_explode_beyond_the_size_they_claim_are_given_up_before_memory_is_full(tmp_path):
    labels = io.BytesIO()
    np.save(labels, np.zeros(100 << 20, np.uint8))
    medmnist(tmp_path / "m.npz")
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["train_labels.npy"] = labels.getvalue().replace(b"(104857600,)", b"(5,)        ", 1)
    pack(tmp_path / "m.npz", members)
    patch(tmp_path / "m.npz", "train_labels.npy", "size", 128 + 5)
    tracemalloc.start()
    with pytest.raises(UserError, match="not a whole npz file"):
        open_source(str(tmp_path / "m.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_an_npz_of_another_layout_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="no train_images"):
        open_source(str(tmp_path / "m.npz"))
    (tmp_path / "m.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="not a whole npz"):
        open_source(str(tmp_path / "m.npz"))


def test_an_array_that_lies_about_its_shape_is_refused(tmp_path):
    medmnist(tmp_path / "m.npz")
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["train_images.npy"] = members["train_images.npy"].replace(b"(5, 6, 7, 3)", b"(9, 6, 7, 3)")
    with pytest.raises(UserError, match="says its shape"):
        open_source(str(pack(tmp_path / "m.npz", members)))


def test_damage_deep_inside_an_array_refuses_the_whole_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("rcmnet_jax.data.formats.medmnist._BLOCK", 2000)
    medmnist(tmp_path / "m.npz", (("train", 200),), compressed=False)
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[data.index(b"train_images") + 15_000] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    source = open_source(str(tmp_path / "m.npz"))
    with pytest.raises(UserError, match="damaged"):
        [source.read(item) for item in source.items]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_npz_is_refused_or_gives_its_own_pixels(tmp_path, changes):
    arrays = medmnist(tmp_path / "m.npz", (("train", 5),))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "m.npz").write_bytes(data)
    try:
        source = open_source(str(tmp_path / "m.npz"))
        for i, item in enumerate(source.items):
            assert source.read(item)[-126:] == arrays["train_images"][i].tobytes()
    except UserError:
        return


# ---- TFDS, synthetic, real ----


@pytest.fixture
def tfds_set(tmp_path, monkeypatch):
    """A function that prepares a configuration of the set `rcmtoy` and returns its spec."""
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda name: planting.tfds_set(tmp_path / "code", tmp_path / "tfds", name)


@pytest.mark.filterwarnings("ignore")
def test_a_prepared_tfds_set_is_read_without_tensorflow(tfds_set):
    tfds_set("no_label")
    with pytest.raises(UserError, match="not prepared in"):
        open_source("tfds:rcmtoy/good")
    source = open_source(tfds_set("good"))
    assert "tensorflow" not in sys.modules
    assert [(item.path, item.split) for item in source.items][::2] == [
        ("test/0000000", "test"), ("train/0000000", "train"), ("train/0000002", "train"),
    ]  # fmt: skip
    levels = {int(np.asarray(Image.open(io.BytesIO(source.read(item))))[0, 0, 0]): item for item in source.items}
    assert all(item.label == "ab"[level % 2] and item.group == f"d{level}" for level, item in levels.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twice", "two records have the same path"),
        ("no_image", "no feature 'image'"),
        ("no_label", "no feature 'label'"),
    ],
)
def test_a_tfds_set_that_cannot_be_learnt_from_is_refused(tfds_set, name, message):
    with pytest.raises(UserError, match=message):
        open_source(tfds_set(name))


@pytest.mark.filterwarnings("ignore")
def test_a_tfds_set_that_is_damaged_or_in_another_file_format_is_refused(tfds_set, tmp_path):
    spec = tfds_set("good")
    (records,) = (tmp_path / "tfds").rglob("*train.array_record*")
    content = bytearray(records.read_bytes())
    content[-100_000:] = bytes(len(content[-100_000:]))
    records.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        open_source(spec)
    info = records.with_name("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="is there as tfrecord only"):
        open_source(spec)


@pytest.mark.parametrize("name", ["no such", "hub:set", "../x", "", "rcm_no_such_set"])
def test_a_name_that_tfds_does_not_know_is_refused(name):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match=r"not a name|knows no set"):
        open_source(f"tfds:{name}")


def test_an_embedded_set_is_said_to_be_synthetic():
    source = open_source("synthetic:cart-tiny")
    assert source.synthetic
    assert source.items == sorted(source.items, key=lambda item: item.path)
    assert Image.open(io.BytesIO(source.read(source.items[0]))).size == (80, 80)
    with pytest.raises(UserError):
        open_source("synthetic:nothing")


def test_the_published_layout_of_pbc_is_read_with_its_split(real_data):
    source = open_source(
        str(real_data / "PBC_dataset_normal_DIB_128px.zip"), splits=str(real_data / "pbc_128px_split.csv")
    )
    assert len(source.items) == 13_724
    assert sum(item.split == "train" for item in source.items) == 11_940
    assert reasons(source) == {"neutrophil/.DS_169665.jpg": "hidden or system file"}
