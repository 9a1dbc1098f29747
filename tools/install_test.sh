#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs into a temporary prefix and checks the tree, the command, and that the libraries load where there is nothing
# but the C library. Bazel starts it at the root of the runfiles.
set -euo pipefail

scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/install.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

tools/install --from . "$prefix"

for file in lib/liblamprey.so lib/libnccl-env.so lib/libnccl-tuner.so lib/liblamprey-topology.so \
    lib/lamprey/libhwloc.so.15 lib/pkgconfig/lamprey.pc include/lamprey.h bin/lamprey bin/lamprey-topo \
    bin/lamprey-settings bin/lamprey-doctor; do
    if [ ! -f "$prefix/$file" ] || [ -L "$prefix/$file" ]; then
        fail "$file is missing or not a file"
    fi
done
# Users put lib on their loader's path: it must hold no library of the system.
for file in "$prefix"/lib/*.so*; do
    case ${file##*/} in
        liblamprey*.so | libnccl-*.so) ;;
        *) fail "lib holds ${file##*/}" ;;
    esac
done
for door in tuner env profiler net; do
    link=$prefix/lib/libnccl-$door-lamprey.so
    if [ ! -L "$link" ] || [ ! "$link" -ef "$prefix/lib/liblamprey.so" ]; then
        fail "$link does not lead to liblamprey.so"
    fi
done

# A second time gives the same tree, even over a library in use.
exec 9<"$prefix/lib/liblamprey.so"
before=$(stat -c %i "$prefix/lib/liblamprey.so")
listing=$(cd "$prefix" && find . | sort)
tools/install --from . "$prefix"
[ "$listing" = "$(cd "$prefix" && find . | sort)" ] || fail "the second installation left a different tree"
[ "$before" != "$(stat -c %i "$prefix/lib/liblamprey.so")" ] || fail "the library was overwritten in place"
exec 9<&-

# Bad arguments are refused.
if tools/install --from "$scratch/nothing" "$scratch/other" 2>"$scratch/error"; then
    fail "installed from an empty directory"
fi
grep -q 'is missing' "$scratch/error" || fail "no clear error for an empty directory"
if tools/install --bad "$scratch/other" 2>/dev/null; then
    fail "took an unknown option"
fi

# A library that the topology library needs and that is nowhere; an ldd that fails.
mkdir "$scratch/stand-in"
for fault in 'echo "libhwloc.so.15 => /nowhere (0x0)"; echo "libmissing.so.1 => not found"' 'exit 1' 'true'; do
    printf '#!/bin/sh\n%s\n' "$fault" >"$scratch/stand-in/ldd"
    chmod +x "$scratch/stand-in/ldd"
    if PATH=$scratch/stand-in:$PATH tools/install --from . "$scratch/other" 2>"$scratch/error"; then
        fail "installed although ldd did: $fault"
    fi
    grep -q '^install: error: ' "$scratch/error" || fail "no clear error although ldd did: $fault"
    [ ! -e "$scratch/other" ] || fail "began to install although ldd did: $fault"
done

# Without the default-named tuner; a second time over a tree that has it, and over one with somebody else's.
tools/install --from . --without-tuner "$scratch/without"
[ ! -e "$scratch/without/lib/libnccl-tuner.so" ] || fail "--without-tuner left the tuner in"
[ -L "$scratch/without/lib/libnccl-tuner-lamprey.so" ] || fail "--without-tuner took the named door too"
tools/install --from . "$scratch/without"
[ -e "$scratch/without/lib/libnccl-tuner.so" ] || fail "the tuner is missing"
tools/install --from . --without-tuner "$scratch/without"
[ ! -e "$scratch/without/lib/libnccl-tuner.so" ] || fail "--without-tuner kept the tuner of an earlier installation"
echo "another" >"$scratch/without/lib/libnccl-tuner.so"
tools/install --from . --without-tuner "$scratch/without"
if tools/install --from . "$scratch/without" 2>"$scratch/error"; then
    fail "replaced somebody else's tuner"
fi
grep -q "is not Lamprey's" "$scratch/error" || fail "no clear error for somebody else's tuner"
[ "$(cat "$scratch/without/lib/libnccl-tuner.so")" = another ] || fail "somebody else's tuner was changed"

# The command.
[ "$("$prefix/bin/lamprey" version)" = "lamprey $(sed -n 's/^Version: //p' "$prefix/lib/pkgconfig/lamprey.pc")" ] ||
    fail "lamprey version is not the package's"
[[ $("$prefix/bin/lamprey" version) =~ ^lamprey\ [0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "lamprey version"
# shellcheck disable=SC2016 # for the inner shell
inner='echo "$NCCL_PLUGIN $LD_LIBRARY_PATH"'
[ "$(env -u LD_LIBRARY_PATH -u NCCL_PLUGIN "$prefix/bin/lamprey" run sh -c "$inner")" = \
    "lamprey $prefix/lib" ] || fail "lamprey run"
[ "$(LD_LIBRARY_PATH=/x NCCL_PLUGIN=other "$prefix/bin/lamprey" run sh -c "$inner")" = \
    "other,lamprey /x:$prefix/lib" ] || fail "lamprey run with settings of one's own"
[ "$("$prefix/bin/lamprey" run -- sh -c 'exit 7' || echo $?)" = 7 ] || fail "lamprey run -- or its exit status"
for bad in run "run --" "env x" "version x" "settings x" "settings -x" nonsense "help nonsense" ""; do
    # shellcheck disable=SC2086 # several arguments on purpose
    if "$prefix/bin/lamprey" $bad >"$scratch/output" 2>"$scratch/error"; then
        fail "took: lamprey $bad"
    fi
    [ ! -s "$scratch/output" ] || fail "lamprey $bad printed: $(cat "$scratch/output")"
    [ -s "$scratch/error" ] || fail "lamprey $bad failed without a word"
done
"$prefix/bin/lamprey" help >"$scratch/help"
for verb in run env doctor topo settings version help; do
    grep -q "^  $verb " "$scratch/help" || fail "lamprey help does not name $verb"
    "$prefix/bin/lamprey" help "$verb" >"$scratch/explained" || fail "lamprey help $verb"
    grep -q "^usage: lamprey $verb" "$scratch/explained" || fail "lamprey help $verb: $(cat "$scratch/explained")"
    "$prefix/bin/lamprey" "$verb" --help | cmp -s - "$scratch/explained" || fail "lamprey $verb --help"
done
[ "$("$prefix/bin/lamprey" --help)" = "$(cat "$scratch/help")" ] || fail "lamprey --help"

# The settings are the library's: every name of README's table, and what is set here.
LAMPREY_MAX_BYTES=64K "$prefix/bin/lamprey" settings >"$scratch/settings"
# shellcheck disable=SC2016 # quotes of Markdown
diff <(tools/settings_table | sed 's/^| `\([A-Z_]*\)`.*/\1/') <(sed -n 's/^\([A-Z_]*\) (.*/\1/p' "$scratch/settings") ||
    fail "lamprey settings lists other names"
grep -qxF "LAMPREY_MAX_BYTES (default: -1; here: 64K)" "$scratch/settings" || fail "lamprey settings shows no value"
[ "$(LAMPREY_STATS=1 "$prefix/bin/lamprey" settings 2>&1 | grep -c '^lamprey stats')" = 0 ] || fail "lamprey settings counts"

# The plugin needs the C library alone, of 2.34 or older; built where it is 2.38 or newer, whose headers turn strtol into
# a function that is new there, it is for such machines only.
needed=$(readelf -d "$prefix/lib/liblamprey.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for name in $needed; do
    case $name in
        libc.so.6 | ld-linux-*) ;;
        *) fail "liblamprey.so needs $name" ;;
    esac
done
newest=$(readelf -V "$prefix"/lib/liblamprey.so "$prefix"/lib/libnccl-*.so | grep -o 'GLIBC_2\.[0-9]*' |
    sort -uV | tail -n 1 || true)
host=$(getconf GNU_LIBC_VERSION)
limit=GLIBC_2.34
if [ "$(printf '%s\n2.38\n' "${host#glibc }" | sort -V | head -n 1)" = 2.38 ]; then
    limit=GLIBC_${host#glibc }
fi
[ "$(printf '%s\n%s\n' "$newest" "$limit" | sort -V | tail -n 1)" = "$limit" ] ||
    fail "liblamprey.so needs $newest"

# A root with nothing but the C library, the prefix and the probe.
root=$scratch/root
mkdir -p "$root"
while read -r path; do
    mkdir -p "$root$(dirname "$path")"
    cp -L "$path" "$root$path"
done < <(ldd tools/load_probe "$prefix/lib/liblamprey.so" "$prefix/lib/liblamprey-topology.so" |
    grep -oE '/[^ ]*/(libc|libm|libdl|libpthread|librt|ld-linux[^ ]*)\.so[^ ]*' | sort -u)
cp -r "$prefix" "$root/lamprey"
cp -L tools/load_probe "$root/load_probe"
libraries=(/lamprey/lib/liblamprey.so /lamprey/lib/libnccl-tuner-lamprey.so /lamprey/lib/libnccl-env.so
    /lamprey/lib/libnccl-tuner.so /lamprey/lib/liblamprey-topology.so)
if [ "$(id -u)" = 0 ] && chroot "$root" /load_probe >/dev/null 2>&1; then
    loaded=$(chroot "$root" /load_probe "${libraries[@]}") || fail "does not load in a bare root"
    where=/lamprey
elif unshare -r chroot "$root" /load_probe >/dev/null 2>&1; then
    loaded=$(unshare -r chroot "$root" /load_probe "${libraries[@]}") || fail "does not load in a bare root"
    where=/lamprey
else
    # No way to change the root here: what is loaded must come from the prefix all the same.
    loaded=$(env -u LD_LIBRARY_PATH tools/load_probe "${libraries[@]/#\/lamprey/$prefix}") ||
        fail "does not load"
    where=$prefix
fi
grep -q "^$where/lib/lamprey/libhwloc.so.15$" <<<"$loaded" || fail "hwloc was not loaded from the prefix: $loaded"
while read -r path; do
    case $path in
        "$where"/lib/*) ;;
        */libc.so.6 | */libm.so.6 | */libdl.so.2 | */libpthread.so.0 | */librt.so.1 | */ld-linux*) ;;
        *) fail "loaded from outside the prefix: $path" ;;
    esac
done <<<"$loaded"

# The tool that prints a machine, over a described one, with the prefix's hwloc.
"$prefix/bin/lamprey" topo --xml tests/fixtures/hgx-h100-8.xml >"$scratch/topo" || fail "lamprey topo"
grep -q "NVLink domain: host" "$scratch/topo" || fail "lamprey topo: $(cat "$scratch/topo")"
echo "loaded in $where: $(wc -l <<<"$loaded") objects"
