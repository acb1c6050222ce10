#!/usr/bin/env bash
# instructions.sh PROGRAM: how many instructions each case of firn_count takes, by callgrind, one line a case. Counts of
# one machine and compiler compare with each other; a machine whose kernels use other vectors counts differently.
set -euo pipefail
program=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in $("$program"); do
  valgrind --tool=callgrind --callgrind-out-file="$work/out" --collect-atstart=no --toggle-collect='firn_count_measured*' \
    "$program" "$name" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  printf '%-20s %15s\n' "$name" "$(sed -n 's/^totals: //p' "$work/out")"
done
