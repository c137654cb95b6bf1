#!/usr/bin/env bash
# s3fs's cat_file and cat_ranges of whole objects: a HEAD request goes before each GET.
#
# Expected: cat_file of a small object is one GET, as a read with a range is; nothing in its documentation says more.
# Seen:     HEAD and GET for each object that was not listed by the same file system object; one GET with
#           max_concurrency=1, whose default is 10.
# Why:      above 1 it asks for the size, to fetch what is larger than a block in pieces.
# Source:   s3fs 2026.9.0, S3FileSystem._cat_file; its issue 1027 is of the second GET that stood there before the HEAD.
# Matters:  who reads many small objects, such as a bucket of images, by names from elsewhere: twice the requests, in
#           time, in processor time of the client and in what the store charges.
. "$(dirname "$0")/_venv.sh"
pip 's3fs==2026.9.0' 'fsspec==2026.9.0'
cat > "$folder/ask.py" <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import s3fs

seen = []


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        seen.append(self.command)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"image")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
names, results = ["bucket/a.jpg", "bucket/b.jpg"], {}
for words in ({}, {"max_concurrency": 1}):
    files = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=url, **words)
    seen.clear()
    assert files.cat_file(names[0]) == b"image"
    one = list(seen)
    seen.clear()
    assert files.cat_ranges(names, [None, None], [None, None]) == [b"image", b"image"]
    results[str(words)] = (one, sorted(seen))
print(f"s3fs {s3fs.__version__}")
for words, (one, two) in results.items():
    print(f"{words}: cat_file {one}, cat_ranges of two {two}")
expected = {
    "{}": (["HEAD", "GET"], ["GET", "GET", "HEAD", "HEAD"]),
    "{'max_concurrency': 1}": (["GET"], ["GET", "GET"]),
}
sys.exit(results != expected)
PYTHON
python ask.py
