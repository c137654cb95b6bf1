// Small helpers around the document. No markup is ever parsed from text: whatever comes from files or the server
// becomes text nodes.

export const $ = (id) => document.getElementById(id);

/** Make an element: h("p", {class: "dim", title: "…"}, "text", child). Null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Make an SVG element. */
export function svg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export const plural = (count, noun, more = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : more}`;

/** Milliseconds with as many digits as are of use. */
export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} ms`;

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  const step = count < 1024 ** 2 ? 1 : count < 1024 ** 3 ? 2 : 3;
  const value = count / 1024 ** step;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${["KiB", "MiB", "GiB"][step - 1]}`;
}
