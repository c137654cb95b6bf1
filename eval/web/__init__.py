"""The page in a browser: drop a picture, see its boxes and how the server is. `retinaserve web` serves it."""
