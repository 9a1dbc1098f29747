#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The benchmark in the emulator, whose times mean nothing: what runs, what is kept, and what it says of the rest.
set -euo pipefail

scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/bench.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
root=$PWD

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    cat "$scratch/out" >&2
    exit 1
}

# The folder that tools/bundle makes of it.
bundle=$scratch/bundle
mkdir -p "$bundle/lib" "$bundle/benchmark"
cp -L "$root"/plugin/*.so "$root/topology/liblamprey-topology.so" "$bundle/lib/"
cp -L tests/bench/{all_reduce_bench,method.txt,model.py,plot.py,records.py,report.py,tables.py,torch_peers.py} \
    "$bundle/benchmark/"
cp -L tests/bench/bench.sh "$bundle/bench"
cp -L tests/gpu/surroundings.sh "$bundle/"
echo 'lamprey: a test' >"$bundle/bundle.txt"

emulator=$root/tests/emulator
results=$scratch/results
export NCCL_LIBRARY=$emulator/libnccl.so.2 LD_LIBRARY_PATH=$emulator LAMPREY_RESULTS=$results
export LAMPREY_RUN_TOPOLOGY=$root/tests/fixtures/emulator-8.xml LAMPREY_EMULATOR_GPUS=2

# bench STATUS ARGUMENT...
bench() {
    local expected=$1 status=0
    shift
    "$bundle/bench" "$@" >"$scratch/out" 2>&1 || status=$?
    [ "$status" = "$expected" ] || fail "bench $*: status $status, not $expected"
}

# has FILE PATTERN
has() {
    grep -qE -- "$2" "$results/$1" || { cat "$results/$1" >&2; fail "$1 has no line like: $2"; }
}

# Options that make no sense are named and nothing runs.
while read -r option; do
    status=0
    "$bundle/benchmark/all_reduce_bench" "$option" >"$scratch/out" 2>&1 || status=$?
    [ "$status" = 2 ] || fail "all_reduce_bench $option: status $status"
    grep -qF -e "$option" -e "option '$option'" "$scratch/out" || fail "it doesn't name $option"
done <<'END_OF_OPTIONS'
--sizes=3
--sizes=256,
--sizes=-4
--sizes=8G
--mode=graphs
--mode=
--type=bfloat
--op=xor
--rounds=0
--calls-per-graph=x
--user-bytes=3
--label=a/b
--unknown
word
END_OF_OPTIONS
bench 2 --unknown
bench 2 --budget 0
LAMPREY_RUN_TOPOLOGY=$scratch/nothing.xml bench 2
[ ! -e "$results" ] || fail "something ran"

bench 0 --list
for name in nccl nccl-no-mixing nccl-windows nccl-nowin lamprey lamprey-pdl-signal lamprey-pdl-off torch-one-shot \
    torch-two-shot flashinfer-one-shot nccl-tree-ll128; do
    grep -q "^$name " "$scratch/out" || fail "--list lacks $name"
done
[ ! -e "$results" ] || fail "--list left something"

few=("--sizes=256,1K,8K" --rounds=3 --calls-per-graph=4 --user-bytes=4K)
bench 0 --only nccl --only nccl-windows --only nccl-nowin --only 'lamprey*' -- "${few[@]}"
for peer in nccl nccl-windows lamprey lamprey-pdl-signal lamprey-pdl-off lamprey-threads; do
    has peers.tsv "^$peer	done	"
    # launch, and three sizes in four modes
    [ "$(grep -c "\"peer\": \"$peer\"" "$results/records.jsonl")" = 13 ] || fail "$peer lacks points"
done
has peers.tsv '^nccl-nowin	skipped	.*2\.29'
for mode in graph eager host decode; do
    has records.jsonl "\"peer\": \"nccl\", \"mode\": \"$mode\", \"bytes\": 1024, .*\"served\": null"
    has records.jsonl "\"peer\": \"lamprey\", \"mode\": \"$mode\", \"bytes\": 8192, .*\"wrong\": 0, \"served\": true"
done
has records.jsonl '"peer": "nccl-windows", .*"registered": true'
has records.jsonl '"peer": "lamprey-threads", .*"processes": false'
has results.csv '^lamprey,graph,256,bfloat16,sum,2,True,False,4,1,3,[0-9.]+,'
has tables.txt 'emulator, whose times mean nothing'
has tables.txt '^MODEL of lamprey, '
has machine.txt 'rehearsal: .*emulator-8.xml'
has plot.svg '<polyline'
grep -q '^method: ' "$scratch/out" || fail "the method is not said"
grep -qE '    graph	256	[0-9.]+ us' "$scratch/out" || fail "no progress"

# Another type, and an operator that Lamprey may leave to NCCL.
bench 0 --only nccl -- --sizes=256 --rounds=2 --calls-per-graph=2 --user-bytes=4K --type=float32 --op=max --mode=graph
[ "$(wc -l <"$results/records.jsonl")" = 1 ] || fail "records of an earlier run"

# Without time nothing runs, and that is no success.
bench 1 --budget 2 --only nccl
has peers.tsv '^nccl	left out	0	no time left'

# Stand-ins for what a real machine may do.
cat >"$bundle/benchmark/all_reduce_bench" <<'END_OF_PROGRAM'
#!/bin/bash
[ "$1" != --version ] || { echo 22809; exit; }
label=$(sed -n 's/.*--label=\([^ ]*\).*/\1/p' <<<"$*")
wrong=0
[ "$label" != nccl-windows ] || wrong=7
echo "{\"peer\": \"$label\", \"mode\": \"graph\", \"bytes\": 256, \"ranks\": 2, \"median_us\": 5.0, \"wrong\": $wrong, \"served\": false}"
case $label in
    nccl-threads) sleep 987654 ;;
    nccl-no-mixing) echo "out of luck" >&2; exit 3 ;;
    nccl-windows-no-mixing) echo "skipped: not on this machine" >&2; exit 77 ;;
esac
END_OF_PROGRAM
bench 1 --budget 14 --only nccl --only lamprey --only 'nccl-*mixing' --only nccl-windows --only nccl-threads
has peers.tsv '^nccl	done'
has peers.tsv '^lamprey	failed	.*served nothing'
has peers.tsv '^nccl-windows	failed	.*wrong results'
has peers.tsv '^nccl-no-mixing	failed	.*status 3, after 1 points: out of luck'
has peers.tsv '^nccl-windows-no-mixing	skipped	.*not on this machine'
has peers.tsv '^nccl-threads	failed	.*stopped when the time was up, after 1 points'
kept=$(sed 's/.*"peer": "\([^"]*\)".*/\1/' "$results/records.jsonl" | sort | xargs)
[ "$kept" = "nccl nccl-no-mixing nccl-threads" ] || fail "kept: $kept"
