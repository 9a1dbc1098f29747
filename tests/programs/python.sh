#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a Python test, which writes nothing beside the sources.
set -euo pipefail
exec python3 -B "$@"
