// The three questions the page asks its own program. Whatever goes wrong is a Problem with words for people.

const UPLOAD = { "Content-Type": "application/octet-stream" };

export class Problem extends Error {
  /** kind: bad_image, overloaded, timeout, server, refused, down (the server), or gone (the page's own program). */
  constructor(kind, message, hint = "") {
    super(message);
    this.kind = kind;
    this.hint = hint;
  }
}

/** Ask for one image's boxes; `tile`: "" for the whole image, "auto", or a tile's side in pixels. */
export const detect = async (file, tile = "") => (await post(`/api/detect${query(tile)}`, file)).json();

/** Ask for an upright JPEG of an image that the browser can't show. */
export const preview = async (file, tile = "") => (await post(`/api/preview${query(tile)}`, file)).blob();

const query = (tile) => (tile ? `?tile=${tile}` : "");

/** Ask how the server is. */
export const status = async () => (await ask("/api/status", {})).json();

async function post(path, file) {
  try {
    return await ask(path, { method: "POST", body: file, headers: UPLOAD });
  } catch (problem) {
    // fetch fails alike for a program that is gone and for a file that is.
    if (problem.kind === "gone" && !(await isReadable(file))) {
      throw new Problem("bad_image", "the file can't be read", "it may have been moved or changed, or it is a folder");
    }
    throw problem;
  }
}

const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch {
    throw new Problem("gone", "the page's own program does not answer", "start `retinaserve web` again");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  // uvicorn's own 503, for too many connections, has no JSON.
  if (!said) throw new Problem(answer.status === 503 ? "overloaded" : "server", `answered ${answer.status}`);
  throw new Problem(said.kind, said.message, said.hint);
}
