#!/bin/sh
# healthcheck.sh [ready|live]: exit 0 when every model takes requests, or when Triton answers at all.
# HTTP_PORT: 8000 if not set.
exec curl --fail --silent --show-error --output /dev/null --max-time 3 \
    "http://127.0.0.1:${HTTP_PORT:-8000}/v2/health/${1:-ready}"
