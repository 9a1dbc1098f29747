#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs one NCCL program in the emulator. Bazel starts it at the root of the runfiles.
#   emulated_test.sh EXPECTATION GPUS [VARIABLE=VALUE...] PROGRAM [ARGUMENT...]
# EXPECTATION: plain (no plugin), served (every process that loaded the plugin served calls), none (it was loaded and
# stood aside)
set -euo pipefail

expectation=$1
gpus=$2
shift 2

scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/emulated.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

root=$PWD
emulator=$root/tests/emulator
[ -e "$emulator/libcuda.so.1" ] || fail "the emulator is missing"
mkdir "$scratch/lib"
# Copies, since the doors look for their library beside the file that they really are.
cp -L "$root"/plugin/*.so "$root/topology/liblamprey-topology.so" "$scratch/lib/"
for door in tuner env profiler net; do
    ln -s liblamprey.so "$scratch/lib/libnccl-$door-lamprey.so"
done

environment=("LAMPREY_EMULATOR_GPUS=$gpus" "LAMPREY_TOPOLOGY=$root/tests/fixtures/emulator-8.xml" LAMPREY_STATS=1
    "LD_LIBRARY_PATH=$scratch/lib:$emulator")
[ "$expectation" = plain ] || environment+=(NCCL_PLUGIN=lamprey)
while [[ ${1:-} == [A-Z]*=* ]]; do
    environment+=("${1//@LIB@/$scratch/lib}")
    shift
done

status=0
# In an emulator of another processor (see tools/bazel/qemu_aarch64.sh), if there is one.
read -ra runner <<<"${LAMPREY_TEST_RUNNER:-}"
env "${environment[@]}" "${runner[@]}" "$@" >"$scratch/out" 2>"$scratch/err" || status=$?
cat "$scratch/out"
cat "$scratch/err" >&2
[ "$status" = 0 ] || fail "status $status"

lines=$(grep -c '^lamprey stats: ' "$scratch/err" || true)
idle=$(grep '^lamprey stats: ' "$scratch/err" | grep -c ' served=0 ' || true)
case $expectation in
    plain) [ "$lines" = 0 ] || fail "the plugin was loaded unasked" ;;
    served)
        [ "$lines" -gt 0 ] || fail "the plugin was not loaded"
        [ "$idle" = 0 ] || fail "$idle of $lines processes were not served"
        ;;
    none)
        [ "$lines" -gt 0 ] || fail "the plugin was not loaded"
        [ "$idle" = "$lines" ] || fail "calls were served all the same"
        ;;
    *) fail "unknown expectation $expectation" ;;
esac
