"""Label files as tools export them, written by hand from the formats' descriptions: what is drawn comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from retinaserve.scripts.cli.main import main
from retinaserve.training.check.checks import preflight, scored_labels
from retinaserve.training.coco import Annotations, read_labels
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError

# Two images, and a third that shows nothing or that nobody has looked at, by the format.
SIZES = {"a.jpg": (200, 100), "sub/b.png": (64, 80), "c.jpg": (50, 50)}
CAT, DOG = (10, 20, 40, 30), (100, 50, 60, 40)
SMALL = (4, 8, 16, 40)
DRAWN = [("a.jpg", "cat", CAT), ("a.jpg", "dog", DOG), ("sub/b.png", "dog", SMALL)]

Write = Callable[[Path], Path | str]


def files(**contents: Any) -> Write:
    """Write files whose names have __ for / and _dot_ for the last dot; return the first."""

    def write(folder: Path) -> Path:
        paths = []
        for key, content in contents.items():
            path = folder / key.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(path)
        return paths[0]

    return write


def folder_of(write: Write) -> Write:
    return lambda folder: Path(write(folder)).parent


def voc(name: str, size: tuple[int, int], objects: str, source: str = "<database>Unknown</database>") -> str:
    return (
        f"<annotation><folder>images</folder><filename>{name}</filename><source>{source}</source>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc_object(name: str, x1: float, y1: float, x2: float, y2: float, difficult: int = 0) -> str:
    return (
        f"<object><name>{name}</name><pose>Unspecified</pose><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


LABELIMG = {
    "xml__a_dot_xml": voc(
        "a.jpg", (200, 100), voc_object("cat", 10, 20, 50, 50) + voc_object("dog", 100, 50, 160, 90)
    ),
    "xml__b_dot_xml": voc("b.png", (64, 80), voc_object("dog", 4, 8, 20, 48)),
}
# Pascal's own count from 1 and include the last pixel.
PASCAL = {
    key: content.replace("Unknown", "The VOC2007 Database")
    .replace("<xmin>10</xmin><ymin>20<", "<xmin>11</xmin><ymin>21<")
    .replace("<xmin>100</xmin><ymin>50<", "<xmin>101</xmin><ymin>51<")
    .replace("<xmin>4</xmin><ymin>8<", "<xmin>5</xmin><ymin>9<")
    for key, content in LABELIMG.items()
}
YAML = "path: .\ntrain: images\nval: images\nnc: 2\nnames: ['cat', 'dog']\n"
YOLO_A = "0 0.15 0.35 0.2 0.3\n1 0.65 0.7 0.3 0.4\n"
YOLO_B = "1 0.1875 0.35 0.25 0.5"
POLYGONS = "0 0.05 0.2 0.25 0.3 0.1 0.5\n1 0.5 0.5 0.8 0.5 0.8 0.9 0.5 0.9\n"
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name><color>#ff0000</color><attributes></attributes></label><label><name>dog</name></label></labels>
</task></meta>
<image id="0" name="a.jpg" width="200" height="100">
 <box label="cat" source="manual" occluded="0" xtl="10.00" ytl="20.00" xbr="50.00" ybr="50.00" z_order="0"></box>
 <polygon label="dog" source="manual" points="100.00,50.00;160.00,70.00;120.00,90.00" z_order="0"></polygon>
</image>
<image id="1" name="sub/b.png" width="64" height="80">
 <mask label="dog" source="manual" rle="0, 640" left="4" top="8" width="16" height="40" z_order="0"></mask>
</image><image id="2" name="c.jpg" width="50" height="50"></image></annotations>"""


def studio(shapes: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    return [
        {"id": f"r{n}", "original_width": size[0], "original_height": size[1], "image_rotation": 0} | shape
        for n, shape in enumerate(shapes)
    ]


def rectangle(label: str, x: float, y: float, w: float, h: float, rotation: float = 0) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": rotation, "rectanglelabels": [label]}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}


def task(number: int, image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": list(annotations)}


STUDIO_A = studio([rectangle("cat", 5, 20, 20, 30), rectangle("dog", 50, 50, 30, 40)], (200, 100))
STUDIO_B = studio([rectangle("dog", 6.25, 10, 25, 50)], (64, 80))
STUDIO = [
    task(1, "/data/upload/1/0a1b2c3d-a.jpg", {"id": 1, "was_cancelled": False, "result": STUDIO_A}),
    task(2, "/data/local-files/?d=images/sub/b.png", {"id": 2, "result": STUDIO_B}),
    task(3, "http://host:8080/c.jpg"),
]
STUDIO_MIN = [
    {
        "image": "/data/upload/1/0a1b2c3d-a.jpg",
        "id": 1,
        "annotation_id": 4,
        "label": [{**each["value"], "original_width": 200, "original_height": 100} for each in STUDIO_A],
    },
    {
        "image": "/data/upload/1/0a1b2c3d-b.png",
        "id": 2,
        "annotation_id": 5,
        "label": [{**STUDIO_B[0]["value"], "original_width": 64, "original_height": 80}],
    },
]


def labelme(name: str, size: tuple[int, int], *shapes: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}
            for label, kind, points, group in shapes
        ],
        "imagePath": name,
        "imageData": None,
        "imageWidth": size[0],
        "imageHeight": size[1],
    }


LABELME = {
    "json__a_dot_json": labelme(
        "..\\images\\a.jpg",
        (200, 100),
        ("cat", "rectangle", [[50.0, 20.0], [10.0, 50.0]], None),
        # One dog in two pieces
        ("dog", "polygon", [[100, 50], [120, 50], [110, 90]], 1),
        ("dog", "polygon", [[140, 60], [160, 60], [150, 80]], 1),
    ),
    "json__b_dot_json": labelme("../images/sub/b.png", (64, 80), ("dog", "rectangle", [[4, 8], [20, 48]], None)),
}


def via(shape: dict[str, Any], label: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": {"type": label, "note": ""}}


def rect(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    return {"name": "rect", "x": x, "y": y, "width": w, "height": h}


VIA_FILES = {
    "a.jpg1234": {
        "filename": "a.jpg",
        "size": 1234,
        "regions": [
            via(rect(*CAT), "cat"),
            via({"name": "polygon", "all_points_x": [100, 160, 120], "all_points_y": [50, 70, 90]}, {"dog": True}),
        ],
        "file_attributes": {},
    },
    "b.png99": {"filename": "b.png", "size": 99, "regions": {"0": via(rect(*SMALL), "dog")}},
    "c.jpg1": {"filename": "c.jpg", "size": 1, "regions": []},
}
CREATEML = [
    {
        "image": "a.jpg",
        "annotations": [
            {"label": "cat", "coordinates": {"x": 30, "y": 35, "width": 40, "height": 30}},
            {"label": "dog", "coordinates": {"x": 130, "y": 70, "width": 60, "height": 40}},
        ],
    },
    {
        "image": "b.png",
        "annotations": [{"label": "dog", "coordinates": {"x": 12, "y": 28, "width": 16, "height": 40}}],
    },
    {"image": "c.jpg", "annotations": []},
]
OPEN_COLUMNS = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
OPEN_IMAGES = f"""{OPEN_COLUMNS}IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
a,xclick,/m/01yrx,1,0.05,0.25,0.2,0.5,0,0,0,0,0
a,xclick,/m/0bt9lr,1,0.5,0.8,0.5,0.9,1,0,0,0,0
b.png,xclick,/m/0bt9lr,1,0.0625,0.3125,0.1,0.6,-1,-1,-1,-1,-1
0001eeaf4aed83f9,xclick,/m/0cmf2,1,0.02,0.96,0.07,0.8,0,0,0,0,0
"""
KITTI_TAIL = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
KITTI = {
    "label_2__a_dot_txt": f"cat 0.00 0 -1.58 10.00 20.00 50.00 50.00 {KITTI_TAIL}\n"
    f"dog 0.00 1 1.85 100.00 50.00 160.00 90.00 {KITTI_TAIL}\n",
    "label_2__b_dot_txt": f"dog 0.00 1 1.85 4.00 8.00 20.00 48.00 {KITTI_TAIL}\n",
}
EMPTY, UNLABELLED = {"c.jpg"}, set[str]()
YOLO_LABELS = {"labels__a_dot_txt": YOLO_A, "labels__sub__b_dot_txt": YOLO_B}

# name: what is written; the images without boxes that belong to the set; the codes of findings
FORMATS: dict[str, tuple[Write, set[str], set[str]]] = {
    "YOLO, Ultralytics' data.yaml": (files(data_dot_yaml=YAML, **YOLO_LABELS), EMPTY, set()),
    "YOLO, names by number": (
        files(data_dot_yaml="train: images\nnames:\n  0: cat\n  1: dog\n", **YOLO_LABELS),
        EMPTY,
        set(),
    ),
    "YOLO, a folder and classes.txt": (
        folder_of(files(labels__a_dot_txt=YOLO_A, labels__b_dot_txt=YOLO_B, labels__classes_dot_txt="cat\ndog\n")),
        EMPTY,
        set(),
    ),
    "YOLO, outlines": (
        files(data_dot_yaml=YAML, labels__a_dot_txt=POLYGONS, labels__sub__b_dot_txt=YOLO_B),
        EMPTY,
        set(),
    ),
    "YOLO, with confidences": (
        files(
            data_dot_yaml=YAML,
            labels__a_dot_txt="0 0.15 0.35 0.2 0.3 0.91\n1 0.65 0.7 0.3 0.4 0.5\n",
            labels__sub__b_dot_txt=YOLO_B,
        ),
        EMPTY,
        set(),
    ),
    "YOLO, keypoints": (
        files(
            data_dot_yaml=YAML + "kpt_shape: [2, 3]\n",
            labels__a_dot_txt="0 0.15 0.35 0.2 0.3 0.1 0.3 2 0.2 0.3 2\n1 0.65 0.7 0.3 0.4 0.6 0.6 2 0 0 0\n",
            labels__sub__b_dot_txt=YOLO_B + " 0.1 0.3 2 0.2 0.3 2",
        ),
        EMPTY,
        set(),
    ),
    "Pascal VOC, by LabelImg": (folder_of(files(**LABELIMG)), UNLABELLED, {"image-unlabelled"}),
    "Pascal VOC, Pascal's own": (folder_of(files(**PASCAL)), UNLABELLED, {"image-unlabelled"}),
    "Pascal VOC, by Roboflow": (
        folder_of(
            files(**{key: text.replace("The VOC2007 Database", "roboflow.com") for key, text in PASCAL.items()})
        ),
        UNLABELLED,
        {"image-unlabelled"},
    ),
    "YOLO, labels beside the YAML, images elsewhere": (
        files(set__data_dot_yaml=YAML, set__labels__a_dot_txt=YOLO_A, set__labels__sub__b_dot_txt=YOLO_B),
        EMPTY,
        set(),
    ),
    "YOLO, darknet's obj.names": (
        lambda folder: (
            files(
                d__obj_dot_names="cat\ndog\n",
                d__obj_train_data__a_dot_txt=YOLO_A,
                d__obj_train_data__b_dot_txt=YOLO_B,
            )(folder),
            folder / "d",
        )[1],
        EMPTY,
        set(),
    ),
    "CVAT for images": (files(annotations_dot_xml=CVAT), EMPTY, set()),
    "Label Studio": (files(export_dot_json=STUDIO), UNLABELLED, {"image-unlabelled"}),
    "Label Studio, JSON-MIN": (files(min_dot_json=STUDIO_MIN), UNLABELLED, {"image-unlabelled"}),
    "labelme": (folder_of(files(**LABELME)), UNLABELLED, {"image-unlabelled"}),
    "VIA": (files(via_dot_json=VIA_FILES), EMPTY, set()),
    "VIA, a project": (
        files(project_dot_json={"_via_settings": {}, "_via_img_metadata": VIA_FILES, "_via_attributes": {}}),
        EMPTY,
        set(),
    ),
    "CreateML": (files(createml_dot_json=CREATEML), EMPTY, set()),
    "CreateML, by Apple's old keys": (
        files(
            old_dot_json=[{"imagefilename": each["image"], "annotation": each["annotations"]} for each in CREATEML]
        ),
        EMPTY,
        set(),
    ),
    "Open Images": (
        files(
            boxes_dot_csv=OPEN_IMAGES,
            class_descriptions_boxable_dot_csv="/m/01yrx,cat\n/m/0bt9lr,dog\n/m/0cmf2,Airplane\n",
        ),
        UNLABELLED,
        {"image-unlabelled", "label-unused"},
    ),
    "KITTI": (folder_of(files(**KITTI)), UNLABELLED, {"image-unlabelled"}),
}


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


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_drawn_is_read(folder: Path, name: str) -> None:
    write, empty, codes = FORMATS[name]
    path, images = Path(write(folder)), folder / "images"
    labels = read_labels(path, images)
    assert drawn(labels) == [(file, label, list(box)) for file, label, box in DRAWN]
    assert set(labels.images.values()) == {"a.jpg", "sub/b.png"} | empty
    assert list(labels.categories.values()) == ["cat", "dog"]
    assert {finding.code for finding in labels.findings} == codes, labels.findings
    # What is trained on and scored against is the same, and so is the COCO file that is made of it.
    assert scored_labels(path, images).boxes == labels.boxes == CocoDataset(images, path).truth.boxes
    preflight(images, path)
    done = CliRunner().invoke(
        main, ["data", "convert", str(path), str(folder / "out.json"), "--images", str(images)]
    )
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
    command = ["data", "check", "--images", str(images), "--annotations", str(path)]
    checked = CliRunner().invoke(main, command)
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
