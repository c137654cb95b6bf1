"""The page in a browser: drop an image, see its boxes and how the server is. `retinaserve web` serves it."""
