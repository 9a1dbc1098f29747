#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the bundle's runner over stand-in programs: what passes, fails, is skipped, hangs or leaves processes behind.
set -euo pipefail

scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/run.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    cat "$scratch/out" >&2
    exit 1
}

bundle=$scratch/bundle
mkdir -p "$bundle"/{lib,programs,tests,tree}
cp tests/gpu/run.sh "$bundle/run"
cp tests/gpu/surroundings.sh "$bundle/"
echo 'lamprey: stand-in' >"$bundle/bundle.txt"
touch "$bundle/lib/liblamprey.so" "$scratch/libnccl.so.2"
export NCCL_LIBRARY=$scratch/libnccl.so.2 LAMPREY_RESULTS=$scratch/results

# program NAME: from standard input
program() {
    { echo '#!/bin/bash'; cat; } >"$bundle/programs/$1"
    chmod +x "$bundle/programs/$1"
}

program all_reduce_demo <<'END'
time=6.00
if [ -n "${NCCL_PLUGIN:-}" ]; then
    time=2.00
    echo "lamprey stats: pid=1 served=5 fallback_size=1" >&2
    echo "lamprey stats: pid=2 served=5 fallback_size=1" >&2
fi
printf 'result\t256\tgraph\t100\t0\t%s\n' "$time"
# Figures, and yet it fails.
[ -z "${NCCL_GRAPH_MIXING_SUPPORT:-}" ] || exit 1
END
program threads <<'END'
echo "skipped: no such thing here"
exit 77
END
# One of two processes was not served.
program group <<'END'
echo "lamprey stats: pid=1 served=5"
echo "lamprey stats: pid=2 served=0"
END
program sweep <<'END'
echo "lamprey stats: pid=1 served=5"
exit 1
END
# Loaded, although nobody asked for it.
program dlsym_first <<'END'
echo "lamprey stats: pid=1 served=5"
END
# The library speaks only if asked to, as in all baselines.
program graph_mix <<'END'
[ -z "${LAMPREY_STATS:-}" ] || echo "lamprey stats: pid=1 served=5"
sleep 987654 &
echo $! >"$NCCL_LIBRARY.left_behind"
END
cat >"$bundle/tests/some_gpu_test" <<'END'
#!/bin/bash
echo "[  PASSED  ] 7 tests."
echo "[  SKIPPED ] 2 tests, listed below:"
END
chmod +x "$bundle/tests/some_gpu_test"

# What the bundle's own tests are started with.
program soak_calls <<'END'
[ "$*" = --seconds=20 ]
END
cat >"$bundle/tests/kernels_test" <<'END'
#!/bin/bash
printf '[  PASSED  ] %d tests.\n' "$([[ $* == *gtest_filter=* ]] && echo 2 || echo 9)"
END
mkdir "$scratch/bin"
# Finds an error, if it looks for races.
cat >"$scratch/bin/compute-sanitizer" <<'END'
#!/bin/bash
[[ $1 == --tool && $3 == --error-exitcode ]] || exit 1
"${@:5}"
[ "$2" != racecheck ] || exit "$4"
END
chmod +x "$bundle/tests/kernels_test" "$scratch/bin/compute-sanitizer"
export PATH=$scratch/bin:$PATH

# An earlier run's.
mkdir -p "$LAMPREY_RESULTS/logs"
printf 'order\tgraph\n' | tee "$LAMPREY_RESULTS/logs/order_cost.log" >"$LAMPREY_RESULTS/order_cost.tsv"

status=0
"$bundle/run" --only some_gpu_test --only 'demo_nccl*' --only demo_lamprey --only threads --only group --only sweep \
    --only not_asked --only door_env --only disabled --only '*graph_mix' --only soak_calls --only '*check_kernels_test' >"$scratch/out" 2>&1 || status=$?
[ "$status" = 1 ] || fail "status $status with failed tests"

expect() {
    grep -qE "$1" "$scratch/results/summary.tsv" || fail "no line like: $1"
}
expect $'^some_gpu_test\tpass\t7\t0\t2\t'
expect $'^demo_lamprey\tpass\t1\t0\t0\t'
expect $'^demo_nccl\tpass\t1\t0\t0\t'
expect $'^threads\tskip\t0\t0\t1\t'
expect $'^group\tFAIL\t0\t1\t0\t.*expected every process served'
expect $'^sweep\tFAIL\t0\t1\t0\t.*status 1'
expect $'^not_asked\tFAIL\t0\t1\t0\t.*not asked for'
expect $'^door_env\tpass\t'
expect $'^disabled\tFAIL\t.*stand aside'
expect $'^graph_mix\tpass\t'
expect $'^plain_graph_mix\tFAIL\t.*not asked for'
expect $'^soak_calls\tpass\t1\t'
expect $'^memcheck_kernels_test\tpass\t2\t0\t0\t'
expect $'^initcheck_kernels_test\tpass\t2\t0\t0\t'
expect $'^racecheck_kernels_test\tFAIL\t2\t1\t0\t.*status 9'
expect $'^demo_nccl_no_mixing\tFAIL\t'
[ "$(tail -n 1 "$scratch/out")" = "18 passed, 7 failed, 3 skipped" ] || fail "the counts are wrong"
grep -qE 'C program +graph +256 +6.00 +2.00 +3.00x' "$scratch/out" || fail "the table of figures is wrong"
if grep -q no-mixing "$scratch/results/times.tsv"; then
    fail "figures of a failed test"
fi
if [ -e "$scratch/results/order_cost.tsv" ] || [ -e "$scratch/results/logs/order_cost.log" ]; then
    fail "an earlier run's results were kept"
fi
left=$(cat "$NCCL_LIBRARY.left_behind")
[ ! -e "/proc/$left" ] || grep -q 'State:.Z' "/proc/$left/status" || fail "a process was left behind"

# What does not fit the time is skipped, and that alone is no success; the run before it had figures.
status=0
LAMPREY_RUN_BUDGET=0 "$bundle/run" --only threads --only demo_lamprey >"$scratch/out" 2>&1 || status=$?
[ "$status" = 1 ] || fail "nothing ran, and yet status $status"
[ "$(tail -n 1 "$scratch/out")" = "0 passed, 0 failed, 2 skipped" ] || fail "the counts are wrong without time"
if [ -s "$scratch/results/times.tsv" ] || [ -e "$scratch/results/times.txt" ]; then
    fail "figures of an earlier run"
fi

# The soak alone, for as long as it is asked for.
cat >"$bundle/tests/soak_test" <<'END'
#!/bin/bash
echo "soak: $LAMPREY_TEST_SECONDS s from seed $LAMPREY_TEST_SEED"
END
chmod +x "$bundle/tests/soak_test"
"$bundle/run" --soak 3 --seed 8 >"$scratch/out" || fail "the soak failed"
grep -qx 'soak: 180 s from seed 8' "$scratch/out" || fail "the soak did not run as asked"
[ "$(tail -n 1 "$scratch/out")" = "1 passed, 0 failed, 0 skipped" ] || fail "the soak did not run alone"
rm "$bundle/tests/soak_test"

"$bundle/run" --list >"$scratch/out"
for name in sweep pdl_order soak_calls racecheck_kernels_test; do
    grep -qx "$name" "$scratch/out" || fail "--list lacks $name"
done
"$bundle/run" --list --quick >"$scratch/out"
if grep -qxE 'pdl_order|soak_calls|.*check_kernels_test' "$scratch/out"; then
    fail "a quick run has a long test"
fi

# A rehearsal: the machine is the file's, and what is too slow in the emulator is left out.
program threads <<'END'
printf 'lamprey stats: pid=1 served=1\n%s\n' "${LAMPREY_TOPOLOGY:-}"
END
echo '<topology/>' >"$scratch/machine.xml"
(cd "$scratch" && LAMPREY_RUN_TOPOLOGY=machine.xml "$bundle/run" --only threads --only order_cost --only soak_calls) >"$scratch/out" 2>&1 ||
    fail "the rehearsal failed"
grep -qx "$scratch/machine.xml" "$scratch/results/logs/threads.log" || fail "the topology did not reach the program"
[ "$(tail -n 1 "$scratch/out")" = "1 passed, 0 failed, 0 skipped" ] || fail "the counts are wrong in a rehearsal"
status=0
LAMPREY_RUN_TOPOLOGY=$scratch/nothing.xml "$bundle/run" >"$scratch/out" 2>&1 || status=$?
if [ "$status" != 2 ] || ! grep -q "can't be read" "$scratch/out"; then
    fail "took a topology that is not there"
fi
