#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures all-reduces on a machine with at least two NVLink GPUs: NCCL in its modes, Lamprey, and what else is
# installed, one process of its own after the other. Prints figures as they come, then tables; keeps CSV, JSON, plot.
#
#   bench [--list] [--quick] [--budget SECONDS] [--only PATTERN]... [-- OPTION...]
#
#   --quick            the main peers and fewer sizes, at most 120 s
#   --budget SECONDS   never longer than this (default 900, with --quick 120): what does not fit is left out
#   --only PATTERN     peers whose name matches the shell pattern; also peers that are not in the default set
#   --list             names the peers
#   -- OPTION...       for the measuring programs (benchmark/all_reduce_bench --help)
#
#   LAMPREY_RESULTS       folder for the results (default: results/bench beside this file)
#   LAMPREY_RUN_TOPOLOGY  an hwloc XML file that stands for this machine, to rehearse with emulated libraries: set
#                         NCCL_LIBRARY and LD_LIBRARY_PATH to them
#   NCCL_LIBRARY          the libnccl.so.2 to use (default: PyTorch's, else the loader's)
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# shellcheck source-path=SCRIPTDIR source=../gpu/surroundings.sh
. "$here/surroundings.sh"

usage_error() {
    printf 'bench: %s\n' "$*" >&2
    exit 2
}

list=0
quick=0
budget=
only=()
options=()
while [ "$#" -gt 0 ]; do
    case $1 in
        --list) list=1 ;;
        --quick) quick=1 ;;
        --budget)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--budget needs a number of seconds"
            budget=$2
            shift
            ;;
        --only)
            [ "$#" -gt 1 ] || usage_error "--only needs a pattern"
            only+=("$2")
            shift
            ;;
        --)
            shift
            options=("$@")
            break
            ;;
        -h | --help)
            sed -n '3,18s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) usage_error "unknown option $1" ;;
    esac
    shift
done
# A peer that hangs must leave time for the others.
peer_limit=180
default_budget=900
if [ "$quick" = 1 ]; then
    peer_limit=40
    default_budget=120
    options=("--sizes=256,1K,4K,16K,64K,128K,256K,512K,1M" --rounds=40 "${options[@]}")
fi
budget=${budget:-$default_budget}

results=${LAMPREY_RESULTS:-$here/results/bench}
topology=$(readable_topology) || exit 2
clean_environment "$topology"

work=
nccl_folder=/nowhere
nccl_version=0
if [ "$list" = 0 ]; then
    nccl=$(find_nccl)
    [ -n "$nccl" ] || usage_error "no libnccl.so.2 found: set NCCL_LIBRARY"
    nccl_folder=$(dirname "$nccl")
    mkdir -p "$results/logs" || exit 1
    # What an earlier run left is not of today.
    rm -f "$results"/logs/*.log "$results"/{results.csv,results.json,tables.txt,plot.svg}
    : >"$results/records.jsonl"
    : >"$results/peers.tsv"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    with_doors "$here/lib" "$work/lib"
fi
path=$nccl_folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
files=$here/benchmark
program=("$files/all_reduce_bench")
torch=("${python:-python3}" "$files/torch_peers.py")
lamprey=("LD_LIBRARY_PATH=$work/lib:$path" NCCL_PLUGIN=lamprey LAMPREY_STATS=1)

# Seconds kept for the report, and for a peer that must be killed.
reserve=6

# peer NAME SET [VARIABLE=VALUE...] COMMAND...: measures one peer. SET: main (also with --quick), more, or other (only
# by name).
peer() {
    local name=$1 set=$2
    shift 2
    wanted "$name" "$set" || return 0
    if [ "$list" = 1 ]; then
        printf '%-28s %s\n' "$name" "$set"
        return 0
    fi
    say "[$SECONDS s] $name"
    local left=$((budget - reserve - SECONDS)) started=$SECONDS log=$results/logs/$name.log records=$work/records
    if [ "$left" -lt 5 ]; then
        note "$name" "left out" 0 "no time left of $budget s"
        return 0
    fi
    [ "$left" -le "$peer_limit" ] || left=$peer_limit
    if [[ $name == nccl-nowin* ]] && [ "$nccl_version" -lt 22900 ]; then
        note "$name" skipped 0 "NCCL $nccl_version has no NCCL_SYM_NOWIN_ENABLE: 2.29 or newer"
        return 0
    fi
    : >"$records"
    env "LD_LIBRARY_PATH=$path" timeout --signal=TERM --kill-after=2 "$left" env "$@" "--label=$name" "${options[@]}" \
        2>"$log" </dev/null | tee "$records" | progress
    judge "$name" "${PIPESTATUS[0]}" "$((SECONDS - started))" "$records" "$log"
}

wanted() {
    local pattern
    if [ "${#only[@]}" = 0 ]; then
        [ "$2" = main ] || { [ "$2" = more ] && [ "$quick" = 0 ]; } || [ "$list" = 1 ]
        return
    fi
    for pattern in "${only[@]}"; do
        # shellcheck disable=SC2053 # a pattern on purpose
        [[ $1 == $pattern ]] && return 0
    done
    return 1
}

# A short line for every record.
progress() {
    sed -uE 's/.*"mode": "([a-z]+)", "bytes": ([0-9]+),.*"median_us": ([-0-9.]+).*/    \1\t\2\t\3 us/'
}

# judge NAME STATUS SECONDS RECORDS LOG: keeps what a peer measured, if it measured what its name says.
judge() {
    local name=$1 status=$2 seconds=$3 records=$4 log=$5 why
    why=$(grep -m 1 -E '^(skipped|not installed): ' "$log")
    if [ "$status" = 77 ]; then
        note "$name" skipped "$seconds" "${why#skipped: }"
    elif grep -q '"wrong": [1-9]' "$records"; then
        note "$name" failed "$seconds" "wrong results: none of its figures are kept"
    elif [[ $name == *lamprey* ]] && ! stats_show_service "$log" "$records"; then
        note "$name" failed "$seconds" "Lamprey served nothing: none of its figures are kept"
    elif [ "$status" = 0 ]; then
        cat "$records" >>"$results/records.jsonl"
        note "$name" "done" "$seconds" ""
    else
        cat "$records" >>"$results/records.jsonl"
        [ "$status" = 124 ] || [ "$status" = 137 ] && status="stopped when the time was up" || status="status $status"
        note "$name" failed "$seconds" "$status, after $(wc -l <"$records") points: $(tail -n 1 "$log")"
    fi
}

# The C program says it in every record; PyTorch's counters come at the end.
stats_show_service() {
    grep -q '"served": true' "$2" || grep -q '^lamprey stats: .* served=[1-9]' "$1"
}

note() {
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$results/peers.tsv"
    say "    $2 in $3 s${4:+: $4}"
}

machine() {
    say "date: $(date -u +%FT%TZ)"
    cat "$here/bundle.txt"
    [ -z "$topology" ] || say "rehearsal: emulated GPUs of $(basename "$topology"): the times mean nothing"
    say "NCCL: $nccl_version, $(basename "$(readlink -f "$nccl")")"
    say "host: $(uname -sr), $(nproc) CPUs, $(sed -n '/^model name/ { s/^[^:]*: //p; q }' /proc/cpuinfo)"
    [ -z "$python" ] || "$python" "$files/torch_peers.py" --versions
    if [ -z "$topology" ]; then
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm --format=csv 2>&1
        nvidia-smi topo -m 2>&1 | sed '/^$/,$d'
    fi
}

if [ "$list" = 0 ]; then
    nccl_version=$(env "LD_LIBRARY_PATH=$path" "${program[@]}" --version 2>"$results/logs/version.log") || {
        cat "$results/logs/version.log" >&2
        usage_error "$nccl can't be used"
    }
    machine | tee "$results/machine.txt"
    cat "$files/method.txt"
fi

mixing_off=NCCL_GRAPH_MIXING_SUPPORT=0
peer nccl main "${program[@]}"
peer lamprey main "${lamprey[@]}" "${program[@]}"
peer nccl-no-mixing main "$mixing_off" "${program[@]}"
peer nccl-windows main "${program[@]}" --registered
peer nccl-windows-no-mixing main "$mixing_off" "${program[@]}" --registered
peer nccl-nowin main NCCL_SYM_NOWIN_ENABLE=1 "${program[@]}"
peer nccl-nowin-no-mixing main NCCL_SYM_NOWIN_ENABLE=1 "$mixing_off" "${program[@]}"
peer lamprey-pdl-signal main "${lamprey[@]}" LAMPREY_PDL=signal "${program[@]}"
peer lamprey-pdl-off main "${lamprey[@]}" LAMPREY_PDL=off "${program[@]}"
peer torch-one-shot main "${torch[@]}" --peer=torch-one-shot
peer torch-two-shot main "${torch[@]}" --peer=torch-two-shot
peer flashinfer-one-shot main "${torch[@]}" --peer=flashinfer-one-shot
peer flashinfer-one-shot-no-pdl more "${torch[@]}" --peer=flashinfer-one-shot-no-pdl
peer torch-nccl more "${torch[@]}" --peer=torch-nccl
peer torch-nccl-no-mixing more "$mixing_off" "${torch[@]}" --peer=torch-nccl
peer torch-lamprey more "${lamprey[@]}" "${torch[@]}" --peer=torch-nccl
peer nccl-threads more "${program[@]}" --threads
peer lamprey-threads more "${lamprey[@]}" "${program[@]}" --threads
peer nccl-group32 more "${program[@]}" --group=32 --mode=graph,eager,host
peer lamprey-group32 more "${lamprey[@]}" "${program[@]}" --group=32 --mode=graph,eager,host
for algorithm in Ring Tree; do
    for protocol in LL LL128 Simple; do
        name=nccl-$algorithm-$protocol
        peer "${name,,}" other "$mixing_off" "NCCL_ALGO=$algorithm" "NCCL_PROTO=$protocol" "${program[@]}"
    done
done
[ "$list" = 0 ] || exit 0

if [ -z "$python" ]; then
    say "bench: no python3, so no tables: the figures are in $results/records.jsonl" >&2
    exit 1
fi
"$python" "$files/report.py" "$results" || exit 1
say "results: $results"
! grep -q $'\tfailed\t' "$results/peers.tsv"
