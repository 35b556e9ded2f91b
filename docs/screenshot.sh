#!/bin/sh
# Makes a picture of the placement service's page: a playground after a minute of load, on the tab PAGE.
# Needs bin/ (make build) and chromium-headless-shell on PATH.
# Usage: screenshot.sh FILE
set -eu
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
dir=$(mktemp -d)
bin/tinyctl -o json playground --data-dir "$dir/data" --base-port "${BASE_PORT:-7379}" >"$dir/ready" 2>"$dir/log" &
playground=$!
trap 'kill -INT $playground; wait $playground || true; rm -rf "$dir"' EXIT
until [ -s "$dir/ready" ]; do
	kill -0 $playground || { cat "$dir/log"; exit 1; }
	sleep 0.2
done
export TINYCTL_SCHEDULER=127.0.0.1:${BASE_PORT:-7379}
bin/tinyctl keyspace split --prefix '' --into 8 --like bytes >/dev/null
bin/tinyctl bench --phases load,mixed --duration "${SECONDS_OF_LOAD:-45}s" --rate 2000 >/dev/null
chromium-headless-shell --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,900 \
	--virtual-time-budget=4000 --user-data-dir="$dir/browser" --screenshot="$out" \
	"http://$TINYCTL_SCHEDULER/ui/#${PAGE:-history}"
