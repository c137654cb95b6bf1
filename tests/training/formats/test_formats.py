"""What is drawn comes out of every tool's files, and what is wrong in them is refused by all verbs alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinaserve.training.check.checks import preflight, scored_labels
from retinaserve.training.coco import Annotations, read_labels
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from tests.cli import invoke
from tests.training.formats.written import (
    CAT,
    CREATEML,
    CVAT,
    DRAWN,
    EMPTY_BELONGS,
    EMPTY_IS_UNSEEN,
    KITTI,
    KITTI_TAIL,
    LABELIMG,
    OPEN_IMAGES,
    SIZES,
    STUDIO,
    STUDIO_A,
    YAML,
    YOLO_A,
    YOLO_LABELS,
    Write,
    files,
    folder_of,
    labelme,
    rectangle,
    studio,
    task,
    voc,
    voc_object,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name), 99, 99)).save(path)
    return tmp_path


def drawn(labels: Annotations) -> list[tuple[Any, ...]]:
    return [
        (
            labels.images[box["image_id"]],
            labels.categories[box["category_id"]],
            [round(value, 2) for value in box["bbox"]],
        )
        for box in labels.boxes
    ]


@pytest.mark.parametrize("name", [*EMPTY_BELONGS, *EMPTY_IS_UNSEEN])
def test_what_was_drawn_is_read(folder: Path, name: str) -> None:
    write, belongs = (EMPTY_BELONGS | EMPTY_IS_UNSEEN)[name], name in EMPTY_BELONGS
    path, images = Path(write(folder)), folder / "images"
    labels = read_labels(path, images)
    assert drawn(labels) == [(file, label, list(box)) for file, label, box in DRAWN]
    assert set(labels.images.values()) == {"a.jpg", "sub/b.png"} | ({"c.jpg"} if belongs else set())
    assert list(labels.categories.values()) == ["cat", "dog"]
    codes = set() if belongs else {"image-unlabelled"}
    codes |= {"label-unused"} if name == "Open Images" else set()
    assert {finding.code for finding in labels.findings} == codes, labels.findings
    # What is trained on and scored against is the same, and so is the COCO file that is made of it.
    assert scored_labels(path, images).boxes == labels.boxes == CocoDataset(images, path).truth.boxes
    preflight(images, path)
    done = invoke("data", "convert", path, folder / "out.json", "--images", images)
    assert done.exit_code == 0, done.output
    again = read_labels(folder / "out.json")
    assert drawn(again) == drawn(labels) and again.images == labels.images and not again.findings
    content = json.loads((folder / "out.json").read_text())
    assert {each["file_name"]: (each["width"], each["height"]) for each in content["images"]} == {
        file: SIZES[file] for file in labels.images.values()
    }


def test_roboflows_folders_have_a_split_each(tmp_path: Path) -> None:
    for split, size in (("train", (100, 100)), ("valid", (200, 50))):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "labels").mkdir()
        Image.new("RGB", size).save(tmp_path / split / "images" / f"{split}_jpg.rf.0a1b.jpg")
        (tmp_path / split / "labels" / f"{split}_jpg.rf.0a1b.txt").write_text("0 0.5 0.5 0.2 0.4")
    path = tmp_path / "data.yaml"
    path.write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\nnames: ['hen']\n"
    )
    train, val = (read_labels(path, tmp_path, split=split) for split in ("train", "val"))
    assert list(train.images.values()) == ["train/images/train_jpg.rf.0a1b.jpg"]
    assert list(val.images.values()) == ["valid/images/valid_jpg.rf.0a1b.jpg"]
    assert (train.boxes[0]["bbox"], val.boxes[0]["bbox"]) == ([40, 30, 20, 40], [80, 15, 40, 20])
    # The folder of a split, named by hand, is that split.
    assert read_labels(path, tmp_path / "valid" / "images").boxes[0]["bbox"] == [80, 15, 40, 20]


def test_shares_are_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: 100 x 40 is shown as 40 x 100
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 40)).save(tmp_path / "images" / "a.jpg", exif=exif)
    path = files(labels__a_dot_txt="0 0.5 0.5 0.5 0.1", labels__classes_dot_txt="cat")(tmp_path)
    assert read_labels(Path(path).parent, tmp_path / "images").boxes[0]["bbox"] == [10, 45, 20, 10]


def test_regions_that_are_no_objects_are_crowds(folder: Path) -> None:
    images = folder / "images"
    kitti = folder_of(
        files(label_2__a_dot_txt=KITTI["label_2__a_dot_txt"] + f"DontCare -1 -1 -10 1 2 9 9 {KITTI_TAIL}\n")
    )
    labels = read_labels(Path(kitti(folder)), images)
    assert [(labels.categories[box["category_id"]], box["bbox"]) for box in labels.boxes if box["iscrowd"]] == [
        ("cat", [1, 2, 8, 7]),
        ("dog", [1, 2, 8, 7]),
    ]
    difficult = voc("a.jpg", (200, 100), voc_object("cat", 10, 20, 50, 50, 1))
    labels = read_labels(Path(files(one_dot_xml=difficult)(folder)), images)
    assert [(box["iscrowd"], box["bbox"]) for box in labels.boxes] == [(1, list(CAT))]
    group = OPEN_IMAGES.replace("0.2,0.5,0,0,0", "0.2,0.5,0,0,1")
    labels = read_labels(Path(files(group_dot_csv=group)(folder)), images)
    assert [box["iscrowd"] for box in labels.boxes] == [1, 0, 0]


def test_rotations_turn_about_what_each_tool_turns_about(folder: Path) -> None:
    images = folder / "images"
    # Upright 40 x 20 at 60, 40. CVAT: by 90 degrees about its centre, 80, 50.
    cvat = CVAT.replace(
        'xtl="10.00" ytl="20.00" xbr="50.00" ybr="50.00"', 'xtl="60" ytl="40" xbr="100" ybr="60" rotation="90.00"'
    )
    labels = read_labels(Path(files(cvat_dot_xml=cvat)(folder)), images)
    assert labels.boxes[0]["bbox"] == pytest.approx([70, 30, 20, 40])
    # Label Studio: about its corner, 60, 40, clockwise, so that it hangs down to the left.
    turned = [task(1, "a.jpg", {"result": studio([rectangle("cat", 30, 40, 20, 20, 90)], (200, 100))})]
    other = read_labels(Path(files(turned_dot_json=turned)(folder)), images)
    assert other.boxes[0]["bbox"] == pytest.approx([40, 40, 20, 40])
    assert all("box-rotated" in [finding.code for finding in each.findings] for each in (labels, other))


def test_a_video_of_cvat(tmp_path: Path) -> None:
    for number in (0, 1, 7):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"frame_{number:06}.PNG")
    box = '<box frame="{}" outside="{}" occluded="0" keyframe="1" xtl="1" ytl="2" xbr="11" ybr="22"></box>'
    text = f'<annotations><track id="0" label="car">{box.format(0, 0)}{box.format(1, 1)}</track></annotations>'
    labels = read_labels(Path(files(video_dot_xml=text)(tmp_path)), tmp_path / "images")
    assert [(labels.images[each["image_id"]], each["bbox"]) for each in labels.boxes] == [
        ("frame_000000.PNG", [1, 2, 10, 20])
    ]
    assert sorted(labels.images.values()) == ["frame_000000.PNG", "frame_000001.PNG", "frame_000007.PNG"]


def test_of_several_annotators_the_ground_truth_counts(folder: Path) -> None:
    both = [{"id": 1, "result": STUDIO_A[:1], "ground_truth": True}, {"id": 2, "result": STUDIO_A}]
    labels = read_labels(Path(files(two_dot_json=[task(1, "a.jpg", *both)])(folder)), folder / "images")
    assert len(labels.boxes) == 1 and "label-overruled" in [finding.code for finding in labels.findings]


TAKEN: dict[str, tuple[Write, set[str]]] = {
    "a class without a name": (folder_of(files(labels__a_dot_txt="3 0.5 0.5 0.1 0.1")), {"category-unnamed"}),
    "labels without an image": (
        folder_of(
            files(labels__gone_dot_txt=YOLO_A, labels__classes_dot_txt="cat\ndog", labels__a_dot_txt=YOLO_A)
        ),
        {"label-unused"},
    ),
    "points": (
        folder_of(
            files(
                json__a_dot_json=labelme(
                    "a.jpg",
                    (200, 100),
                    ("cat", "point", [[1, 2]], None),
                    ("cat", "circle", [[50, 50], [50, 60]], None),
                )
            )
        ),
        {"shape-skipped", "image-unlabelled"},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_left_out_is_told(folder: Path, name: str) -> None:
    write, codes = TAKEN[name]
    labels = Annotations.load(Path(write(folder)), folder / "images")
    assert {finding.code for finding in labels.findings} == codes and labels.boxes


def linked_to_nothing(folder: Path) -> Path:
    (folder / "xml").mkdir()
    (folder / "xml" / "a.xml").symlink_to(folder / "gone.xml")
    return folder / "xml"


REFUSED: dict[str, tuple[Write, str]] = {
    "four numbers": (folder_of(files(labels__a_dot_txt="0 0.5 0.5 0.1")), "label-line"),
    "a word": (folder_of(files(labels__a_dot_txt="0 0.5 0.5 0.1 0.1\ncat 0.5 0.5 0.1 0.1")), "label-line"),
    "an even outline": (folder_of(files(labels__a_dot_txt="0 .1 .1 .2 .2 .3 .3 .4")), "label-line"),
    "a class beyond the list": (
        files(data_dot_yaml=YAML, labels__a_dot_txt="2 .5 .5 .1 .1"),
        "annotation-category",
    ),
    "pixels for shares": (files(data_dot_yaml=YAML, labels__a_dot_txt="0 50 50 10 10"), "box-outside"),
    "names that are no list": (files(data_dot_yaml="names: cat"), "file-unreadable"),
    "the same name twice": (files(data_dot_yaml="names: [cat, cat]"), "category-repeated"),
    "a broken yaml": (files(data_dot_yaml="names: ["), "file-unreadable"),
    "a broken xml": (files(a_dot_xml="<annotation>"), "file-unreadable"),
    "another xml": (files(a_dot_xml="<html></html>"), "file-unreadable"),
    "an entity": (files(a_dot_xml='<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'), "file-unreadable"),
    "a box without a corner": (
        files(a_dot_xml=LABELIMG["xml__a_dot_xml"].replace("<xmax>50</xmax>", "")),
        "label-line",
    ),
    "an image that is not there": (
        files(a_dot_xml=LABELIMG["xml__a_dot_xml"].replace("a.jpg", "z.jpg"), b_dot_txt=""),
        "",
    ),
    "a broken labelme": (folder_of(files(json__a_dot_json="{")), "file-unreadable"),
    "VIA 3": (files(v_dot_json={"project": {}, "metadata": {}, "view": {}, "file": {}}), "file-unreadable"),
    "CreateML without a width": (
        files(c_dot_json=[{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1}}]}]),
        "label-line",
    ),
    "another csv": (files(a_dot_csv="filename,width\n"), "file-unreadable"),
    "an archive": (files(a_dot_zip="PK"), "file-unreadable"),
    "an empty folder": (lambda folder: (folder / "none").mkdir() or folder / "none", "file-unreadable"),
    "a file that is not there": (lambda folder: folder / "none.yaml", "file-unreadable"),
    "a link to nothing": (linked_to_nothing, "file-unreadable"),
    "two formats": (folder_of(files(mix__a_dot_txt=YOLO_A, mix__a_dot_xml="<annotation/>")), "file-unreadable"),
    "an image of another size": (
        files(a_dot_xml=LABELIMG["xml__a_dot_xml"].replace("<width>200<", "<width>400<")),
        "image-size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_by_all_verbs(folder: Path, name: str) -> None:
    write, code = REFUSED[name]
    path, images = Path(write(folder)), folder / "images"
    if not code:  # the file is called like its image
        assert Annotations.load(path, images).images == {1: "a.jpg"}
        return
    for verb in (preflight, lambda where, what: scored_labels(what, where)):
        with pytest.raises(UserError) as refused:
            verb(images, path)
        assert f"[{code}]" in refused.value.message and str(path) in refused.value.message
    checked = invoke("data", "check", "--images", images, "--annotations", path)
    assert checked.exit_code == 3 and code in checked.stdout


def test_names_that_several_images_have_are_refused(folder: Path) -> None:
    (folder / "images" / "other").mkdir()
    Image.new("RGB", (64, 80)).save(folder / "images" / "other" / "b.png")
    with pytest.raises(UserError, match=r"\[image-ambiguous\]: b\.png: other/b\.png or sub/b\.png"):
        Annotations.load(Path(files(createml_dot_json=CREATEML)(folder)), folder / "images")
    # Label Studio's path says which.
    labels = Annotations.load(Path(files(export_dot_json=STUDIO)(folder)), folder / "images")
    assert "sub/b.png" in labels.images.values()


def test_an_image_that_can_not_be_read_has_no_shares(folder: Path) -> None:
    (folder / "images" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\[image-unsized\]: a\.jpg"):
        Annotations.load(Path(files(data_dot_yaml=YAML, **YOLO_LABELS)(folder)), folder / "images")
