#!/usr/bin/env bash
# Start Triton as production wants it: closed, explicit, observable. The entry of the `server` image.
#
#   start.sh                      serve /models
#   start.sh --log-verbose=1      with further flags of tritonserver; a later flag wins
#
#   MODELS            the repository (/models)
#   CUDA_POOL_BYTES   GPU memory for what one model hands to the next; what `build` computed, if not given
#   PLUGINS           our TensorRT plugins; empty: none
#   HTTP_PORT, GRPC_PORT, METRICS_PORT    8000, 8001, 8002
#   MAX_BODY_BYTES    the largest HTTP body: an image of the largest size and its header (33.6 MB)
#   EXIT_SECONDS      how long requests in flight may take after SIGTERM (30)
#   TOKEN_FILE        the administrators' token (/run/secrets/admin_token); without it nobody administrates
#   TLS_FOLDER        tls.crt and tls.key encrypt gRPC; ca.crt beside them: only its clients are served (/run/secrets/tls)
#   TRACE_URL         an OpenTelemetry collector, http://collector:4318/v1/traces
#   TRACE_RATE        one request in this many is traced (1000)
set -euo pipefail

models=${MODELS:-/models}
plugins=${PLUGINS-/opt/retinaserve/lib/libretinaserve_plugins.so}
token_file=${TOKEN_FILE:-/run/secrets/admin_token}
tls=${TLS_FOLDER:-/run/secrets/tls}

flags=(
    "--model-repository=$models"
    --model-control-mode=none # a repository is replaced by a new replica, not under a running one
    --disable-auto-complete-config
    --exit-on-error=true
    --strict-readiness=true
    "--exit-timeout-secs=${EXIT_SECONDS:-30}"
    "--http-port=${HTTP_PORT:-8000}"
    "--grpc-port=${GRPC_PORT:-8001}"
    "--metrics-port=${METRICS_PORT:-8002}"
    "--http-max-input-size=${MAX_BODY_BYTES:-33619968}"
    --allow-client-shm=false
    --metrics-config=summary_latencies=true
    --log-verbose=0
)

# Triton's own 64 MiB a GPU do not grow. A GPU that is not there is no error.
pool=${CUDA_POOL_BYTES:-$(cat "$models/cuda_memory_pool_bytes" 2>/dev/null || true)}
if [[ -n $pool ]]; then
    if [[ ! $pool =~ ^[0-9]+$ ]]; then
        echo "cuda_memory_pool_bytes: '$pool' is no number of bytes" >&2
        exit 3
    fi
    for gpu in {0..7}; do
        flags+=("--cuda-memory-pool-byte-size=$gpu:$pool")
    done
fi

if [[ -n $plugins ]]; then
    # Triton only logs a plugin library that is missing, and then can't read the plan. It loads the library and leaves
    # it at that; the second one, beside it, is what registers the plugins.
    register=$(dirname "$plugins")/libretinaserve_triton.so
    for library in "$plugins" "$register"; do
        if [[ ! -r $library ]]; then
            echo "$library: no such file; set PLUGINS= where the plan needs none" >&2
            exit 3
        fi
    done
    flags+=("--backend-config=tensorrt,plugins=$register")
fi

# What nobody but an operator calls; without a token file the token is one that nobody knows.
if [[ -e $token_file ]]; then
    token=$(<"$token_file") || exit 3 # there, and not for us to read: say so rather than lock everybody out
    if [[ ! $token =~ ^[A-Za-z0-9._~+/-]{16,}$ ]]; then
        echo "$token_file: a token is 16 or more of A-Z a-z 0-9 . _ ~ + / -; make one with: openssl rand -hex 32" >&2
        exit 3
    fi
else
    token=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
fi
group="shared-memory,model-repository,trace,logging:retinaserve-admin=$token"
flags+=("--http-restricted-api=$group" "--grpc-restricted-protocol=$group")

if [[ -e $tls/tls.crt ]]; then
    flags+=(--grpc-use-ssl=true "--grpc-server-cert=$tls/tls.crt" "--grpc-server-key=$tls/tls.key")
    if [[ -e $tls/ca.crt ]]; then
        flags+=(--grpc-use-ssl-mutual=true "--grpc-root-cert=$tls/ca.crt") # after --grpc-use-ssl: the later decides
    fi
    # Triton has no TLS on HTTP: what is not encrypted is for this host and pod alone.
    flags+=(--http-address=127.0.0.1)
fi

if [[ -n ${TRACE_URL:-} ]]; then
    flags+=(
        "--trace-config=mode=opentelemetry"
        "--trace-config=opentelemetry,url=$TRACE_URL"
        "--trace-config=opentelemetry,resource=service.name=retinaserve"
        "--trace-config=rate=${TRACE_RATE:-1000}"
        "--trace-config=level=TIMESTAMPS" # never TENSORS: that would be the senders' images
    )
fi

exec tritonserver "${flags[@]}" "$@"
