"""Label files as tools export them, written by hand from the formats' descriptions; all of them hold DRAWN."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
YOLO_LABELS = {"labels__a_dot_txt": YOLO_A, "labels__sub__b_dot_txt": YOLO_B}

# Formats in which an image without boxes belongs to the set, and those in which it is one that nobody looked at.
EMPTY_BELONGS: dict[str, Write] = {
    "YOLO, Ultralytics' data.yaml": files(data_dot_yaml=YAML, **YOLO_LABELS),
    "YOLO, names by number": files(data_dot_yaml="train: images\nnames:\n  0: cat\n  1: dog\n", **YOLO_LABELS),
    "YOLO, a folder and classes.txt": folder_of(
        files(labels__a_dot_txt=YOLO_A, labels__b_dot_txt=YOLO_B, labels__classes_dot_txt="cat\ndog\n")
    ),
    "YOLO, outlines": files(data_dot_yaml=YAML, labels__a_dot_txt=POLYGONS, labels__sub__b_dot_txt=YOLO_B),
    "YOLO, with confidences": files(
        data_dot_yaml=YAML,
        labels__a_dot_txt="0 0.15 0.35 0.2 0.3 0.91\n1 0.65 0.7 0.3 0.4 0.5\n",
        labels__sub__b_dot_txt=YOLO_B,
    ),
    "YOLO, keypoints": files(
        data_dot_yaml=YAML + "kpt_shape: [2, 3]\n",
        labels__a_dot_txt="0 0.15 0.35 0.2 0.3 0.1 0.3 2 0.2 0.3 2\n1 0.65 0.7 0.3 0.4 0.6 0.6 2 0 0 0\n",
        labels__sub__b_dot_txt=YOLO_B + " 0.1 0.3 2 0.2 0.3 2",
    ),
    "YOLO, labels beside the YAML, images elsewhere": files(
        set__data_dot_yaml=YAML, set__labels__a_dot_txt=YOLO_A, set__labels__sub__b_dot_txt=YOLO_B
    ),
    "YOLO, darknet's obj.names": folder_of(
        files(
            d__obj_dot_names="cat\ndog\n", d__obj_train_data__a_dot_txt=YOLO_A, d__obj_train_data__b_dot_txt=YOLO_B
        )
    ),
    "CVAT for images": files(annotations_dot_xml=CVAT),
    "VIA": files(via_dot_json=VIA_FILES),
    "VIA, a project": files(project_dot_json={"_via_settings": {}, "_via_img_metadata": VIA_FILES}),
    "CreateML": files(createml_dot_json=CREATEML),
    "CreateML, by Apple's old keys": files(
        old_dot_json=[{"imagefilename": each["image"], "annotation": each["annotations"]} for each in CREATEML]
    ),
}
EMPTY_IS_UNSEEN: dict[str, Write] = {
    "Pascal VOC, by LabelImg": folder_of(files(**LABELIMG)),
    "Pascal VOC, Pascal's own": folder_of(files(**PASCAL)),
    "Pascal VOC, by Roboflow": folder_of(
        files(**{key: text.replace("The VOC2007 Database", "roboflow.com") for key, text in PASCAL.items()})
    ),
    "Label Studio": files(export_dot_json=STUDIO),
    "Label Studio, JSON-MIN": files(min_dot_json=STUDIO_MIN),
    "labelme": folder_of(files(**LABELME)),
    "KITTI": folder_of(files(**KITTI)),
    "Open Images": files(
        boxes_dot_csv=OPEN_IMAGES,
        class_descriptions_boxable_dot_csv="/m/01yrx,cat\n/m/0bt9lr,dog\n/m/0cmf2,Airplane\n",
    ),
}
