#!/usr/bin/env bash
# Renders the report of a run as a browser shows it, for looking at: RUN_DIR/report.html -> OUT.png (and OUT-dark.png).
#   scripts/look_at_report.sh RUN_DIR OUT.png [WIDTH]     HEIGHT=5000 pixels; needs chromium: apt-get install chromium
# `tests/support/make_example_run.py DIR` makes a run directory to look at without training.
set -euo pipefail
fail() { printf '[look] error: %s\n' "$*" >&2; exit 1; }
[ $# -ge 2 ] || fail "usage: scripts/look_at_report.sh RUN_DIR OUT.png [WIDTH]"
run="$(realpath "$1")"; out="$2"; width="${3:-1500}"
browser="$(command -v chromium || command -v chromium-browser || command -v google-chrome)" || fail "no Chromium here. Install it: apt-get install chromium"
page="$run/report.html"
[ -f "$page" ] || fail "$page does not exist. Make it: temper report $1"

shoot() {  # shoot OUT EXTRA_FLAG
  "$browser" --headless=new --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 --window-size="$width,${HEIGHT:-5000}" \
    --virtual-time-budget=3000 $2 --screenshot="$1" "file://$page" >/dev/null 2>&1 || fail "$browser could not render $page"
  [ -s "$1" ] || fail "$browser wrote no picture"
  echo "$1"
}
shoot "$out" ""
shoot "${out%.png}-dark.png" "--blink-settings=preferredColorScheme=0"
