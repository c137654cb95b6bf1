// Which boxes are to be seen: the score and the classes chosen by the user, applied to the answers.

export class View extends EventTarget {
  score = 0.3;
  off = new Set(); // names of classes that are left out
  lit = null; // index, in the answer, of the box that is lit

  /** Indices into answer.detections that pass score and classes, best first. */
  shown(answer) {
    if (!answer) return [];
    const { detections, model } = answer;
    return [...detections.keys()].filter(
      (i) => detections[i].score >= this.score && !this.off.has(model.classes[detections[i].index]),
    );
  }

  change(values) {
    Object.assign(this, values);
    this.dispatchEvent(new Event("changed"));
  }

  light(index) {
    if (this.lit === index) return;
    this.lit = index;
    this.dispatchEvent(new Event("lit"));
  }
}
