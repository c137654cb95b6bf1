// Boxes as text to take away: the JSON of `retinaserve predict`, or a COCO data set that labelling tools open.

const round = (value) => Math.round(value * 100) / 100;

/** The JSON of images: an object for one, an array for several. */
export function asJson(images, view) {
  const all = images.map(({ name, answer }) => ({
    file: name,
    width: answer.width,
    height: answer.height,
    detections: view.shown(answer).map((i) => {
      const { index, score, box } = answer.detections[i];
      return { class: answer.model.classes[index], score, box };
    }),
  }));
  return JSON.stringify(all.length === 1 ? all[0] : all, null, 1);
}

/** One COCO data set of images; ids of categories are the model's, of images and boxes their numbers. */
export function asCoco(images, view) {
  const categories = new Map();
  const annotations = [];
  const records = images.map(({ name, answer }, n) => {
    const { classes, category_ids: ids } = answer.model;
    ids.forEach((id, kind) => categories.set(id, { id, name: classes[kind] }));
    for (const i of view.shown(answer)) {
      const { index, score, box } = answer.detections[i];
      const [width, height] = [round(box[2] - box[0]), round(box[3] - box[1])];
      annotations.push({
        id: annotations.length + 1,
        image_id: n + 1,
        category_id: ids[index],
        bbox: [box[0], box[1], width, height],
        area: round(width * height),
        iscrowd: 0,
        score,
      });
    }
    return { id: n + 1, file_name: name, width: answer.width, height: answer.height };
  });
  return JSON.stringify({ images: records, categories: [...categories.values()], annotations }, null, 1);
}

/** Put text on the clipboard; returns whether it is there. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that are not from this machine and not encrypted have no clipboard but this.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
