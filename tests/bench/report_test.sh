#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The report's unit tests; Python writes nothing beside the sources.
set -euo pipefail
exec python3 -B tests/bench/report_test.py
