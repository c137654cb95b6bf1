// Where labels go: at the box where they hide no other, or nowhere until the box is lit.

const PAD = 5;
const HEIGHT = 18;
const pen = document.createElement("canvas").getContext("2d");

/**
 * Place labels on an image shown `scale` CSS pixels a pixel. `items` are {box, text}, the most important first, and
 * `width`, `height` the shown size. Returns for each {x, y, width} in CSS pixels, with free: false where it covers
 * another.
 */
export function place(items, scale, width, height, font) {
  pen.font = font;
  const taken = [];
  return items.map(({ box, text }) => {
    const wide = Math.ceil(pen.measureText(text).width) + 2 * PAD;
    const [x1, y1, x2, y2] = box.map((value) => value * scale);
    const spots = [
      [x1 - 1, y1 - HEIGHT], // above, the usual place
      [x2 + 1 - wide, y1 - HEIGHT],
      [x1 - 1, y2], // below
      [x1, y1], // inside
      [x2 - wide, y2 - HEIGHT],
    ].map(([x, y]) => ({
      x: Math.max(0, Math.min(x, width - wide)),
      y: Math.max(0, Math.min(y, height - HEIGHT)),
      width: wide,
      moved: x < -1 || y < -1 || x > width - wide + 1 || y > height - HEIGHT + 1,
    }));
    const free = spots.filter((spot) => !taken.some((other) => covers(spot, other)));
    const best = free.find((spot) => !spot.moved) ?? free[0];
    if (best) taken.push(best);
    return { ...(best ?? spots[0]), free: Boolean(best) };
  });
}

const covers = (one, other) =>
  one.x < other.x + other.width && other.x < one.x + one.width && one.y < other.y + HEIGHT && other.y < one.y + HEIGHT;
