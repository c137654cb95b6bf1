// Decodes images small, beside the page's thread.

const HEIGHT = 112; // twice what is shown, for screens with fine pixels

addEventListener("message", async ({ data: { id, file } }) => {
  try {
    const bitmap = await createImageBitmap(file, { resizeHeight: HEIGHT, resizeQuality: "medium" });
    postMessage({ id, bitmap }, [bitmap]);
  } catch {
    postMessage({ id, bitmap: null }); // a format the browser does not know
  }
});
