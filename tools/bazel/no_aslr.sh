#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command without address space randomisation where that is allowed.
if setarch "$(uname -m)" -R true 2>/dev/null; then
    exec setarch "$(uname -m)" -R "$@"
fi
exec "$@"
