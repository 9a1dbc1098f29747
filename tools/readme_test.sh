#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# README.md's table of settings must be the library's. To mend it: put the output of //tools:settings_table there.
set -euo pipefail

table=$(sed -n '/^<!-- settings:/,/^<!-- \/settings -->/p' README.md | grep '^| `' || true)
if ! diff <(printf '%s\n' "$table") <(tools/settings_table); then
    echo "FAILED: README.md's settings (<) are not the library's (>)" >&2
    exit 1
fi
grep -q . <<<"$table"
