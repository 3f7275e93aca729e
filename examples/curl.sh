#!/bin/sh
# From a shell: a picture at once, and a job whose end is waited for. sh examples/curl.sh "a red fox" fox.png
set -eu
url=${ZIMAGE_URL:-http://127.0.0.1:8000}
prompt=$1 path=$2
key=${ZIMAGE_KEY:-none}

# The picture's bytes, by Accept.
curl -sS --fail-with-body "$url/v1/images/generations" -H "Authorization: Bearer $key" -H 'Accept: image/png' \
  -o "$path" -d "{\"prompt\": \"$prompt\", \"seed\": 1}"

# The same as a job: it is drawn whoever leaves, and here answered when it is done, or after 30 seconds.
curl -sS --fail-with-body "$url/v1/jobs" -H "Authorization: Bearer $key" -H 'Prefer: wait=30' \
  -H "Idempotency-Key: $(date +%s%N)" -d "{\"prompt\": \"$prompt\", \"seed\": 1}"
