#!/usr/bin/env bash
# A receiver of deliveries as a CGI program, which many web servers run: it verifies their signatures
# and takes each record once. It needs openssl. WEBHOOK_SECRET is the subscription's secret, and
# WEBHOOK_FOLDER where records are kept, a file each.
set -euo pipefail

answer() {
  printf 'Status: %s\r\nContent-Length: 0\r\n\r\n' "$1"
  exit 0
}

secret=${WEBHOOK_SECRET#whsec_} folder=${WEBHOOK_FOLDER:?} max_body_bytes=$((16 << 20)) tolerance=300
id=${HTTP_WEBHOOK_ID:-} timestamp=${HTTP_WEBHOOK_TIMESTAMP:-} length=${CONTENT_LENGTH:-0}

if ! [[ $length =~ ^[0-9]{1,12}$ ]] || ((10#$length > max_body_bytes)); then
  answer '413 Content Too Large'
fi
[[ -n $id && $timestamp =~ ^[0-9]{1,12}$ ]] || answer '401 Unauthorized'
age=$(($(date +%s) - 10#$timestamp))
((age <= tolerance && age >= -tolerance)) || answer '401 Unauthorized'

# The signature is over the bytes as they came, which a shell's variables cannot hold.
body=$(mktemp "$folder/.body.XXXXXX")
trap 'rm -f "$body"' EXIT
head -c "$((10#$length))" >"$body"
(($(wc -c <"$body") == 10#$length)) || answer '408 Request Timeout' # it broke off; the next attempt may have all of it

# openssl takes the key as an argument, which other users of the machine can see in its list of
# processes: have none.
key=$(printf %s "$secret" | base64 -d | od -An -v -tx1 | tr -d ' \n')
[[ -n $key ]] || answer '503 Service Unavailable'
expected=$({ printf '%s.%s.' "$id" "$timestamp" && cat "$body"; } | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)

# While a secret is rotated there are two signatures, and one has to match. Digests are compared, so
# that the time that it takes tells nothing of how much of a signature was right.
digest() { printf %s "$1" | openssl dgst -sha256 -r; }
valid=no
for given in ${HTTP_WEBHOOK_SIGNATURE:-}; do
  [[ $(digest "$given") != "$(digest "v1,$expected")" ]] || valid=yes
done
[[ $valid == yes ]] || answer '401 Unauthorized'

# A link is made once, however many requests there are at the same time.
record=$folder/$(digest "$id" | cut -c 1-64)
ln "$body" "$record" 2>/dev/null || [[ -e $record ]] || answer '500 Internal Server Error'
answer '204 No Content' # also the second time: it has the record
