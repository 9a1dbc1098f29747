#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a test that was built for aarch64, in the root folder that tools/setup made. A script runs as it is, and finds in
# LAMPREY_TEST_RUNNER what to put before the programs that it starts, and in LAMPREY_AARCH64_ROOT that folder.
LAMPREY_AARCH64_ROOT=@ROOT@
LAMPREY_TEST_RUNNER="qemu-aarch64 -L $LAMPREY_AARCH64_ROOT -E LD_PRELOAD=$PWD/tests/libno_forced_writes.so"
export LAMPREY_AARCH64_ROOT LAMPREY_TEST_RUNNER
if [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; then
    exec $LAMPREY_TEST_RUNNER "$@"
fi
exec "$@"
