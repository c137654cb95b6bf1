#!/usr/bin/env bash
# Label Studio's converter: the COCO box of a rotated rectangle is not around it, unless the image is a square.
#
# Expected: bbox is the upright box around the rectangle, which the converter's own oriented boxes have right: 40 x 20
#           pixels turned by 90 degrees about 60, 40 cover 40..60 by 40..80. YOLO and VOC say the same.
# Seen:     COCO gives 20..60 by 40..60. YOLO and VOC give 60..100 by 40..60: the rectangle before it was turned.
# Why:      `rotated_rectangle` turns the corners in hundredths of the sides, where a pixel is not as wide as it is high.
# Matters:  who labels with rotated rectangles and exports COCO, YOLO or VOC: three files of one project, three boxes,
#           two or all of them wrong, without a warning. The JSON export has what was drawn.
. "$(dirname "$0")/_venv.sh"
pip 'label-studio-sdk==2.1.2'
cat > "$folder/export.py" <<'PYTHON'
import json
import re
import sys
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.utils import convert_annotation_to_yolo_obb

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="cat"/></RectangleLabels></View>"""
SIZE = {"original_width": 200, "original_height": 100}
VALUE = {"x": 30, "y": 40, "width": 20, "height": 20, "rotation": 90, "rectanglelabels": ["cat"]}
REGION = {"id": "r", "type": "rectanglelabels", "from_name": "label", "to_name": "image", **SIZE, "value": VALUE}
Path("in").mkdir()
task = {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"id": 1, "completed_by": 1, "result": [REGION]}]}
Path("in/tasks.json").write_text(json.dumps([task]))
converter = Converter(CONFIG, ".", download_resources=False)
converter.convert_to_coco("in", "coco", output_image_dir="images")
converter.convert_to_yolo("in", "yolo", output_image_dir="images")
converter.convert_to_voc("in", "voc", output_image_dir="images")
x, y, w, h = json.loads(Path("coco/result.json").read_text())["annotations"][0]["bbox"]
coco = [round(value) for value in (x, y, x + w, y + h)]
x, y, w, h = map(float, next(Path("yolo").rglob("a.txt")).read_text().split()[1:])
yolo = [round(value) for value in ((x - w / 2) * 200, (y - h / 2) * 100, (x + w / 2) * 200, (y + h / 2) * 100)]
voc = [int(value) for value in re.findall(r"<[xy]m..>(\d+)<", next(Path("voc").rglob("a.xml")).read_text())]
corners = convert_annotation_to_yolo_obb({**VALUE, **SIZE})
columns = [[point[0] * 200 for point in corners], [point[1] * 100 for point in corners]]
right = [round(of(column)) for of in (min, max) for column in columns]
print(f"label-studio-sdk 2.1.2, x1 y1 x2 y2: oriented {right}, COCO {coco}, YOLO {yolo}, VOC {voc}")
before = [60, 40, 100, 60]
sys.exit((right, coco, yolo, voc) != ([40, 40, 60, 80], [20, 40, 60, 60], before, before))
PYTHON
python export.py
