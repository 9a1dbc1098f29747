#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs for aarch64 from x86-64 and checks the tree in QEMU, with a root that holds nothing but the C library. Bazel
# starts it at the root of the runfiles, with --config=aarch64 only.
set -euo pipefail

scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/install.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
root=$scratch/root
prefix=$root/lamprey

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

[ -n "${LAMPREY_AARCH64_ROOT:-}" ] || fail "not run by tools/bazel/qemu_aarch64.sh"

for arguments in "--arch riscv64" "--arch"; do
    # shellcheck disable=SC2086 # two arguments
    if tools/install --from . "$prefix" $arguments 2>"$scratch/error"; then
        fail "took $arguments"
    fi
    grep -q '^install: error: --arch ' "$scratch/error" || fail "no clear error for $arguments"
    [ ! -e "$prefix" ] || fail "began to install with $arguments"
done

tools/install --arch aarch64 --from . "$prefix"

count=0
while IFS= read -r file; do
    [ "$(head -c 4 "$file" | tail -c 3)" = ELF ] || continue
    readelf -h "$file" | grep -q 'Machine: *AArch64' || fail "$file is not for aarch64"
    # shellcheck disable=SC2016 # the loader's word, not the shell's
    if readelf -d "$file" | grep -E 'R(UN)?PATH' | grep -vqF '[$ORIGIN/'; then
        fail "$file looks for libraries in a folder of this machine"
    fi
    count=$((count + 1))
done < <(find "$prefix" -type f)
[ "$count" -ge 9 ] || fail "only $count files for aarch64"

mkdir "$root/lib"
cp -L "$LAMPREY_AARCH64_ROOT"/lib/{ld-linux-aarch64.so.1,libc.so.6,libm.so.6,libdl.so.2,libpthread.so.0} "$root/lib/"
emulated() {
    env -u LD_LIBRARY_PATH qemu-aarch64 -L "$root" "$@"
}
libraries=("$prefix"/lib/{liblamprey,libnccl-tuner-lamprey,libnccl-env,libnccl-tuner,liblamprey-topology}.so)
loaded=$(emulated tools/load_probe "${libraries[@]}") || fail "does not load beside the C library alone"
grep -q "^$prefix/lib/lamprey/libhwloc.so.15$" <<<"$loaded" || fail "hwloc was not loaded from the prefix: $loaded"

emulated "$prefix/bin/lamprey-topo" --xml tests/fixtures/gh200-4.xml >"$scratch/topo" || fail "lamprey-topo"
grep -q "NVLink domain: host" "$scratch/topo" || fail "lamprey-topo: $(cat "$scratch/topo")"
emulated "$prefix/bin/lamprey-settings" | grep -q LAMPREY_MAX_BYTES || fail "lamprey-settings"
echo "$count files for aarch64; loaded: $(wc -l <<<"$loaded") objects"
